"""Absolute totals of one journal: per account, key, UTC day of admission and model; and per quota counter.

Totals only grow. They are a pure function of the journal's lines: replaying it gives the same books.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from meter_proxy.quota.charge import KEY_HOLDER, Charge, Unit
from meter_proxy.usage import UsageRecord

# The order of every list of totals, and the names of the fields in Redis.
FIELDS = ("requests", "input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "cost_nano_usd")
REQUESTS = 0  # grows with every record: it tells whether the other totals are older or newer

# How much of a unit a settled exchange has used. A table, not a `match`: that takes up to 2 us.
_AMOUNTS: dict[Unit, Callable[[UsageRecord], int]] = {
    Unit.REQUESTS: lambda record: 1,
    Unit.TOKENS: lambda record: record.input_tokens + record.output_tokens,
    Unit.INPUT_TOKENS: lambda record: record.input_tokens,
    Unit.OUTPUT_TOKENS: lambda record: record.output_tokens,
    Unit.COST_USD: lambda record: record.cost_nano_usd,
    Unit.CONCURRENT: lambda record: 0,
}


class DayBook:
    """One account's key on one day: totals per model label, and how much of them Redis has acknowledged."""

    __slots__ = ("account", "acked_requests", "day", "journal_id", "key", "totals", "waits_in")

    def __init__(self, journal_id: str, account: str, key: str, day: str) -> None:
        self.journal_id = journal_id
        self.account = account
        self.key = key
        self.day = day  # YYYYMMDD, UTC
        self.totals: dict[str, list[int]] = {}  # label -> totals in the order of FIELDS
        self.acked_requests: dict[str, int] = {}  # label -> its `requests` at the last acknowledged sync
        self.waits_in: str | None = None  # the account with which it is to be sent: the sync's note

    def add(self, record: UsageRecord, label: str) -> None:
        """Count one exchange. A count that was not reported adds nothing."""
        totals = self.totals.get(label)
        if totals is None:
            totals = self.totals[label] = [0] * len(FIELDS)
        totals[0] += 1
        totals[1] += record.input_tokens
        totals[2] += record.output_tokens
        totals[3] += record.cached_input_tokens or 0
        totals[4] += record.reasoning_tokens or 0
        totals[5] += record.cost_nano_usd

    @property
    def unsynced(self) -> int:
        """Return the number of records that Redis has not acknowledged."""
        acked = self.acked_requests
        return sum(totals[REQUESTS] - acked.get(label, 0) for label, totals in self.totals.items())

    def __repr__(self) -> str:
        return f"<DayBook {self.account} {self.key} {self.day} models={len(self.totals)} unsynced={self.unsynced}>"


class CounterBook:
    """What was used of one quota counter: of one rule, in one window.

    It belongs to a key or an account, whatever account the key belongs to now: `account` may change, and says where
    in Redis the counter is kept.
    """

    __slots__ = (
        "account",
        "acked_used",
        "amount_of",
        "ends_at",
        "holder",
        "journal_id",
        "live",
        "owner",
        "rule",
        "unit",
        "used",
        "waits_in",
        "window",
    )

    def __init__(
        self, journal_id: str, account: str, holder: str, owner: str, rule: str, window: str, unit: Unit, ends_at: int
    ) -> None:
        self.journal_id = journal_id
        self.account = account
        self.holder = holder  # "k": a key's; "a": an account's
        self.owner = owner  # the key's id, or the account's name
        self.rule = rule
        self.window = window
        self.unit = unit
        self.amount_of = _AMOUNTS[unit]  # what a settled exchange adds
        self.ends_at = ends_at  # Unix seconds; 0: never
        self.used = 0
        self.acked_used = -1  # by Redis; -1: it was never told
        self.live: Any = None  # what is open in it: `counters.Counter`
        self.waits_in: str | None = None  # as of a day book

    def __repr__(self) -> str:
        whose = f"{self.holder}:{self.owner}"
        return (
            f"<CounterBook {self.account} {whose} {self.rule} {self.window} used={self.used} acked={self.acked_used}>"
        )


Book = DayBook | CounterBook


@lru_cache(maxsize=64)  # days on which something is admitted or replayed just now
def _compact(date: str) -> str:
    """A day as books are named: 2026-01-31 is 20260131."""
    return date.replace("-", "")


class Books:
    """All books of one journal."""

    def __init__(self, journal_id: str) -> None:
        self.journal_id = journal_id
        self.before_change: Callable[[Book], object] | None = None  # is told of each book that `add` is to change
        self.forgotten = 0  # grows when a book is dropped: who keeps one has to look again
        self._days: dict[tuple[str, str, str], DayBook] = {}
        self._counters: dict[tuple[str, str, str, str], CounterBook] = {}

    def add(self, record: UsageRecord, label: str, charges: Sequence[Charge] = ()) -> list[Book]:
        """Count one exchange under the day and in the windows of its admission; return the books that changed."""
        key, account = record.key, record.account
        date = _compact(record.time[:10])
        day = self._days.get((account, key, date)) or self.day(account, key, date)
        before_change = self.before_change
        if before_change is not None:
            before_change(day)
        day.add(record, label)
        changed: list[Book] = [day]
        for charge in charges:
            holder = charge.holder
            place = (holder, key if holder == KEY_HOLDER else account, charge.rule, charge.window)
            counter = self._counters.get(place) or self.counter_of(record, charge)
            if before_change is not None:
                before_change(counter)
            counter.used += counter.amount_of(record)
            changed.append(counter)
        return changed

    def counter_of(self, record: UsageRecord, charge: Charge) -> CounterBook:
        """The book of the counter that a charge of `record` names."""
        owner = record.key if charge.holder == KEY_HOLDER else record.account
        return self.counter(
            record.account, charge.holder, owner, charge.rule, charge.window, charge.unit, charge.ends_at
        )

    def day(self, account: str, key: str, day: str) -> DayBook:
        """The book of a key's day (YYYYMMDD); a new one is empty."""
        place = (account, key, day)
        book = self._days.get(place)
        if book is None:
            book = self._days[place] = DayBook(self.journal_id, account, key, day)
        return book

    def counter(
        self, account: str, holder: str, owner: str, rule: str, window: str, unit: Unit, ends_at: int
    ) -> CounterBook:
        """The book of a counter; a new one is empty."""
        place = (holder, owner, rule, window)
        book = self._counters.get(place)
        if book is None:
            book = CounterBook(self.journal_id, account, holder, owner, rule, window, unit, ends_at)
            self._counters[place] = book
        return book

    @property
    def days(self) -> Iterator[DayBook]:
        """All day books."""
        return iter(self._days.values())

    @property
    def counters(self) -> Iterator[CounterBook]:
        """All quota counters."""
        return iter(self._counters.values())

    def forget(self, book: Book) -> None:
        """Drop a book that nobody asks for any more."""
        self.forgotten += 1
        if isinstance(book, DayBook):
            self._days.pop((book.account, book.key, book.day), None)
        else:
            self._counters.pop((book.holder, book.owner, book.rule, book.window), None)

    def __iter__(self) -> Iterator[Book]:
        yield from self._days.values()
        yield from self._counters.values()
