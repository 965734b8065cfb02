"""Usage records and totals for `/api`: the newest records in memory, totals of all of them per day.

The journals are the truth; this is a view of them that answers without reading a disk. Not thread-safe.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from meter_proxy.ledger.books import FIELDS, DayBook
from meter_proxy.ledger.journal import JournalRecord
from meter_proxy.ledger.totals import DIMENSIONS

MAX_RECENT = 100_000  # the most that /api/records can be asked for; some 70 MB

Row = dict[str, str | int]
# settled_at, tie-breaker, admitted_at, key, JSON. A plain tuple of plain values: unlike structs with
# enum members in them, 100,000 of these are no work for the garbage collector.
Entry = tuple[float, int, float, str, bytes]


class RecentRecords:
    """The newest records, in the order of their settlement."""

    def __init__(self, size: int = MAX_RECENT) -> None:
        self._size = size
        self._heap: list[Entry] = []  # the oldest one on top
        self._serial = 0

    def add(self, record: JournalRecord) -> None:
        """Keep `record`, and let go of the oldest one when there are too many. Any order will do."""
        self._serial += 1
        entry = (record.settled_at, self._serial, record.admitted_at, record.key, msgspec.json.encode(record))
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def newest(self, limit: int, *, key: str | None = None, since: float = 0.0) -> list[bytes]:
        """The newest `limit` as JSON, oldest first; of one `key`, admitted at `since` (Unix seconds) or later."""
        matching = (entry for entry in self._heap if (key is None or entry[3] == key) and entry[2] >= since)
        return [entry[4] for entry in sorted(heapq.nlargest(limit, matching))]

    def __len__(self) -> int:
        return len(self._heap)
