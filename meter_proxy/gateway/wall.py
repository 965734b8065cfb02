"""The wall that a stream may run into: how much output may be delivered, and where a read must be cut for it.

The count is in tokens where the upstream tells a running usage, else in content events. The event that uses up the
last granted token is the last one that is delivered, also in the middle of a read.
"""

import re
from collections.abc import Callable, Iterator
from typing import Protocol

_BLANK_LINE = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?:\r\n?|\n)")  # as in metering/sse.py


class Allowance(Protocol):
    """How much output an exchange may deliver; `ledger.grants.Grant` is it."""

    granted: int  # output tokens, so far; UNBOUNDED: nothing ends the stream
    top_up_at: int  # at so many, `top_up` wants to be called; never more than `granted`
    exhausted: str | None  # not None: `granted` is final, and the stream ends so: `stop` or `error`
    on_change: Callable[[], None] | None  # called in the loop when `granted` grew or `exhausted` was set

    def top_up(self, spent: int) -> None:
        """Ask for more, in the background; may raise `granted` or set `exhausted` before it returns."""

    def input_is(self, input_tokens: int) -> None:
        """Tell the real input count, as soon as it is known; once."""


def events_in(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the events in a read begin and end; the last may be incomplete, and the first the rest of one."""
    start = len(data) - len(data.lstrip(b"\r\n"))  # the rest of a blank line
    if start:
        yield 0, start
    if b"\r" in data:
        for blank_line in _BLANK_LINE.finditer(data, start):
            yield start, blank_line.end()
            start = blank_line.end()
    else:  # nearly all streams, at a third of the time
        while (blank := data.find(b"\n\n", start)) >= 0:
            yield start, blank + 2
            start = blank + 2
    if start < len(data):
        yield start, len(data)
