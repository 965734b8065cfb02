"""What was really generated and sent: the witness against which a meter is checked."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from meter_proxy.errors import CannotStart


@dataclass(kw_only=True)
class Truth:
    """One request, counted where its tokens were made. Field names are those of the file.

    `id` is the x-request-id of the answer; `client_request_id` the x-meter-request-id or x-request-id
    that came with the request. An answer that a fault broke is neither finished nor cancelled.
    """

    id: str
    client_request_id: str | None
    model: str
    stream: bool
    operation: str
    prompt_tokens: int
    generated_tokens: int = 0  # over all choices; of a step that was never sent, none
    sent_events: int = 0  # every SSE event, [DONE] included
    content_events: int = 0  # those that carried generated tokens
    finished: bool = False  # every choice got its end; a plain answer was written whole
    cancelled: bool = False  # the client hung up while there was more to write


class TruthFile:
    """Appends truths to a file, one JSON line each, in one write: several processes may share it."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`. Raises CannotStart."""
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as exc:
            raise CannotStart(f"cannot write the truth to {path}: {exc.strerror}") from exc

    def append(self, truth: Truth) -> None:
        """Write one line. Blocks for as long as a write to the page cache takes."""
        os.write(self._fd, json.dumps(asdict(truth)).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
