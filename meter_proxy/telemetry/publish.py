"""From a worker's counters to the process that serves `/metrics`: one small file per worker.

The worker replaces `state_dir/w<N>/stats.json` whole, so a reader sees the old one or the new one. What a
worker had counted since its last snapshot (at most 0.25 s) dies with it when it is killed; no figure of an
admitted exchange is in there.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from meter_proxy.ledger import Ledger
from meter_proxy.tasks import spawn
from meter_proxy.telemetry.stats import Snapshot, WorkerStats

STATS_FILE = "stats.json"
TICK_NS = 50_000_000  # of a file system's clock, with plenty to spare
PUBLISH_S = 0.25  # together with the reader's 0.2 s well within the second that /metrics may lag

_log = logging.getLogger("meter_proxy.telemetry")


@contextlib.asynccontextmanager
async def published(stats: WorkerStats, ledger: Ledger) -> AsyncIterator[None]:
    """Within this block, `stats` and the state of `ledger` (started) are published in the ledger's directory."""
    stats.watch(ledger, ledger.labels.label)
    path = ledger.directory / STATS_FILE
    publishing = spawn(_publish(stats, path), name="publish stats")
    try:
        yield
    finally:
        publishing.cancel()
        write_snapshot(stats, path)


async def _publish(stats: WorkerStats, path: Path) -> None:
    last = None
    while True:
        snapshot = stats.snapshot()
        if snapshot != last and _write(snapshot, path):
            last = snapshot
        await asyncio.sleep(PUBLISH_S)


def write_snapshot(stats: WorkerStats, path: Path) -> bool:
    """Replace the file at `path`; False, and a line in the log, if that cannot be done now."""
    return _write(stats.snapshot(), path)


def _write(snapshot: Snapshot, path: Path) -> bool:
    scratch = path.with_suffix(".new")
    try:
        scratch.write_bytes(msgspec.json.encode(snapshot))
        scratch.replace(path)
    except OSError as exc:
        _log.warning("cannot write to %s: %s", path, exc.strerror)
        return False
    return True


def read_snapshot(path: Path) -> Snapshot | None:
    """What stands in the file at `path`; None when there is none, or it is not ours."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Snapshot)
    except (OSError, ValueError):
        return None


class SnapshotFile:
    """A worker's file as the parent follows it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None  # of what was read last: inode, time, size

    def read_if_new(self) -> Snapshot | None:
        """What stands in it, if it was replaced since the last call."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        if version == self._version:
            return None
        # Within one tick of the file system's clock the next one may look the same.
        is_settled = time.time_ns() - status.st_mtime_ns > TICK_NS
        self._version = version if is_settled else None
        return read_snapshot(self._path)

    def remove(self) -> None:
        """The worker is gone."""
        self._path.unlink(missing_ok=True)
        self._version = None
