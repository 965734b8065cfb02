"""What one account's message to Redis says, and what its reply means: the other half of `sync.lua`.

A message carries absolute state and is built at the moment it is sent. A want is granted in Redis before we learn
of it: if the reply is lost, the next message takes the grant back, because it does not name it.
"""

import calendar
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from meter_proxy.ledger.books import FIELDS, REQUESTS, CounterBook, DayBook
from meter_proxy.ledger.counters import Counter, counter_of

LEASE_MS = 30_000  # what a worker holds that says nothing for so long is anybody's
DENIED, CALLED_IN, OVERTAKEN = -1, -2, -3  # answers to a want, where it was not granted

_FIELD_NAMES: list[str | int] = [len(FIELDS), *FIELDS]


class Call(NamedTuple):
    """One run of the script. All keys bear one hash tag."""

    keys: list[str]
    args: list[str | int]


REHEARSAL = Call(["mp:{rehearsal}:usage"], [LEASE_MS, 0, 0, 0, *_FIELD_NAMES])  # says nothing and asks nothing


class Part(NamedTuple):
    """What a want asks of one counter: an amount up front, and one per output token."""

    counter: Counter
    up_front: int
    each: int


class Ask:
    """A want on its way: answered once, by `granted`, `denied` or `failed`."""

    __slots__ = ("answer", "gives_up_at", "is_given_up", "least", "most", "parts")

    def __init__(
        self, parts: Sequence[Part], least: int, most: int, answer: "Callable[[Ask, Answer], None]", gives_up_at: float
    ) -> None:
        """`answer` is called once, in the loop; `gives_up_at` (loop time) ends the wait for others' credit."""
        self.parts = parts
        self.least = least
        self.most = most
        self.answer = answer
        self.gives_up_at = gives_up_at
        self.is_given_up = False  # nobody waits any more: a grant is given back

    def answer_from_credit(self) -> bool:
        """Grant it, if credit that came since it was asked covers all of it: then it need not be sent."""
        asks_for_something = False
        for counter, up_front, each in self.parts:
            amount = up_front + each * self.most
            if not counter.covers(amount):
                return False
            asks_for_something = asks_for_something or amount > 0
        if asks_for_something:  # else it wants to know
            self.answer(self, Answer(self.most, from_credit=True))
        return asks_for_something


class Answer(NamedTuple):
    """What became of an Ask: `granted` output tokens (0 or more), or None; then who decided it, or nobody could."""

    granted: int | None
    denied_by: int | None = None  # index of the part; None: the store could not be asked
    from_credit: bool = False  # the store was not asked: credit covers it


UNANSWERED = Answer(None)


class Message(NamedTuple):
    """One account's message, and what must be remembered of the moment it was built."""

    call: Call
    version: int
    days: list[tuple[DayBook, tuple[tuple[str, int], ...]]]  # the labels sent, and their requests
    counters: list[tuple[Counter, int, int]]  # used and held, as sent
    asks: list[Ask]
    own_journal: str


@functools.lru_cache(maxsize=1024)
def day_expires_at(day: str, retention_s: int) -> int:
    """When the counters of `day` (YYYYMMDD, UTC) expire: `retention_s` after its end, in Unix seconds."""
    return calendar.timegm(time.strptime(day, "%Y%m%d")) + 86_400 + retention_s


def usage_key(account: str, key: str, day: str) -> str:
    """The readable hash of a key's day (YYYYMMDD)."""
    return f"mp:{{{account}}}:usage:{key}:{day}"


def books_key(account: str, key: str, day: str) -> str:
    """The hash of the journals' own totals beside it."""
    return f"mp:{{{account}}}:books:{key}:{day}"


def day_keys(book: DayBook) -> list[str]:
    """The two hashes of a day book."""
    place = (book.account, book.key, book.day)
    return [usage_key(*place), books_key(*place)]


def counter_key(book: CounterBook) -> str:
    """The hash of a counter."""
    owner = f"k:{book.owner}" if book.holder == "k" else "a"
    return f"mp:{{{book.account}}}:quota:{owner}:{book.rule}:{book.window}"


def journal_key(journal_id: str) -> str:
    """The hash that says how much of a journal Redis has heard of."""
    return f"mp:{{{journal_id}}}:journal"


def watermark(journal_id: str, position: int, retention_s: int) -> Call:
    """Say that `journal_id` is written up to `position`: to be sent before the books that come of it.

    To the script it is a counter that only grows, of a journal that holds nothing. It stays for as long as the days
    that the journal may have totals of.
    """
    counter: list[str | int] = [journal_id, 0, 0, 0, position, 0, 0, -1, 0, 0, 0, -(86_400 + retention_s)]
    return Call([journal_key(journal_id)], [LEASE_MS, 0, 1, 0, *_FIELD_NAMES, *counter])


def heard(reply: list[Any]) -> int:
    """The reply to a watermark: the highest position that Redis ever heard of, this one included."""
    position: int = reply[2]
    return position


def compose(
    days: Iterable[DayBook],
    books: Iterable[CounterBook],
    asks: Sequence[Ask],
    *,
    journal_id: str,
    version: int,
    workers: int,
    retention_s: int,
) -> Message:
    """The message of one account. Counters that are asked of give their credit back first: all is granted anew."""
    counters: dict[Counter, int] = {}  # -> its number, from 1
    for ask in asks:
        for part in ask.parts:
            if part.counter not in counters:
                part.counter.credit = 0
                counters[part.counter] = len(counters) + 1
    for book in books:
        counters.setdefault(counter_of(book), len(counters) + 1)

    keys: list[str] = []
    args: list[str | int] = [LEASE_MS, 0, len(counters), len(asks), *_FIELD_NAMES]
    sent_days: list[tuple[DayBook, tuple[tuple[str, int], ...]]] = []
    for day in days:
        keys += day_keys(day)
        acked = day.acked_requests
        labels = [label for label, totals in day.totals.items() if totals[REQUESTS] != acked.get(label, 0)]
        labels = labels or list(day.totals)  # nothing new: ask whether Redis still has what it had
        args += [day.journal_id, day_expires_at(day.day, retention_s), 0 if acked else 1, len(labels)]
        for label in labels:
            args += [label, acked.get(label, 0), *day.totals[label]]
        sent_days.append((day, tuple((label, day.totals[label][REQUESTS]) for label in labels)))
    args[1] = len(sent_days)
    sent_counters: list[tuple[Counter, int, int]] = []
    for counter in counters:
        keys.append(counter_key(counter.book))
        args += counter.arguments(version if counter.book.journal_id == journal_id else 0, workers)
        sent_counters.append((counter, counter.book.used, counter.holds))
    for ask in asks:
        args += [ask.least, ask.most, len(ask.parts)]
        for part in ask.parts:
            args += [counters[part.counter], part.up_front, part.each]
    return Message(Call(keys, args), version, sent_days, sent_counters, list(asks), journal_id)


class Reply(NamedTuple):
    """What Redis says of a message. `answers` belong to the message's asks, in order."""

    now: float  # the store's clock, Unix seconds
    lost_data: bool
    answers: list[tuple[int, int]]  # granted, or DENIED, CALLED_IN, OVERTAKEN; index of the part that decided
    given_back: list[CounterBook]  # their credit was called in: Redis should hear at once that it is free


def take_in(message: Message, reply: list[Any]) -> Reply:
    """Acknowledge what the message brought, and learn the sums. What was granted is the asker's to note."""
    now_ms, lost_data = reply[0], bool(reply[1])
    for day, labels in message.days:
        for label, requests in labels:
            day.acked_requests[label] = max(requests, day.acked_requests.get(label, 0))
    at_asks = 2 + 4 * len(message.counters)
    answers = [(reply[at], reply[at + 1] - 1) for at in range(at_asks, at_asks + 2 * len(message.asks), 2)]
    held = {counter: holds for counter, _, holds in message.counters}
    for ask, (granted, _) in zip(message.asks, answers, strict=True):
        if granted >= 0:
            for part in ask.parts:
                held[part.counter] += part.up_front + part.each * granted
    given_back: list[CounterBook] = []
    for place, (counter, own_used, _) in enumerate(message.counters):
        used, reserved, added, called = reply[2 + 4 * place : 6 + 4 * place]
        book = counter.book
        book.acked_used = max(book.acked_used, own_used)
        counter.told(used=used, reserved=reserved, own_used=own_used, own_reserved=held[counter] + added)
        if book.journal_id == message.own_journal:
            counter.acked_version = message.version
            if called and counter.credit:
                given_back.append(book)
            counter.credit = 0 if called else counter.credit + added
    return Reply(now_ms / 1000, lost_data, answers, given_back)
