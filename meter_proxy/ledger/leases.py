"""What a worker holds of its quota counters: kept alive in Redis as long as it is held, and its credit looked after."""

import asyncio
from collections.abc import Callable

from meter_proxy.ledger.books import Book
from meter_proxy.ledger.counters import Counter

TICK_S = 0.1  # credit is looked after this often
RENEW_S = 10.0  # what is held is said again this often: a third of the lease


class Leases:
    """The counters of which something is held, or lately was."""

    def __init__(self, mark: Callable[[Book], None]) -> None:
        """`mark` sends a counter's state with the next message."""
        self._mark = mark
        self._held: dict[Counter, None] = {}
        self._active: dict[Counter, None] = {}
        self._loop = asyncio.get_running_loop()
        self._ticking: asyncio.TimerHandle | None = None
        self._is_over = False

    def look_after(self, counter: Counter) -> None:
        """Keep the lease of what `counter` holds, and use or return its credit, from now until it holds nothing."""
        self._held[counter] = None
        self._active[counter] = None
        if self._ticking is None:
            self._ticking = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        now = self._loop.time()
        for counter in list(self._active):
            if counter.tick() or counter.credit:  # credit: somebody may have called for it
                self._mark(counter.book)
            elif counter.is_idle:
                del self._active[counter]
        for counter in list(self._held):
            if not counter.holds and counter not in self._active:
                del self._held[counter]
            elif now - counter.sent_at > RENEW_S:
                self._mark(counter.book)
        if self._held and not self._is_over:
            self._ticking = self._loop.call_later(TICK_S, self._tick)

    def say_again(self) -> None:
        """Redis has forgotten all of it."""
        for counter in self._held:
            counter.acked_version = 0
            self._mark(counter.book)

    def end(self) -> None:
        """Give all credit back; nothing is granted any more."""
        self._is_over = True
        if self._ticking is not None:
            self._ticking.cancel()
        for counter in self._held:
            counter.credit = 0
            self._mark(counter.book)

    def __repr__(self) -> str:
        return f"<Leases {len(self._held)} held, {len(self._active)} active>"
