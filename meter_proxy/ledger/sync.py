"""Brings the books to Redis, and fetches grants from there: one task per worker.

Each message carries absolute state, so one that is lost, repeated or late does no harm, and catching up after an
outage costs one message per active account, not per request. One batch of messages is in flight at a time; what is
settled or asked meanwhile rides in the next one. Whoever waits for a grant goes first; books wait 50 ms for company.

While Redis is away nobody waits for it: an ask fails at once, until a message at growing intervals gets through.

Redis can lose what it acknowledged (an emptied server, a failover, a truncated log). Each message says what was
acknowledged of what it carries; and two day books watch in every batch: the first and the last that were
acknowledged. What is lost is either everything, the first one with it, or the newest writes, the last one with them.

And we can lose what Redis has: an older copy of the state directory, or of the whole machine, goes on in the same
journal, whose totals there are larger, and swallow ours until they have caught up. So each batch begins by saying how
far the journal is written, and Redis keeps the highest: one that we have not reached is the proof.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from meter_proxy.errors import StoreError
from meter_proxy.ledger.books import Book, CounterBook, DayBook
from meter_proxy.ledger.counters import Counter, counter_of
from meter_proxy.ledger.leases import Leases
from meter_proxy.ledger.messages import (
    CALLED_IN,
    OVERTAKEN,
    UNANSWERED,
    Answer,
    Ask,
    Call,
    Message,
    Reply,
    compose,
    day_expires_at,
    heard,
    take_in,
    watermark,
)
from meter_proxy.ledger.outbox import COALESCE_S, Account, Outbox
from meter_proxy.quota.charge import expires_at

MAX_CALLS = 25  # messages in one pipeline: keeps the loop for ~1 ms, and still moves 20,000 day books a second
CHECK_S = 1.0  # an idle worker asks this often whether Redis is there and has lost nothing
TOLD_S = 3.0  # what Redis said is news for so long: the parent looks several times
ASK_AGAIN_S = 0.025  # others' credit was called in: they hear of it at their next message
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 2.0
FORGET_MARGIN_S = 60  # a rule per second leaves a counter a second and key
WATCH_MARGIN_S = 3600  # an expired book must not look lost to a clock that is off

_log = logging.getLogger("meter_proxy.ledger.sync")


class SyncStore(Protocol):
    """What the sync needs of a store; `store.Store` is it."""

    async def call(self, batch: Sequence[Call]) -> list[Any | StoreError]:
        """Run `sync.lua` once per call, in order; the reply, or the error that concerns this call alone.

        Raises `StoreError` if the store did not answer or refused the whole; then any part may have been applied.
        """

    async def now(self) -> float:
        """Return the store's clock in Unix seconds. Raises `StoreError` if it does not answer."""

    async def read_hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """Return the hashes under `keys`; an empty one for a key that is not there. Raises `StoreError`."""

    async def close(self) -> None:
        """Give the connections back."""


class Sync:
    """One worker's background task: `mark` what changed, `ask` for grants, `run` sends it.

    When Redis has lost data, `on_lost` is called, and must bring back every book that has records in a journal:
    none is waiting to be sent any more. When our journal turns out to be an older copy, `on_behind` is, once; after
    `greet`, `is_behind` says so before anything is sent.
    """

    def __init__(
        self,
        store: SyncStore,
        *,
        journal_id: str,
        incarnation: int,
        workers: int = 1,
        retention_s: int,
        position: Callable[[], int],
        on_lost: Callable[[], None],
        on_behind: Callable[[], None],
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        """`clock` tells Unix seconds, `jitter` a number from 0 to 1; `incarnation` grows with each opening.

        `position`: up to which the journal is written, and the books hold it.
        """
        self.store_up = False
        self.is_behind = False  # Redis has heard of more of our journal than there is
        self.regressions = 0  # times that Redis turned out to have lost data
        self.offset_s = 0.0  # Redis' clock less ours
        self._store = store
        self._journal_id = journal_id
        self._version = incarnation << 32  # of the next message, above all that earlier incarnations sent
        self._workers = workers
        self._retention_s = retention_s
        self._position = position
        self._told_position = -1  # of the journal, in the last message that Redis took
        self._on_lost = on_lost
        self._on_behind = on_behind
        self._clock = clock
        self._jitter = jitter
        self._sending: list[DayBook] = []
        self._refused: dict[Book, None] = {}  # Redis has something wrong under their key; tried again slowly
        self._told: dict[Counter, float] = {}  # -> when, in loop time
        self._first_acked: DayBook | None = None
        self._last_acked: DayBook | None = None
        self._max_calls = MAX_CALLS
        self._checked_at = 0.0
        self._backoff_s = BACKOFF_FIRST_S
        self._stop_asked = asyncio.Event()
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self._wake.set)
        self._leases = Leases(self._outbox.mark)
        self.mark = self._outbox.mark  # without a call in between: each is made for every exchange
        self.look_after = self._leases.look_after

    # What others call.

    @property
    def unsynced(self) -> int:
        """Return the number of records that are in the books and not yet acknowledged by Redis."""
        waiting = dict.fromkeys(self._sending)
        waiting.update((book, None) for book in self._outbox.days)
        waiting.update((book, None) for book in self._refused if isinstance(book, DayBook))
        return sum(book.unsynced for book in waiting)

    def now(self) -> float:
        """Redis' time as far as we know it, Unix seconds: windows follow one clock, whatever machine a worker is on."""
        return self._clock() + self.offset_s

    def ask(self, account_name: str, ask: Ask) -> None:
        """Want a grant; the ask is answered soon, at once with "nobody could be asked" while Redis is away."""
        if not self.store_up or self._stop_asked.is_set():
            ask.answer(ask, UNANSWERED)
            return
        account = self._outbox.account(account_name)
        if account.retry_at > self._loop.time():
            ask.answer(ask, UNANSWERED)
            return
        self._outbox.add(ask, account)

    def lately_told(self) -> list[Counter]:
        """The counters of ours that Redis told us of lately."""
        since = self._loop.time() - TOLD_S
        for counter in [counter for counter, at in self._told.items() if at < since]:
            del self._told[counter]
        return list(self._told)

    async def greet(self) -> None:
        """Find out whether the store is there, before `run`; it need not be."""
        try:
            await self._check_clock()
        except StoreError as exc:
            _log.warning("%s; traffic is metered all the same", exc)
            return
        self.store_up = True
        position = self._position()
        try:
            (reply,) = await self._store.call([self._watermark(position)])
        except StoreError:
            return  # the part of a cluster that keeps it is away: the first batch says it again
        self.is_behind = self._hear(reply, position)

    async def _check_clock(self) -> None:
        before = self._clock()
        at = await self._store.now()
        self.offset_s = at - (before + self._clock()) / 2

    def _watermark(self, position: int) -> Call:
        return watermark(self._journal_id, position, self._retention_s)

    def _hear(self, reply: list[Any] | StoreError, position: int) -> bool:
        """Take in the reply to a watermark; tells whether Redis knows more of our journal than `position`."""
        if isinstance(reply, StoreError):
            return False  # the next batch says it again
        self._told_position = position
        return heard(reply) > position

    # The task.

    async def run(self) -> None:
        """Send what is due, until `stop()` was asked for and everything is sent."""
        while True:
            try:
                await self._turn()
            except StoreError as exc:
                self._is_away(exc)
                if self._stop_asked.is_set() and self._outbox.is_empty:
                    return
                await self._back_off()
                continue
            if self._stop_asked.is_set() and self._outbox.is_empty:
                return

    def _is_away(self, exc: StoreError) -> None:
        if self.store_up or self._backoff_s == BACKOFF_FIRST_S:
            _log.warning("the store does not take the books, trying on: %s", exc)
        self.store_up = False
        self._max_calls = max(1, self._max_calls // 2)  # perhaps it is only slow
        _fail(self._outbox.take_asks())

    async def _back_off(self) -> None:
        pause_s = self._backoff_s * (0.5 + 0.5 * self._jitter())
        self._backoff_s = min(self._backoff_s * 2, BACKOFF_MAX_S)
        if self._stop_asked.is_set():
            await asyncio.sleep(BACKOFF_FIRST_S)  # the time left is short
            return
        try:
            async with asyncio.timeout(pause_s):
                await self._stop_asked.wait()
        except TimeoutError:
            pass

    async def _turn(self) -> None:
        """Send one batch, if there is something to send; else wait for it."""
        now = self._loop.time()
        in_a_hurry = self._stop_asked.is_set() or not self.store_up
        accounts = self._outbox.next(self._max_calls, now, in_a_hurry=in_a_hurry)
        is_check = now - self._checked_at >= CHECK_S or not self.store_up
        if is_check:
            self._checked_at = now
            for book in list(self._refused):
                self.mark(book)
        if accounts or is_check:
            await self._send(accounts, watch=is_check)
        else:
            await self._wait(now)

    async def _wait(self, now: float) -> None:
        self._wake.clear()
        due_at = self._outbox.due_at
        if self._outbox.is_asked:
            wait_s = ASK_AGAIN_S  # all of them wait for a part of the store that is away
        elif due_at is not None:
            wait_s = max(due_at - now, 0.001)
        else:
            wait_s = CHECK_S - (now - self._checked_at)
        if self._stop_asked.is_set():
            wait_s = min(wait_s, COALESCE_S)
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _send(self, accounts: list[Account], *, watch: bool) -> None:
        messages = [self._compose(account) for account in accounts]
        if watch or any(message.days for message in messages):
            messages += self._watching({day for message in messages for day, _ in message.days})
        self._sending = [day for message in messages for day, _ in message.days]
        calls = [message.call for message in messages]
        position = self._position()
        says_position = bool(messages) and position != self._told_position
        if says_position:
            calls.insert(0, self._watermark(position))  # first: never may Redis have more than it was told to expect
        began_at = self._loop.time()
        try:
            if calls:
                replies = await self._store.call(calls)
            else:
                await self._check_clock()  # of any part of a cluster that is there
                replies = []
        except StoreError:
            for account, message in zip(accounts, messages, strict=False):  # watches follow
                _fail(message.asks)
                self._mark_again(message)
                self._outbox.is_back(account)
            self._sending = []
            raise
        self._sending = []
        self._is_there()
        if says_position and self._hear(replies.pop(0), position) and not self.is_behind:
            self.is_behind = True
            self._on_behind()
        lost_data = False
        for place, (message, reply) in enumerate(zip(messages, replies, strict=True)):
            of = accounts[place] if place < len(accounts) else None
            if isinstance(reply, StoreError):
                self._is_refused(message, of, reply)
            else:
                lost_data = self._take_in(message, of, reply, began_at) or lost_data
            if of is not None:
                self._outbox.is_back(of)
        if lost_data:
            self._has_lost_data()
        self._progress.set()
        self._progress = asyncio.Event()

    def _is_there(self) -> None:
        if not self.store_up:
            _log.info("the store takes the books")
        self.store_up = True
        self._backoff_s = BACKOFF_FIRST_S
        self._max_calls = min(self._max_calls * 2, MAX_CALLS)

    def _compose(self, account: Account) -> Message:
        """Take what is to be said of an account into a message; it is marked again if that fails."""
        days, counters, asks = self._outbox.take(account)
        waiting = []
        for ask in asks:
            if ask.is_given_up:
                continue
            if ask.answer_from_credit():  # else at thousands a second somebody always asks, and takes credit away
                counters += [part.counter.book for part in ask.parts]
            else:
                waiting.append(ask)
        return self._message(days, counters, waiting)

    def _message(self, days: Iterable[DayBook], counters: Iterable[CounterBook], asks: Sequence[Ask]) -> Message:
        self._version += 1
        return compose(
            days,
            counters,
            asks,
            journal_id=self._journal_id,
            version=self._version,
            workers=self._workers,
            retention_s=self._retention_s,
        )

    def _watching(self, sent: set[DayBook]) -> list[Message]:
        """Messages of the books that tell whether Redis lost data; one whose counters expire soon tells nothing."""
        soon = self._clock() + WATCH_MARGIN_S
        messages: list[Message] = []
        for book in (self._first_acked, self._last_acked):
            if book and book not in sent and day_expires_at(book.day, self._retention_s) > soon:
                sent.add(book)
                messages.append(self._message([book], [], []))
        return messages

    # Replies.

    def _take_in(self, message: Message, account: Account | None, reply: list[Any], began_at: float) -> bool:
        told: Reply = take_in(message, reply)
        now = self._loop.time()
        self.offset_s = told.now - self._clock() + (now - began_at) / 2
        for counter, _, _ in message.counters:
            counter.sent_at = began_at
            self._refused.pop(counter.book, None)
            if counter.limit >= 0:
                self._told[counter] = now
        for day, _ in message.days:
            self._refused.pop(day, None)
        if message.days and account is not None:
            self._last_acked = message.days[-1][0]
            if (
                self._first_acked is None
                or day_expires_at(self._first_acked.day, self._retention_s) < self._clock() + WATCH_MARGIN_S
            ):
                self._first_acked = message.days[0][0]
        if account is not None:
            account.retry_at = account.pause_s = 0.0
            account.one_by_one = account.one_by_one and not account.is_empty
        for book in told.given_back:
            self.mark(book)
        for ask, (granted, part) in zip(message.asks, told.answers, strict=True):
            self._answer(ask, granted, part, now)
        return told.lost_data

    def _answer(self, ask: Ask, granted: int, part: int, now: float) -> None:
        if granted in (CALLED_IN, OVERTAKEN) and now < ask.gives_up_at and not ask.is_given_up:
            self._loop.call_later(ASK_AGAIN_S, self.ask, ask.parts[0].counter.book.account, ask)
            return
        ask.answer(ask, Answer(granted) if granted >= 0 else Answer(None, part))

    def _is_refused(self, message: Message, account: Account | None, error: StoreError) -> None:
        _fail(message.asks)
        if account is None:
            return  # a watch; its book will tell when it changes
        books: list[Book] = [day for day, _ in message.days] + [counter.book for counter, _, _ in message.counters]
        if error.transient:
            account.pause_s = min(max(BACKOFF_FIRST_S, 2 * account.pause_s), BACKOFF_MAX_S)
            account.retry_at = self._loop.time() + account.pause_s
            _log.warning("the books of %s wait: %s", account.name, error)
        elif len(books) > 1:
            account.one_by_one = True
        else:
            for book in books:
                if book not in self._refused:
                    _log.error("the store cannot count %r: %s", book, error)
                self._refused[book] = None
            return
        for book in books:
            self.mark(book)

    def _mark_again(self, message: Message) -> None:
        for day, _ in message.days:
            self.mark(day)
        for counter, _, _ in message.counters:
            self.mark(counter.book)

    def _has_lost_data(self) -> None:
        self.regressions += 1
        self._first_acked = self._last_acked = None
        self._refused.clear()
        self._outbox.drop_books()
        _log.warning("the store has lost data that it had acknowledged: sending everything again")
        self._leases.say_again()
        self._on_lost()

    # All of it again; the end.

    def send_new(self, books: Iterable[Book]) -> list[Book]:
        """Send what Redis has not acknowledged of `books`; return it, less what has expired.

        One book that it has acknowledged goes along, to ask whether Redis still has it.
        """
        alive = [book for book in books if not self._is_expired(book, WATCH_MARGIN_S)]
        waiting = [book for book in alive if not _is_acked(book)]
        acked = [book for book in alive if isinstance(book, DayBook) and _is_acked(book)]
        for book in (*waiting, *acked[:1], *acked[-1:]):
            self.mark(book)
        return waiting

    def resend(self, books: Iterable[Book]) -> list[Book]:
        """Send `books` as if Redis had never acknowledged them; return them, less those whose counters have expired."""
        alive = [book for book in books if not self._is_expired(book, 0)]
        for book in alive:
            if isinstance(book, DayBook):
                book.acked_requests.clear()
            else:
                book.acked_used = -1
                counter_of(book).acked_version = 0
            self.mark(book)
        return alive

    def expired(self, books: Iterable[Book]) -> list[Book]:
        """Those of `books` that Redis has forgotten, and nobody will ask for."""
        return [book for book in books if self._is_expired(book, -FORGET_MARGIN_S) and not _is_held(book)]

    def _is_expired(self, book: Book, margin_s: float) -> bool:
        if isinstance(book, DayBook):
            at = day_expires_at(book.day, self._retention_s)
        else:
            at = expires_at(book.window, book.ends_at)
            if at == 0:
                return False
        return at <= self._clock() + margin_s

    async def acknowledged(self, books: Iterable[Book]) -> None:
        """Wait until Redis has acknowledged all of `books`; ends only when it has."""
        waiting = list(books)
        while not all(_is_acked(book) for book in waiting):
            await self._progress.wait()

    async def stop(self, running: Awaitable[None], timeout_s: float) -> bool:
        """Let the task `running` send the rest; True if Redis has everything, False if time ran out.

        Credit is given back; nothing is granted any more.
        """
        self._stop_asked.set()
        self._leases.end()
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s):
                await running
        except TimeoutError:
            return False
        return not self._refused


def _fail(asks: Iterable[Ask]) -> None:
    for ask in asks:
        ask.answer(ask, UNANSWERED)


def _is_held(book: Book) -> bool:
    return isinstance(book, CounterBook) and book.live is not None and book.live.holds > 0


def _is_acked(book: Book) -> bool:
    return book.unsynced == 0 if isinstance(book, DayBook) else book.acked_used >= book.used
