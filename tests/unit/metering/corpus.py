"""The wire cases of `tests/corpus`, ways to cut them, and what is left when usage is hidden, computed simply.

`without_hidden` is a reference: it sees the whole stream at once, walks every character, and shares nothing with the
code under test.
"""

import itertools
import json
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meter_proxy.metering.injection import NOTHING_HIDDEN, Hidden
from meter_proxy.metering.meter import Meter, meter_for
from meter_proxy.metering.request import parse_body
from meter_proxy.usage import Operation

CORPUS = Path(__file__).parents[2] / "corpus"
EVERYTHING = Hidden(usage_event=True, running_usage=True)
MAX_EVENT_BYTES = 1_048_576

_OPERATIONS = {
    "/v1/chat/completions": Operation.CHAT,
    "/v1/llm/chat/completions": Operation.CHAT,
    "/v1/completions": Operation.TEXT_COMPLETION,
    "/v1/embeddings": Operation.EMBEDDINGS,
}


@dataclass(frozen=True)
class Case:
    """One case: what the upstream sent, and what a right meter makes of it."""

    name: str
    operation: Operation
    data: bytes
    expected: dict[str, Any] = field(repr=False)
    headers: dict[str, str] = field(repr=False)

    @property
    def is_plain_stream(self) -> bool:
        """Events, not compressed."""
        return bool(self.expected["stream"]) and "content-encoding" not in self.headers

    def meter(self, hidden: Hidden = NOTHING_HIDDEN) -> Meter:
        """A meter as the gateway makes it for this answer."""
        return meter_for(
            self.operation,
            status=self.expected["status"],
            content_type=self.headers.get("content-type", ""),
            content_encoding=self.headers.get("content-encoding", ""),
            asked=parse_body(json.dumps(self.expected["request"]["body"]).encode(), self.operation),
            hidden=hidden,
            max_event_bytes=MAX_EVENT_BYTES,
        )

    def cuttings(self) -> list[list[bytes]]:
        """Whole, byte by byte, at 20 seeded random sets of offsets, and at the offsets that the case lists."""
        chance = random.Random(self.name)
        size = len(self.data)
        ways = [[self.data], [self.data[at : at + 1] for at in range(size)]]
        random_offsets = [[chance.randrange(size) for _ in range(chance.randrange(1, 30))] for _ in range(20)]
        ways += [cut(self.data, offsets) for offsets in random_offsets]
        ways += [cut(self.data, offsets) for offsets in self.expected.get("splits", [])]
        return ways


def cases() -> list[Case]:
    """The cases of the operations that are built, by name."""
    found = []
    for path in sorted(CORPUS.glob("*.expected.json")):
        expected = json.loads(path.read_text())
        operation = _OPERATIONS.get(expected["request"]["path"])
        if operation is None:
            continue
        head = (CORPUS / f"{expected['case']}.headers").read_text().splitlines()[1:]
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head if line)}
        data = (CORPUS / expected["file"]).read_bytes()
        found.append(Case(expected["case"], operation, data, expected, headers))
    return found


def cut(data: bytes, offsets: list[int]) -> list[bytes]:
    """The data in pieces, cut at the offsets."""
    edges = [0, *sorted(offsets), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges) if start < end]


def run(meter: Meter, reads: list[bytes]) -> bytes:
    """Feed it all and finish; what the client got."""
    return b"".join([*map(meter.feed, reads), meter.finish()])


def event_ends(data: bytes) -> list[int]:
    """The offsets behind each blank line that ends an event, by walking the lines."""
    ends, position, has_field = [], 0, False
    for line in _lines(data):
        position += len(line)
        if line.strip(b"\r\n") == b"":
            if has_field:
                ends.append(position)
            has_field = False
        elif not line.startswith(b":"):
            has_field = True
    return ends


def without_hidden(data: bytes, hidden: Hidden) -> bytes:
    """What a client gets of a whole stream when `hidden` is taken out of it."""
    bom = data[:3] if data.startswith(b"\xef\xbb\xbf") else b""
    kept: list[bytes] = [bom]
    event: list[bytes] = []
    done = False
    for line in _lines(data[len(bom) :]):
        is_blank = line.strip(b"\r\n") == b""
        if not event and is_blank:
            kept.append(line)
            continue
        event.append(line)
        if is_blank:
            values = [_value(part) for part in event if _is_data(part)]
            done = done or b"\n".join(values).strip(b" \t") == b"[DONE]"
            kept += event if done else _shown(event, b"\n".join(values), hidden)
            event = []
    return b"".join(kept + event)


def _lines(data: bytes) -> list[bytes]:
    return re.findall(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z", data)


def _is_data(line: bytes) -> bool:
    return line.startswith(b"data:") or line.rstrip(b"\r\n") == b"data"


def _value(line: bytes) -> bytes:
    line = line.rstrip(b"\r\n")
    if line == b"data":
        return b""
    return line[6:] if line.startswith(b"data: ") else line[5:]


def _shown(event: list[bytes], payload: bytes, hidden: Hidden) -> list[bytes]:
    try:
        wire = json.loads(payload.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return event
    if not isinstance(wire, dict) or not isinstance(wire.get("usage"), dict) or "choices" not in wire:
        return event
    if wire["choices"] == []:
        return [] if hidden.usage_event else event
    if not wire["choices"] or not hidden.running_usage:
        return event
    text = b"".join(event)
    only_data = b"".join(line if _is_data(line) else b" " * len(line) for line in event)
    start, end = _usage_member(only_data.decode("latin-1"))
    return [text[:start], text[end:]]


def _usage_member(text: str) -> tuple[int, int]:
    """Where the outermost `usage` and its comma stand: every character is looked at, strings are skipped."""
    depth = 0
    position = 0
    while True:
        character = text[position]
        if character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
        elif character == '"':
            end = position + 1
            while text[end] != '"':
                end += 2 if text[end] == "\\" else 1
            if depth == 1 and text[position : end + 1] == '"usage"':
                value_start = text.index("{", end)
                _, value_end = json.JSONDecoder().raw_decode(text, value_start)
                before = text[:position].rstrip()
                if before.endswith(","):
                    return len(before) - 1, value_end
                return position, text.index(",", value_end) + 1
            position = end
        position += 1
