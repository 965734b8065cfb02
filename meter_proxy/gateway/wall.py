"""The wall that a stream may run into: how much output may be delivered, and where a read must be cut for it.

The count is in tokens where the upstream tells a running usage, else in content events. The event that uses up the
last granted token is the last one that is delivered, also in the middle of a read.
"""

import re
from collections.abc import Callable, Iterator
from typing import Protocol

_EVENT_END = re.compile(rb"\A[\r\n]+|\r\n\r\n|\n\n|\r\r")  # a blank line; or what a read began with, of one


class Allowance(Protocol):
    """How much output an exchange may deliver; `ledger.grants.Grant` is it."""

    granted: int  # output tokens, so far; UNBOUNDED: nothing ends the stream
    top_up_at: int  # at so many, `top_up` wants to be called
    exhausted: str | None  # not None: `granted` is final, and the stream ends so: `stop` or `error`
    on_change: Callable[[], None] | None  # called in the loop when `granted` grew or `exhausted` was set

    def top_up(self, spent: int) -> None:
        """Ask for more, in the background; may raise `granted` or set `exhausted` before it returns."""

    def input_is(self, input_tokens: int) -> None:
        """Tell the real input count, as soon as it is known; once."""


def events_in(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the events in a read begin and end; the last may be incomplete, and the first the rest of one."""
    start = 0
    for blank_line in _EVENT_END.finditer(data):
        yield start, blank_line.end()
        start = blank_line.end()
    if start < len(data):
        yield start, len(data)
