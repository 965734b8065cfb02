"""A worker is killed at any moment: what it had settled is billed, once, everywhere."""

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from meter_proxy.errors import CannotStart
from meter_proxy.ledger import Ledger
from meter_proxy.ledger.reading import iter_records
from meter_proxy.ledger.store import Store
from tests.support.records import totals_in_redis, totals_of
from tests.support.servers import StoreServer
from tests.support.waiting import until

ROUNDS = 4


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreServer]:
    """Both engines, empty."""
    start = StoreServer.redis if request.param == "redis" else StoreServer.valkey
    with start(tmp_path / "store") as running:
        yield running


def settle_and_be_killed(state_dir: Path, url: str, prefix: str, lines: int) -> list[str]:
    """Run a settling process, kill it when it has said `lines` ids; return all the ids that it said."""
    command = [sys.executable, "-m", "tests.support.settling", str(state_dir), url, prefix]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(lines)]
        process.kill()
        said += process.stdout.read().split("\n")[:-1]
    return said


async def test_killed_workers_lose_nothing_and_count_nothing_twice(server: StoreServer, tmp_path: Path) -> None:
    """Every record whose settlement returned is in the journals once; after the next start Redis equals them."""
    state_dir = tmp_path / "state"
    chance = random.Random(11)
    said: list[str] = []
    for number in range(ROUNDS):
        said += settle_and_be_killed(state_dir, server.url, f"r{number}-", chance.randint(1, 1500))
    kept = Counter(record.id for record in iter_records(state_dir))
    assert set(said) <= set(kept)
    assert len(kept) <= len(said) + 5 * ROUNDS  # settled, and killed before saying so
    assert set(kept.values()) == {1}
    ledger = Ledger(state_dir / "w0", Store(server.url))
    await ledger.start()
    with server.client() as client:
        expected = totals_of(iter_records(state_dir))
        await until(lambda: totals_in_redis(client) == expected, "Redis equals the records")
        assert totals_in_redis(client, "books") == expected
        await ledger.stop()
        again = Ledger(state_dir / "w0", Store(server.url))
        await again.start()
        await again.stop()
        assert totals_in_redis(client) == expected


async def test_a_torn_last_line_is_not_billed(
    server: StoreServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A write that the kill cut in two is not a record, is logged, and does not stop the next start."""
    state_dir = tmp_path / "state"
    settle_and_be_killed(state_dir, server.url, "r", 20)
    (journal,) = state_dir.glob("w0/journal-*/*.log")
    whole = journal.read_bytes().rstrip(b"\0")
    journal.write_bytes(whole[:-100] + bytes(1_000))
    records = list(iter_records(state_dir))
    assert len(records) == whole.count(b"\n") - 1
    with server.client() as client:
        client.flushall()
        ledger = Ledger(state_dir / "w0", Store(server.url))
        await ledger.start()
        await until(lambda: totals_in_redis(client) == totals_of(records), "Redis equals the whole lines")
        await ledger.stop()
    assert f"{journal}: " in caplog.text
    assert "of a torn line" in caplog.text


async def test_the_directory_of_a_living_worker_is_not_taken(server: StoreServer, tmp_path: Path) -> None:
    """The second process is told the first one's id; a killed one leaves no lock behind."""
    command = [sys.executable, "-m", "tests.support.settling", str(tmp_path / "state"), server.url, "r"]
    ledger = Ledger(tmp_path / "state" / "w0", Store(server.url))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(CannotStart, match=f"in use by process {process.pid};"):
            await ledger.start()
        process.kill()
    await ledger.start()
    await ledger.stop()
