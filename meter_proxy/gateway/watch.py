"""Time-outs of many things at once: one timer of the loop for all that have the same time.

An exchange has three times that may run out. All that is added to one `Deadlines` has the same time, so what was added
first is due first, and only the first needs a timer of the loop.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
IDLE_TICKS = 4  # an idle upstream is noticed within 1 + 1/4 of its time-out, without a timer per chunk


class Deadlines(Generic[T]):
    """Calls `on_due` for each item that was not taken back within `seconds`."""

    __slots__ = ("_due_at", "_loop", "_on_due", "_timer", "seconds")

    def __init__(self, seconds: float, on_due: Callable[[T], None]) -> None:
        self.seconds = seconds
        self._on_due = on_due
        self._due_at: dict[T, float] = {}  # in the order of their time
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, item: T) -> None:
        """Begin to wait for `item`, or begin anew. Call it in the loop."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        due_at = self._due_at
        if item in due_at:
            del due_at[item]
        due_at[item] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._look)

    def discard(self, item: T) -> None:
        """Wait for it no longer; also where nobody did."""
        self._due_at.pop(item, None)

    def _look(self) -> None:
        loop = self._loop
        assert loop is not None
        self._timer = None
        now = loop.time()
        due: list[T] = []
        for item, at in self._due_at.items():
            if at > now:
                self._timer = loop.call_later(at - now, self._look)
                break
            due.append(item)
        for item in due:
            if self._due_at.get(item, now + 1) > now:
                continue  # taken back, or begun anew, by what was called before it
            del self._due_at[item]
            try:
                self._on_due(item)
            except Exception as exc:
                loop.call_exception_handler({"message": "a time-out could not be acted on", "exception": exc})

    def __len__(self) -> int:
        return len(self._due_at)

    def __repr__(self) -> str:
        return f"<Deadlines {self.seconds:g} s, {len(self._due_at)} waiting>"


class Timed(Protocol):
    """What waits for an upstream."""

    def too_slow(self, what: str, seconds: float) -> None:
        """The upstream's time is over."""

    def idle_tick(self, idle_s: float) -> None:
        """A part of the idle time is over: nothing came for so long, if nothing came since the last one."""


class Times:
    """How long one upstream may take: each a watch over all exchanges with it."""

    def __init__(self, *, first_byte_s: float, idle_s: float, total_s: float) -> None:
        self.first_byte: Deadlines[Timed] = Deadlines(
            first_byte_s, lambda one: one.too_slow("sent no answer", first_byte_s)
        )
        self.total: Deadlines[Timed] = Deadlines(total_s, lambda one: one.too_slow("did not finish", total_s))
        self.idle: Deadlines[Timed] = Deadlines(idle_s / IDLE_TICKS, lambda one: one.idle_tick(idle_s))
