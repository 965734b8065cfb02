"""From journals and snapshots on disk to metrics, records and totals."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from meter_proxy.ledger.books import REQUESTS
from meter_proxy.ledger.journal import Journal, JournalRecord, encode_line
from meter_proxy.ledger.totals import summarise
from meter_proxy.telemetry import feed as feed_module
from meter_proxy.telemetry.feed import RecordFeed
from meter_proxy.telemetry.metrics import Metrics
from meter_proxy.telemetry.publish import STATS_FILE, read_snapshot, write_snapshot
from meter_proxy.telemetry.records import RecentRecords, as_row
from meter_proxy.telemetry.stats import WorkerStats
from meter_proxy.usage import Operation
from tests.support.journals import open_journal
from tests.support.waiting import until
from tests.unit.telemetry.journal_records import journal_record


@pytest.fixture
def metrics() -> Metrics:
    """Fresh ones."""
    return Metrics(version="1", servers={})


def journal(state_dir: Path, worker: int = 0) -> Journal:
    """A new journal of a worker."""
    directory = state_dir / f"w{worker}"
    directory.mkdir(parents=True, exist_ok=True)
    return open_journal(directory)


def settle(into: Journal, *records: JournalRecord) -> None:
    """Write records as a worker does."""
    for record in records:
        into.append(encode_line(record, record.model_label))


@contextlib.asynccontextmanager
async def running(feed: RecordFeed) -> AsyncIterator[None]:
    """The feed at work."""
    task = asyncio.create_task(feed.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_what_was_there_before_is_no_metric_but_is_shown(tmp_path: Path, metrics: Metrics) -> None:
    """Prometheus counts from the start of the process; records and totals reach back."""
    settle(journal(tmp_path, 3), journal_record(id="before"))
    feed = RecordFeed(tmp_path, metrics, workers=2)
    settle(journal(tmp_path, 0), journal_record(id="after", time="2026-03-01T12:00:01.000Z"))
    async with running(feed):
        shown = [msgspec.json.decode(record)["id"] for record in await feed.records(10)]
        ((_, totals),) = await feed.usage(("key",))
    assert shown == ["before", "after"]
    assert totals[REQUESTS] == 2
    assert sum(metrics.requests.values.values()) == 1


@pytest.mark.alone
async def test_records_of_all_workers_appear_soon(tmp_path: Path, metrics: Metrics) -> None:
    """Within half a second of their settlement; in metrics within one."""
    feed = RecordFeed(tmp_path, metrics, workers=2)
    async with running(feed):
        assert await feed.records(10) == []
        for worker in (0, 1):
            settle(journal(tmp_path, worker), journal_record())
        await until(lambda: sum(metrics.requests.values.values()) == 2, "both records in the metrics", within_s=0.5)
        assert len(await feed.records(10)) == 2


async def test_a_long_past_does_not_hold_the_loop(
    tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read in slices; whoever asks meanwhile waits for the whole answer."""
    monkeypatch.setattr(feed_module, "SLICE", 10)
    past = journal(tmp_path)
    settle(past, *(journal_record(id=str(number)) for number in range(100)))
    feed = RecordFeed(tmp_path, metrics, workers=1)
    turns = 0
    async with running(feed):
        asked = asyncio.create_task(feed.usage(("key",)))
        while not asked.done():
            turns += 1
            await asyncio.sleep(0)
        assert (await asked)[0][1][REQUESTS] == 100
    assert turns >= 9


@pytest.mark.parametrize("size", [100, 2], ids=["from memory", "from the journals"])
async def test_usage_since_an_instant_counts_its_day_in_part(
    tmp_path: Path, metrics: Metrics, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly what was admitted since, as the command says, however much is in memory."""
    monkeypatch.setattr(feed_module, "RecentRecords", lambda: RecentRecords(size))
    times = [
        "2026-02-28T12:00:00.000Z",
        "2026-03-01T11:59:59.999Z",
        "2026-03-01T12:00:00.000Z",
        "2026-03-01T23:59:59.999Z",
        "2026-03-02T00:00:00.000Z",
        "2026-03-04T08:00:00.000Z",
    ]
    records = [journal_record(time=time) for time in times]
    settle(journal(tmp_path), *records)
    feed = RecordFeed(tmp_path, metrics, workers=1)
    since = datetime.fromisoformat("2026-03-01T12:00:00+00:00").timestamp()
    async with running(feed):
        rows = [as_row(total, ("day",)) for total in await feed.usage(("day",), since)]
        assert await feed.usage(("day",), since, "nobody") == []
    assert rows == summarise(records, ("day",), since)
    assert [row["requests"] for row in rows] == [2, 1, 1]


async def test_refusals_of_a_killed_worker_stay(tmp_path: Path, metrics: Metrics) -> None:
    """Its last snapshot is taken in before the next worker replaces it, and counts once."""
    feed = RecordFeed(tmp_path, metrics, workers=1)
    (tmp_path / "w0").mkdir()
    path = tmp_path / "w0" / STATS_FILE
    first = WorkerStats()
    first.refused("alice", "m", Operation.CHAT, 404)
    write_snapshot(first, path)
    feed.poll()
    first.refused("alice", "m", Operation.CHAT, 404)
    first.inflight_add("m", 1)
    write_snapshot(first, path)
    feed.worker_died(0)
    assert list(metrics.requests.values.values()) == [2]
    assert list(metrics.inflight.values.values()) == [0]
    feed.poll()
    assert list(metrics.requests.values.values()) == [2]
    second = WorkerStats()
    second.refused("alice", "m", Operation.CHAT, 404)
    write_snapshot(second, path)
    feed.poll()
    assert list(metrics.requests.values.values()) == [3]


async def test_snapshots_of_a_former_run_do_not_count(tmp_path: Path, metrics: Metrics) -> None:
    """Counters begin at 0 with the process."""
    (tmp_path / "w0").mkdir()
    stats = WorkerStats()
    stats.bad_usage("negative_count")
    write_snapshot(stats, tmp_path / "w0" / STATS_FILE)
    feed = RecordFeed(tmp_path, metrics, workers=1)
    feed.poll()
    assert metrics.bad_usage.values == {}


def test_a_snapshot_is_read_as_it_was_written(tmp_path: Path) -> None:
    """And what is not one is none."""
    stats = WorkerStats()
    stats.refused("alice", "m", Operation.CHAT, 404)
    stats.observe_overhead("request", 0.001)
    path = tmp_path / STATS_FILE
    assert read_snapshot(path) is None
    assert write_snapshot(stats, path)
    assert read_snapshot(path) == stats.snapshot()
    path.write_text("{")
    assert read_snapshot(path) is None


def test_a_snapshot_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    """The disk may be full; the traffic goes on."""
    assert not write_snapshot(WorkerStats(), tmp_path / "missing" / STATS_FILE)


def test_the_room_for_the_books_is_that_of_their_disk(tmp_path: Path, metrics: Metrics) -> None:
    """As df tells it: what we may write, not what root may."""
    RecordFeed(tmp_path, metrics, workers=1).poll()
    disk = shutil.disk_usage(tmp_path)
    assert metrics.state_size.values == {(): disk.total}
    assert metrics.state_free.values[()] == pytest.approx(disk.free, rel=0.01)
