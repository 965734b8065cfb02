"""The parent's view of its workers: follows their journals and their snapshots.

Metrics count what is settled after the feed was made; `/api` shows everything in the journals. All work is
done in slices on the event loop: a thread is out of the question in a process that forks.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from meter_proxy.ledger.journal import decode_record, decode_settled
from meter_proxy.ledger.reading import decoded_by, iter_records, read_texts
from meter_proxy.ledger.tail import RecordTail
from meter_proxy.tasks import slices
from meter_proxy.telemetry.live import Flow, LiveExchange, in_flight
from meter_proxy.telemetry.metrics import Metrics
from meter_proxy.telemetry.publish import STATS_FILE, SnapshotFile
from meter_proxy.telemetry.records import Line, RecentRecords, Total, UsageTotals, rows

POLL_S = 0.2  # records are shown within 0.5 s of their settlement, metrics within 1 s
SLICE = 200  # records before the loop gets its turn: 2 ms
SLICE_BYTES = 262_144  # of each journal, the same: some 400 records
RETRY_S = 2.0  # when the state directory cannot be read

_log = logging.getLogger("meter_proxy.telemetry")


class RecordFeed:
    """Fills `metrics`, and answers for `/api`. Make it before the workers start, while nobody writes."""

    def __init__(self, state_dir: Path, metrics: Metrics, workers: int) -> None:
        """Of the workers `w0` to `w<workers - 1>`. Snapshots that former ones left are removed."""
        self._state_dir = state_dir
        self._flow = Flow()
        self._metrics = metrics
        self._snapshot_files = {
            f"w{index}": SnapshotFile(state_dir / f"w{index}" / STATS_FILE) for index in range(workers)
        }
        for file in self._snapshot_files.values():
            file.remove()
        self._tail = RecordTail(state_dir, max_bytes=SLICE_BYTES)
        self._recent = RecentRecords()
        self._totals = UsageTotals()
        self._caught_up = asyncio.Event()

    async def run(self) -> None:
        """Follow, until cancelled; first catch up with what former processes left."""
        for count, record in enumerate(self._recent.load(self._former_lines()), start=1):
            self._totals.add(record)
            if count % SLICE == 0:
                self.poll()
                await asyncio.sleep(0)
        self._caught_up.set()
        while True:
            pause_s = RETRY_S
            try:
                pause_s = 0.0 if self.poll() else POLL_S
            except OSError as exc:
                _log.error("cannot follow the records, trying on: %s", exc)
            await asyncio.sleep(pause_s)

    def _former_lines(self) -> Iterator[Line]:
        return _records(
            chain.from_iterable(read_texts(journal, until=end) for journal, end in self._tail.began_at.items())
        )

    def poll(self) -> bool:
        """Take in what is new; tells whether something was left for the next time, to hold the loop for 2 ms only."""
        count, keep, total, flow = self._metrics.count, self._recent.add, self._totals.add, self._flow.settled
        now = time.time()
        for record, text in _records(self._tail.new_lines()):
            count(record)
            keep(record, text)
            total(record)
            flow(record, now)
        self._metrics.quotas.expire(now)
        for worker, file in self._snapshot_files.items():
            snapshot = file.read_if_new()
            if snapshot is not None:
                self._metrics.absorb(worker, snapshot)
        return self._tail.is_behind

    def worker_died(self, index: int) -> None:
        """Take in the last that worker `index` had to say. Call it before another one takes its place."""
        with contextlib.suppress(OSError):  # run() says so
            while self.poll():
                pass
        worker = f"w{index}"
        self._metrics.forget(worker)
        self._snapshot_files[worker].remove()

    async def live(self, workers: Iterable[int]) -> tuple[list[LiveExchange], dict[str, float]]:
        """What these workers are serving, oldest first; and the rates of the last seconds: see `live.Flow.rates`."""
        exchanges = await in_flight(self._state_dir / f"w{index}" for index in workers)
        return exchanges, await self._flow.rates(exchanges, time.time())

    async def records(self, limit: int, *, key: str | None = None, since: float = 0.0) -> list[bytes]:
        """The newest `limit` records as JSON, oldest first. See `RecentRecords.newest`."""
        await self._caught_up.wait()
        return await self._recent.newest(limit, key=key, since=since)

    async def usage(self, by: Sequence[str], since: float = 0.0, key: str | None = None) -> list[Total]:
        """Totals by `key`, `model`, `day` or some of them, of what was admitted at `since` (Unix seconds) or later."""
        await self._caught_up.wait()
        if not since:
            return await rows(self._totals.after("", key), by)
        # The day that `since` cuts is counted record by record; the totals of the days after it are known.
        day = datetime.fromtimestamp(since, UTC).date().isoformat()
        cut = UsageTotals()
        lines = await self._recent.since(since)
        records = iter_records(self._state_dir, since=since) if lines is None else map(decode_record, lines)
        async for part in slices(records, SLICE):
            for record in part:
                if record.time.startswith(day):
                    cut.add(record)
        return await rows(chain(self._totals.after(day, key), cut.after("", key)), by)


def _records(lines: Iterable[tuple[Path, int, bytes | None]]) -> Iterator[Line]:
    """The records in these lines, less what is none: that is logged."""
    for path, offset, text in lines:
        record = decoded_by(decode_settled, path, offset, text)
        if record is not None and text is not None:
            yield record, text
