"""A worker's counters on their way to the parent."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from meter_proxy.errors import StoreError
from meter_proxy.ledger import Ledger
from meter_proxy.ledger.messages import Call
from meter_proxy.telemetry.publish import STATS_FILE, SnapshotFile, published, read_snapshot, write_snapshot
from meter_proxy.telemetry.stats import WorkerStats
from meter_proxy.telemetry.timed_store import TimedStore
from meter_proxy.usage import Operation
from tests.support.records import usage_record
from tests.support.waiting import until


async def test_counters_are_published_while_they_change_and_at_the_end(tmp_path: Path) -> None:
    """Within a quarter of a second; the last ones with the end of the block."""
    ledger = Ledger(tmp_path / "w0", None, configured_models=["m1"])
    await ledger.start()
    path = ledger.directory / STATS_FILE
    stats = WorkerStats()
    async with published(stats, ledger):
        stats.refused("alice", "m1", Operation.CHAT, 404)
        await until(lambda: (now := read_snapshot(path)) is not None and now.refused, "the refusal on disk")
        stats.refused("alice", "m9", Operation.CHAT, 404)
    await ledger.stop()
    last = read_snapshot(path)
    assert last is not None
    assert last.refused == [("alice", "m1", "chat", "404", 1), ("alice", "other", "chat", "404", 1)]


async def test_a_refused_model_goes_by_the_label_of_its_records(tmp_path: Path) -> None:
    """Prometheus' label and the books' are one decision."""
    ledger = Ledger(tmp_path / "w0", None)
    await ledger.start()
    stats = WorkerStats()
    async with published(stats, ledger):
        stats.refused("alice", "seen", Operation.CHAT, 413)
        ledger.settle(usage_record(model="seen"))
        stats.refused("alice", "seen", Operation.CHAT, 413)
        assert [entry[1] for entry in stats.snapshot().refused] == ["other", "seen"]
    await ledger.stop()


class Store:
    """Takes a batch after a while, or fails."""

    def __init__(self, *, fails: bool = False) -> None:
        self._fails = fails
        self.closed = False

    async def call(self, batch: Sequence[Call]) -> list[Any | StoreError]:
        """The answer of a store that has lost nothing."""
        await asyncio.sleep(0.01)
        if self._fails:
            raise StoreError("away")
        return [False for _ in batch]

    async def now(self) -> float:
        return 0.0

    async def read_hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        return []

    async def close(self) -> None:
        """Remember it."""
        self.closed = True


MESSAGE = Call([], [])


async def test_the_time_of_a_batch_is_observed() -> None:
    times: list[float] = []
    store = Store()
    timed = TimedStore(store, times.append)
    assert await timed.call([MESSAGE]) == [False]
    assert len(times) == 1
    assert times[0] >= 0.009
    await timed.close()
    assert store.closed


async def test_a_batch_that_was_not_taken_has_no_time() -> None:
    """The failure goes through."""
    times: list[float] = []
    with pytest.raises(StoreError):
        await TimedStore(Store(fails=True), times.append).call([MESSAGE])
    assert times == []


def test_a_snapshot_is_read_again_only_when_it_was_replaced(tmp_path: Path) -> None:
    """An idle worker costs a look at its file; one that writes quickly loses nothing by it."""
    path = tmp_path / STATS_FILE
    file = SnapshotFile(path)
    assert file.read_if_new() is None
    stats = WorkerStats()
    for _ in range(5):
        stats.bad_usage("negative_count")
        write_snapshot(stats, path)
        assert file.read_if_new() == stats.snapshot()
    os.utime(path, (1_000_000_000, 1_000_000_000))
    assert file.read_if_new() is not None
    assert file.read_if_new() is None
    file.remove()
    assert file.read_if_new() is None
