"""Brings the books to Redis, in the background, by absolute state.

Each message carries a day book's totals as they are now, so a message that is lost, repeated or late does
no harm, and catching up after an outage costs one message per active key and day, not per request. One
batch is in flight at a time; what is settled meanwhile rides in the next one. Nobody waits for this task.

Redis can lose what it acknowledged (an emptied server, a failover, a truncated log). Two books watch for
that in every batch: the first and the last that were acknowledged. What is lost is either everything, the
first one with it, or the newest writes, the last one with them.
"""

import asyncio
import calendar
import functools
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from meter_proxy.errors import StoreError
from meter_proxy.ledger.books import REQUESTS, DayBook

COALESCE_S = 0.05  # what is settled within this time goes out together; <= 0.1 s from settlement to Redis
MAX_BATCH = 25  # day books in one pipeline: keeps the loop for ~1 ms (100: ~4 ms), and still moves 20,000 a second
CHECK_S = 1.0  # an idle worker asks this often whether Redis is there and has lost nothing
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 2.0
WATCH_MARGIN_S = 3600  # an expired book must not look lost to a clock that is off

_log = logging.getLogger("meter_proxy.ledger.sync")


class ModelTotals(NamedTuple):
    """One model's part of a message: absolute totals in the order of `books.FIELDS`."""

    label: str
    acked_requests: int
    totals: tuple[int, ...]


class Merge(NamedTuple):
    """One message: one day book of one journal, as in `sync.lua`."""

    account: str
    key: str
    day: str  # YYYYMMDD
    journal_id: str
    expires_at: int  # Unix seconds
    models: tuple[ModelTotals, ...]


class BooksStore(Protocol):
    """What the sync needs of a store; `store.Store` is it."""

    async def merge(self, batch: Sequence[Merge]) -> list[bool | StoreError]:
        """Apply each message, in order. An empty batch only asks whether the store is there.

        Per message: True if the store has lost data, or the error that concerns this message alone.
        Raises `StoreError` if the store did not answer or refused the whole; then any part may have been applied.
        """

    async def close(self) -> None:
        """Give the connections back."""


@functools.lru_cache(maxsize=1024)
def day_expires_at(day: str, retention_s: int) -> int:
    """Return when the counters of `day` (YYYYMMDD, UTC) expire: `retention_s` after its end, in Unix seconds."""
    return calendar.timegm(time.strptime(day, "%Y%m%d")) + 86_400 + retention_s


class Sync:
    """One worker's background task: `mark` what changed, `run` sends it.

    When Redis has lost data, `on_lost` is called, and must bring back every book that has records in a journal:
    none is waiting to be sent any more.
    """

    def __init__(
        self,
        store: BooksStore,
        *,
        retention_s: int,
        on_lost: Callable[[], None],
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        """`clock` tells Unix seconds, `jitter` a number from 0 to 1."""
        self.store_up = False
        self.regressions = 0  # times that Redis turned out to have lost data
        self._store = store
        self._retention_s = retention_s
        self._on_lost = on_lost
        self._clock = clock
        self._jitter = jitter
        self._dirty: dict[DayBook, None] = {}  # in the order of their first change
        self._refused: dict[DayBook, None] = {}  # Redis has something wrong under their key; tried again slowly
        self._first_acked: DayBook | None = None
        self._last_acked: DayBook | None = None
        self._batch_size = MAX_BATCH
        self._stop_asked = asyncio.Event()
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()

    @property
    def unsynced(self) -> int:
        """Return the number of records that are in the books and not yet acknowledged by Redis."""
        return sum(book.unsynced for book in self._dirty | self._refused)

    def mark(self, book: DayBook) -> None:
        """Say that `book` has changed. Cheap; call it from the loop's thread."""
        self._dirty[book] = None
        self._wake.set()

    async def greet(self) -> None:
        """Find out whether the store is there, before `run`; it need not be."""
        try:
            await self._store.merge([])
        except StoreError as exc:
            _log.warning("%s; traffic is metered all the same", exc)
        else:
            self.store_up = True

    async def run(self) -> None:
        """Send what is dirty, until `stop()` was asked for and everything is sent."""
        backoff_s = BACKOFF_FIRST_S
        while True:
            try:
                await self._send_batch()
            except StoreError as exc:
                if self.store_up or backoff_s == BACKOFF_FIRST_S:
                    _log.warning("the store does not take the books, trying on: %s", exc)
                self.store_up = False
                if self._stop_asked.is_set() and not self._dirty:
                    return
                self._batch_size = max(1, self._batch_size // 2)  # perhaps it is only slow
                await self._back_off(backoff_s * (0.5 + 0.5 * self._jitter()))
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
                continue
            if not self.store_up:
                _log.info("the store takes the books")
            self.store_up = True
            self._batch_size = min(self._batch_size * 2, MAX_BATCH)
            backoff_s = BACKOFF_FIRST_S
            if self._stop_asked.is_set() and not self._dirty:
                return
            if len(self._dirty) < self._batch_size and not self._stop_asked.is_set():
                await self._wait_for_work()

    async def _wait_for_work(self) -> None:
        """Wait until something is settled, and a little longer for what comes with it."""
        if not self._dirty:
            self._wake.clear()
            try:
                async with asyncio.timeout(CHECK_S):
                    await self._wake.wait()
            except TimeoutError:
                self._dirty.update(self._refused)
                return
        await asyncio.sleep(COALESCE_S)

    async def _back_off(self, seconds: float) -> None:
        if self._stop_asked.is_set():
            await asyncio.sleep(BACKOFF_FIRST_S)  # the time left is short
            return
        try:
            async with asyncio.timeout(seconds):
                await self._stop_asked.wait()
        except TimeoutError:
            pass

    async def _send_batch(self) -> None:
        watched = self._watched()
        books = [*watched, *itertools.islice((book for book in self._dirty if book not in watched), self._batch_size)]
        batch = [self._message(book) for book in books]
        replies = await self._store.merge(batch)
        lost_data = False
        acked: list[DayBook] = []
        for book, message, reply in zip(books, batch, replies, strict=True):
            if isinstance(reply, StoreError):
                if book not in self._refused:
                    _log.error("the store cannot count %s on %s: %s", message.key, message.day, reply)
                self._dirty.pop(book, None)
                self._refused[book] = None
                continue
            self._refused.pop(book, None)
            lost_data = lost_data or reply
            self._acknowledge(book, message)
            acked.append(book)
        if acked:
            self._last_acked = acked[-1]
            if self._first_acked not in watched:
                self._first_acked = acked[0]
        if lost_data:
            self.regressions += 1
            self._first_acked = self._last_acked = None
            self._dirty.clear()
            self._refused.clear()
            _log.warning("the store has lost data that it had acknowledged: sending everything again")
            self._on_lost()
        self._progress.set()
        self._progress = asyncio.Event()

    def _watched(self) -> list[DayBook]:
        """Return the books that tell whether Redis lost data; one whose counters expire soon tells nothing."""
        soon = self._clock() + WATCH_MARGIN_S
        watched: list[DayBook] = []
        for book in (self._first_acked, self._last_acked):
            if book and book not in watched and day_expires_at(book.day, self._retention_s) > soon:
                watched.append(book)
        return watched

    def _message(self, book: DayBook) -> Merge:
        """Return the models that changed since the last acknowledgement; all of them where none did."""
        models = tuple(
            ModelTotals(label, book.acked_requests.get(label, 0), tuple(totals))
            for label, totals in book.totals.items()
        )
        changed = tuple(model for model in models if model.totals[REQUESTS] != model.acked_requests)
        expires_at = day_expires_at(book.day, self._retention_s)
        return Merge(book.account, book.key, book.day, book.journal_id, expires_at, changed or models)

    def _acknowledge(self, book: DayBook, message: Merge) -> None:
        for model in message.models:
            book.acked_requests[model.label] = model.totals[REQUESTS]
        if book.unsynced == 0:  # else it changed while the message was under way
            self._dirty.pop(book, None)

    def check(self, book: DayBook) -> None:
        """Ask once whether Redis still has what it acknowledged of `book`, whose totals are those of then."""
        if day_expires_at(book.day, self._retention_s) > self._clock() + WATCH_MARGIN_S:
            self.mark(book)

    def resend(self, books: Iterable[DayBook]) -> list[DayBook]:
        """Send `books` as if Redis had never acknowledged them; return them, less those whose counters have expired."""
        alive = [book for book in books if day_expires_at(book.day, self._retention_s) > self._clock()]
        for book in alive:
            book.acked_requests.clear()
            self.mark(book)
        return alive

    async def acknowledged(self, books: Iterable[DayBook]) -> None:
        """Wait until Redis has acknowledged all of `books`; ends only when it has."""
        waiting = list(books)
        while any(book.unsynced for book in waiting):
            await self._progress.wait()

    async def stop(self, running: Awaitable[None], timeout_s: float) -> bool:
        """Let the task `running` send the rest; True if Redis has everything, False if time ran out."""
        self._stop_asked.set()
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s):
                await running
        except TimeoutError:
            return False
        return not self._refused
