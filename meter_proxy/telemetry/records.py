"""Usage records and totals as `/api` shows them: the newest records, and totals per key, model and day of all.

A view of the journals that is kept in memory, so that a page which asks every second costs no disk.
"""

import heapq
from bisect import insort
from collections.abc import Iterable, Iterator, Sequence

from meter_proxy.ledger.books import FIELDS, DayBook
from meter_proxy.ledger.journal import JournalRecord, SettledRecord, decode_record, without_charges
from meter_proxy.ledger.totals import DIMENSIONS
from meter_proxy.tasks import slices, sort

MAX_RECENT = 100_000  # the most that /api/records can be asked for; some 70 MB
SLICE = 500  # totals before the loop gets its turn: 1 ms
SLACK = 1_000  # dropping the oldest one by one would move the whole list each time

COLUMNS = tuple(DIMENSIONS)
NOTHING = [0] * len(FIELDS)

Line = tuple[SettledRecord, bytes]  # a record, and its JSON in the journal
Row = dict[str, str | int]
Group = tuple[str, ...]  # values of some columns; of all, in the order of COLUMNS
Total = tuple[Group, list[int]]  # what was used by it, in the order of FIELDS
# settled_at, serial (breaks ties), admitted_at, key, JSON. A plain tuple of plain values: unlike a struct
# with enum members in it, 100,000 of these are no work for the garbage collector.
Entry = tuple[float, int, float, str, bytes]


class RecentRecords:
    """The newest `size` records in the order of their settlement; `whole` while that is all there are."""

    def __init__(self, size: int = MAX_RECENT) -> None:
        self.whole = True
        self._size = size
        self._entries: list[Entry] = []
        self._serial = 0

    def add(self, record: SettledRecord, text: bytes) -> None:
        """Keep a record that was settled lately; `text` is its JSON in the journal."""
        entry, entries = self._entry(record, text), self._entries
        if entries and entry < entries[-1]:
            insort(entries, entry)
        else:  # the plain case
            entries.append(entry)
            if len(entries) > self._size + SLACK:
                self._drop_oldest()

    def load(self, lines: Iterable[Line]) -> Iterator[SettledRecord]:
        """Keep the newest of `lines`, which may come in any order; yields each when it was looked at.

        They are kept when the iteration ends.
        """
        newest: list[Entry] = []
        for record, text in lines:
            entry = self._entry(record, text)
            if len(newest) < self._size:
                heapq.heappush(newest, entry)
            else:
                heapq.heappushpop(newest, entry)
                self.whole = False
            yield record
        self._entries = sorted(newest + self._entries)  # 100,000: 20 ms, once
        self._drop_oldest()

    def _entry(self, record: SettledRecord, text: bytes) -> Entry:
        self._serial += 1
        admitted_at = record.admitted_at
        settled_at = admitted_at + record.duration_ms / 1000
        return (settled_at, self._serial, admitted_at, record.key, without_charges(text))

    def _drop_oldest(self) -> None:
        if len(self._entries) > self._size:
            self.whole = False
            del self._entries[: -self._size]

    def newest(self, limit: int, *, key: str | None = None, since: float = 0.0) -> list[bytes]:
        """The newest `limit` as JSON, oldest first; of `key` only, admitted at `since` (Unix seconds) or later."""
        found: list[bytes] = []
        for settled_at, _, admitted_at, of_key, line in reversed(self._entries):
            if settled_at < since or len(found) == limit:
                break
            if admitted_at >= since and (key is None or of_key == key):
                found.append(line)
        return found[::-1]

    def since(self, since: float) -> Iterator[JournalRecord] | None:
        """All records admitted at `since` or later; None when they go back further than what is kept."""
        if not self.whole and (not self._entries or self._entries[0][0] >= since):
            return None
        return map(decode_record, self.newest(len(self._entries), since=since))

    def __len__(self) -> int:
        return min(len(self._entries), self._size)


class UsageTotals:
    """Totals per key, model label and UTC day of admission."""

    def __init__(self) -> None:
        self._days: dict[str, dict[str, DayBook]] = {}  # day -> key -> its book

    def add(self, record: SettledRecord) -> None:
        """Count one record."""
        day, key = record.time[:10], record.key
        books = self._days.setdefault(day, {})
        book = books.get(key)
        if book is None:
            book = books[key] = DayBook("", "", key, day)
        book.add(record, record.model_label)

    def after(self, day: str, key: str | None = None) -> Iterator[tuple[Group, list[int]]]:
        """What was used on the days after `day` (`2026-01-31`; the empty text: on all days); by `key` only.

        Records may be added while it is read: they are in it or not.
        """
        for date in [date for date in self._days if date > day]:
            books = self._days[date]
            for book in list(books.values()) if key is None else filter(None, [books.get(key)]):
                for label, totals in list(book.totals.items()):
                    yield (book.key, label, date), totals


async def rows(used: Iterable[tuple[Group, list[int]]], by: Sequence[str]) -> list[Total]:
    """Sum up by the columns `by`, in slices. Sorted by their values."""
    columns = [COLUMNS.index(name) for name in by]
    sums: dict[Group, list[int]] = {}
    async for part in slices(used, SLICE):
        for group, totals in part:
            place = tuple([group[column] for column in columns])
            sums[place] = [one + other for one, other in zip(sums.get(place, NOTHING), totals, strict=True)]
    return await sort(sums.items())


def as_row(total: Total, by: Sequence[str]) -> Row:
    """A total with the columns `by` and `books.FIELDS`."""
    group, totals = total
    return dict(zip((*by, *FIELDS), (*group, *totals), strict=True))
