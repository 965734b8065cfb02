"""Usage records and totals as `/api` shows them: the newest records, and totals per key, model and day of all.

A view of the journals that is kept in memory, so that a page which asks every second costs no disk.
"""

import heapq
from bisect import insort
from collections.abc import Iterable, Iterator, Sequence

from meter_proxy.ledger.books import FIELDS
from meter_proxy.ledger.journal import SettledRecord, without_charges
from meter_proxy.ledger.totals import DIMENSIONS
from meter_proxy.tasks import slices, sort

MAX_RECENT = 100_000  # the most that /api/records can be asked for; some 70 MB
SCANNED = 5_000  # records, the same
SLICE = 500  # totals before the loop gets its turn: 1 ms
SLACK = 1_000  # dropping the oldest one by one would move the whole list each time

COLUMNS = tuple(DIMENSIONS)
DAY = COLUMNS.index("day")
Amounts = tuple[int, int, int, int, int, int]  # in the order of FIELDS
NOTHING: Amounts = (0, 0, 0, 0, 0, 0)

Line = tuple[SettledRecord, bytes]  # a record, and its JSON in the journal
Row = dict[str, str | int]
Group = tuple[str, ...]  # values of some columns; of all, in the order of COLUMNS
Total = tuple[Group, Amounts]  # what was used by it
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

    async def newest(self, limit: int, *, key: str | None = None, since: float = 0.0) -> list[bytes]:
        """The newest `limit` as JSON, oldest first; of `key` only, admitted at `since` (Unix seconds) or later."""
        found: list[bytes] = []
        async for part in slices(reversed(self._entries.copy()), SCANNED):
            found += [
                line
                for _, _, admitted_at, of_key, line in part
                if admitted_at >= since and (key is None or of_key == key)
            ]
            if len(found) >= limit or part[-1][0] < since:  # nothing is settled before it is admitted
                break
        return found[:limit][::-1]

    async def since(self, since: float) -> list[bytes] | None:
        """All records admitted at `since` or later, as JSON; None when they go back further than what is kept."""
        if not self.whole and (not self._entries or self._entries[0][0] >= since):
            return None
        return await self.newest(len(self._entries), since=since)

    def __len__(self) -> int:
        return min(len(self._entries), self._size)


class UsageTotals:
    """Totals per key, model label and UTC day of admission."""

    def __init__(self) -> None:
        # day -> key -> label -> totals. Plain values all through: a million of these are no work for the collector.
        self._days: dict[str, dict[str, dict[str, Amounts]]] = {}

    def add(self, record: SettledRecord) -> None:
        """Count one record."""
        keys = self._days.setdefault(record.time[:10], {})
        labels = keys.get(record.key)
        if labels is None:
            labels = keys[record.key] = {}
        label = record.model_label
        requests, inputs, outputs, cached, reasoning, cost = labels.get(label, NOTHING)
        labels[label] = (
            requests + 1,
            inputs + record.input_tokens,
            outputs + record.output_tokens,
            cached + (record.cached_input_tokens or 0),
            reasoning + (record.reasoning_tokens or 0),
            cost + record.cost_nano_usd,
        )

    def after(self, day: str, key: str | None = None) -> Iterator[Total]:
        """What was used on the days after `day` (`2026-01-31`; the empty text: on all days); by `key` only.

        Records may be added while it is read: they are in it or not.
        """
        for date in [date for date in self._days if date > day]:
            keys = self._days[date]
            for name in list(keys) if key is None else [key]:
                for label, amounts in list(keys.get(name, {}).items()):
                    yield (name, label, date), amounts


async def rows(used: Iterable[Total], by: Sequence[str]) -> list[Total]:
    """Sum up by the columns `by`, in slices. `used` comes day by day. Sorted by the values of the columns."""
    columns = [COLUMNS.index(name) for name in by]
    found: list[Total] = []
    sums: dict[Group, Amounts] = {}
    day = ""  # of the sums, where they are by day: a dict of all would be long in growing
    async for part in slices(used, SLICE):
        for group, amounts in part:
            if group[DAY] != day and DAY in columns:
                found.extend(sums.items())
                day, sums = group[DAY], {}
            place = tuple([group[column] for column in columns])
            known = sums.get(place)
            sums[place] = amounts if known is None else _sum(known, amounts)
    found.extend(sums.items())
    return await sort(found)


def _sum(one: Amounts, other: Amounts) -> Amounts:
    a, b, c, d, e, f = one
    g, h, i, j, k, m = other
    return a + g, b + h, c + i, d + j, e + k, f + m


def as_row(total: Total, by: Sequence[str]) -> Row:
    """A total with the columns `by` and `books.FIELDS`."""
    group, amounts = total
    return dict(zip((*by, *FIELDS), (*group, *amounts), strict=True))
