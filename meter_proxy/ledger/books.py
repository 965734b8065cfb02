"""Absolute totals per account, key, UTC day of admission and model, of one journal.

Totals only grow. They are a pure function of the journal's lines: replaying it gives the same books.
"""

from collections.abc import Iterator

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


class Books:
    """All day books of one journal."""

    def __init__(self, journal_id: str) -> None:
        self.journal_id = journal_id
        self._days: dict[tuple[str, str, str], DayBook] = {}

    def add(self, record: UsageRecord, label: str) -> DayBook:
        """Count one exchange under the day of its admission, and return the book that changed."""
        key = (record.account, record.key, record.time[:10])
        book = self._days.get(key)
        if book is None:
            day = record.time[:10].replace("-", "")
            book = self._days[key] = DayBook(self.journal_id, record.account, record.key, day)
        book.add(record, label)
        return book

    def __iter__(self) -> Iterator[DayBook]:
        return iter(self._days.values())
