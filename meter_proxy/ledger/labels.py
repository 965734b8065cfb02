"""Which model names have totals of their own; the rest share the name `other`.

A name has its own label if it is configured, or is among the first 100 that got a 2xx answer through the
model `*`. Callers choose names freely there, so the number must be bounded, in Redis as in Prometheus; and
the two can agree only if a record's label is decided once. It is decided here, when the record is settled,
and written into its journal line; every view totals by that.

The first 100 are counted over all workers of a state directory and over restarts: they stand in one small
append-only file that the workers share. To begin anew, remove the file while nothing runs.
"""

import fcntl
import os
from collections.abc import Collection
from pathlib import Path

import msgspec

OTHER = "other"
MAX_NAMES = 100
MAX_NAME_CHARS = 200  # a longer "name" is somebody's prank: `other`
REGISTER_BYTES = MAX_NAMES * (MAX_NAME_CHARS * 12 + 3)  # 12: JSON's worst escape of one character


class ModelLabels:
    """Decides labels. `configured` may be replaced at any time; it takes effect with the next record."""

    def __init__(self, path: Path, configured: Collection[str] = ()) -> None:
        """Open or create the shared file at `path`. Raises `OSError`."""
        self.configured = frozenset(configured) - {"*"}
        self._names: set[str] = set()
        self._offset = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def label(self, model: str, status: int | None) -> str:
        """Return the label for a request for `model` that was answered with `status`; a 2xx may register the name.

        None, or a refusal of our own, registers nothing. Never raises: a name that cannot be written is `other`.
        """
        if model in self.configured or model in self._names:
            return model
        if len(self._names) >= MAX_NAMES or len(model) > MAX_NAME_CHARS:
            return OTHER
        try:
            self._read_new()
            if model not in self._names and status is not None and 200 <= status < 300:
                self._register(model)
        except OSError:
            return OTHER
        return model if model in self._names else OTHER

    def _read_new(self) -> None:
        """Learn what other workers registered since the last look: one `pread`, about 1 us."""
        data = os.pread(self._fd, REGISTER_BYTES, self._offset)
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                self._names.add(msgspec.json.decode(line, type=str))
            except ValueError:
                continue  # damaged by somebody else: its place is lost, nothing more

    def _register(self, model: str) -> None:
        """Add `model` to the shared file, unless the places went to others meanwhile. At most 100 times ever."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            self._read_new()
            if model in self._names or len(self._names) >= MAX_NAMES:
                return
            os.ftruncate(self._fd, self._offset)  # the torn line of a worker that was killed right here
            line = msgspec.json.encode(model) + b"\n"
            if os.write(self._fd, line) == len(line):
                self._read_new()
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the file back."""
        os.close(self._fd)
