"""Redis of several servers: a real failover of sentinels, a real cluster. The books come out the same."""

import asyncio
import time
from pathlib import Path
from typing import Any, cast

import pytest

from meter_proxy.cli import servers
from meter_proxy.cli.findings import Finding, Level
from meter_proxy.config.load import load_config
from meter_proxy.errors import CannotStart, StoreError
from meter_proxy.ledger import Ledger
from meter_proxy.ledger.audit import audit
from meter_proxy.ledger.cluster import ClusterStore
from meter_proxy.ledger.store import check_store, open_store, parse_url
from meter_proxy.quota.charge import Charge, Unit
from tests.support.config import ENVIRONMENT, basic_config, write_config
from tests.support.many_servers import running_cluster, running_sentinels
from tests.support.records import usage_record
from tests.support.servers import StoreServer
from tests.support.waiting import until

CHARGE = Charge("k", "tokens-total", "total", Unit.TOKENS, 0)


def settle(ledger: Ledger, count: int, *, accounts: int = 1) -> None:
    today = time.strftime("%Y-%m-%dT12:00:00.000Z", time.gmtime())
    for number in range(count):
        name = f"k{number % accounts}"
        ledger.settle(usage_record(time=today, key=name, account=name), charges=(CHARGE,))


async def differences(directory: Path, url: str) -> list[object]:
    store = open_store(url)
    try:
        result = await audit(directory, store, now=time.time(), retention_s=400 * 86_400, accounts={})
    finally:
        await store.close()
    return list(result.differences)


async def test_a_failover_loses_nothing(tmp_path: Path) -> None:
    """The primary is killed with writes that its replica has not; the new one gets everything again."""
    with running_sentinels(tmp_path / "servers") as servers:
        await check_store(servers.url)
        ledger = Ledger(tmp_path / "state" / "w0", open_store(servers.url))
        await ledger.start()
        settle(ledger, 50, accounts=5)
        await until(lambda: ledger.unsynced == 0, "the primary has it")
        servers.replica.pause()  # what comes now does not reach it ...
        with servers.primary.client() as client:
            cast(Any, client).execute_command("CLIENT KILL TYPE replica")  # ... also not by the kernel's buffers
        settle(ledger, 50, accounts=5)
        await until(lambda: ledger.unsynced == 0, "the primary has it")
        servers.primary.kill()
        servers.replica.resume()
        settle(ledger, 50, accounts=5)
        await until(lambda: not ledger.store_up, "the primary is missed")
        await until(lambda: ledger.store_up and ledger.unsynced == 0, "the new primary has it", within_s=20)

        async def same() -> bool:
            return await differences(tmp_path / "state", servers.url) == []

        deadline = time.monotonic() + 10
        while not await same():
            assert time.monotonic() < deadline, await differences(tmp_path / "state", servers.url)
            await asyncio.sleep(0.2)
        assert ledger.regressions >= 1
        await ledger.stop()


async def test_a_cluster_holds_each_account_whole(tmp_path: Path) -> None:
    """Accounts are spread over the servers; each one's hashes are together, and the sums are right."""
    with running_cluster(tmp_path / "servers") as cluster:
        await check_store(cluster.url)
        ledger = Ledger(tmp_path / "state" / "w0", open_store(cluster.url))
        await ledger.start()
        settle(ledger, 300, accounts=30)
        await until(lambda: ledger.unsynced == 0, "the cluster has it")
        used = cluster.hashes("mp:*:quota:*")
        assert len(used) == 30
        assert {one["used"] for one in used.values()} == {"150"}
        per_node = [sum(1 for _ in node.client().scan_iter("mp:*:quota:*")) for node in cluster.nodes]
        assert all(per_node)
        assert await differences(tmp_path / "state", cluster.url) == []
        await ledger.stop()


async def test_a_server_of_a_cluster_that_is_away_costs_its_own_accounts_only(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "servers") as cluster:
        ledger = Ledger(tmp_path / "state" / "w0", open_store(cluster.url))
        await ledger.start()
        settle(ledger, 30, accounts=30)
        await until(lambda: ledger.unsynced == 0, "the cluster has it")
        cluster.nodes[1].kill()
        settle(ledger, 30, accounts=30)
        await until(lambda: 0 < ledger.unsynced < 20, "the others have theirs")
        assert ledger.store_up
        cluster.nodes[1].start()
        await until(lambda: ledger.unsynced == 0, "it has its own, too", within_s=20)
        assert await differences(tmp_path / "state", cluster.url) == []
        await ledger.stop()


async def test_what_is_no_cluster_and_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="cannot reach"):
        await check_store("redis+cluster://127.0.0.1:9")
    with pytest.raises(CannotStart, match=r"sentinels at 127\.0\.0\.1:9"):
        await check_store("redis+sentinel://127.0.0.1:9/mymaster")


def test_urls_of_several_servers_are_taken_apart() -> None:
    """Credentials, ports, the primary's name; a password is shown nowhere."""
    url = parse_url("rediss+sentinel://user:s%40crt@h1:1,h2/mymaster/3?sentinel_password=hidden")
    assert url is not None
    assert (url.tls, url.hosts, url.path) == (True, (("h1", 1), ("h2", 26379)), ("mymaster", "3"))
    cluster = open_store("redis+cluster://:s3cret@h1:1,h2:2")
    assert isinstance(cluster, ClusterStore)
    assert "s3cret" not in repr(cluster) + cluster.address
    for wrong in ("redis+sentinel://h", "redis+cluster://h/3"):
        with pytest.raises(StoreError):
            open_store(wrong)


def holds(node: StoreServer, key: str) -> bool:
    with node.client() as client:
        return key in [str(name) for name in client.scan_iter()]


async def test_where_the_server_that_knows_our_journal_is_away_the_others_are_not(tmp_path: Path) -> None:
    """How far the journal had come stands on one of them: that it cannot be asked is no outage, not even at a start."""
    with running_cluster(tmp_path / "servers") as cluster:
        ledger = Ledger(tmp_path / "state" / "w0", open_store(cluster.url))
        await ledger.start()
        await ledger.stop()
        (place,) = cluster.hashes("mp:*:journal")
        (node,) = [node for node in cluster.nodes if holds(node, place)]
        node.kill()
        again = Ledger(tmp_path / "state" / "w0", open_store(cluster.url))
        await again.start()
        assert again.store_up
        for _ in range(25):  # two looks of an idle worker
            await asyncio.sleep(0.1)
            assert again.store_up
        await again.stop()


async def test_doctor_looks_at_sentinels(tmp_path: Path) -> None:
    """The primary of the moment, and its clock; that nobody can say who it is hurts."""
    with running_sentinels(tmp_path / "servers") as running:
        store, clock = await doctors_findings(tmp_path, running.url)
        assert (store.level, clock.level) == (Level.GOOD, Level.GOOD)
        assert store.message.startswith("Redis ")
        for sentinel in running.sentinels:
            sentinel.kill()
        (found,) = await doctors_findings(tmp_path, running.url)
        assert found.level is Level.BAD
        assert "entinel" in found.message


async def test_doctor_looks_at_every_server_of_a_cluster(tmp_path: Path) -> None:
    """What they are, and how many; the one that is away is named."""
    with running_cluster(tmp_path / "servers") as cluster:
        store, clock = await doctors_findings(tmp_path, cluster.url)
        assert (store.level, clock.level) == (Level.GOOD, Level.GOOD)
        assert store.message.startswith("Redis ")
        assert " on 3 servers, maxmemory-policy noeviction, " in store.message
        cluster.nodes[1].kill()
        (found,) = await doctors_findings(tmp_path, cluster.url)
        assert (found.level, str(cluster.nodes[1].port) in found.message) == (Level.BAD, True)


async def doctors_findings(directory: Path, url: str) -> list[Finding]:
    """What `doctor` says of a store."""
    path = write_config(directory, basic_config("http://127.0.0.1:9/v1", directory, redis={"url": url}))
    return await servers.store(load_config(path, ENVIRONMENT))
