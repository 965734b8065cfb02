"""Absolute totals of one journal: per account, key, UTC day of admission and model; and per quota counter.

Totals only grow. They are a pure function of the journal's lines: replaying it gives the same books.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from meter_proxy.quota.charge import KEY_HOLDER, Charge, Unit, amount
from meter_proxy.usage import UsageRecord

# The order of every list of totals, and the names of the fields in Redis.
FIELDS = ("requests", "input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "cost_nano_usd")
REQUESTS = 0  # grows with every record: it tells whether the other totals are older or newer


class DayBook:
    """One account's key on one day: totals per model label, and how much of them Redis has acknowledged."""

    __slots__ = ("account", "acked_requests", "day", "journal_id", "key", "totals")

    def __init__(self, journal_id: str, account: str, key: str, day: str) -> None:
        self.journal_id = journal_id
        self.account = account
        self.key = key
        self.day = day  # YYYYMMDD, UTC
        self.totals: dict[str, list[int]] = {}  # label -> totals in the order of FIELDS
        self.acked_requests: dict[str, int] = {}  # label -> its `requests` at the last acknowledged sync

    def add(self, record: UsageRecord, label: str) -> None:
        """Count one exchange. A count that was not reported adds nothing."""
        totals = self.totals.get(label)
        if totals is None:
            totals = self.totals[label] = [0] * len(FIELDS)
        totals[REQUESTS] += 1
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
        "ends_at",
        "holder",
        "journal_id",
        "live",
        "owner",
        "rule",
        "unit",
        "used",
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
        self.ends_at = ends_at  # Unix seconds; 0: never
        self.used = 0
        self.acked_used = -1  # by Redis; -1: it was never told
        self.live: Any = None  # what is open in it: `counters.Counter`

    def __repr__(self) -> str:
        whose = f"{self.holder}:{self.owner}"
        return (
            f"<CounterBook {self.account} {whose} {self.rule} {self.window} used={self.used} acked={self.acked_used}>"
        )


Book = DayBook | CounterBook


class Books:
    """All books of one journal."""

    def __init__(self, journal_id: str) -> None:
        self.journal_id = journal_id
        self._days: dict[tuple[str, str, str], DayBook] = {}
        self._counters: dict[tuple[str, str, str, str], CounterBook] = {}

    def add(self, record: UsageRecord, label: str, charges: Sequence[Charge] = ()) -> list[Book]:
        """Count one exchange under the day and in the windows of its admission; return the books that changed."""
        time = record.time
        day = self.day(record.account, record.key, time[:4] + time[5:7] + time[8:10])
        day.add(record, label)
        changed: list[Book] = [day]
        for charge in charges:
            counter = self.counter_of(record, charge)
            counter.used += amount(charge.unit, record)
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
        if isinstance(book, DayBook):
            self._days.pop((book.account, book.key, book.day), None)
        else:
            self._counters.pop((book.holder, book.owner, book.rule, book.window), None)

    def __iter__(self) -> Iterator[Book]:
        yield from self._days.values()
        yield from self._counters.values()
