"""Usage of days out of a real Redis and Valkey: everything that is there, of whoever, and nothing else."""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.exceptions import MovedError

from meter_proxy.errors import StoreError
from meter_proxy.ledger import days
from meter_proxy.ledger.books import FIELDS
from meter_proxy.ledger.days import BATCH, DayTotal, Place, totals_of_days
from meter_proxy.ledger.store import SCANNED, Store, open_store
from tests.support import answers
from tests.support.config import KEY
from tests.support.harms import Streams
from tests.support.inprocess import in_process_proxy
from tests.support.many_servers import running_cluster
from tests.support.servers import StoreServer
from tests.support.upstream import ScriptedUpstream

FIRST, LAST = date(2026, 1, 30), date(2026, 2, 2)
ODD = 'a "model"|of\nnobody\x00 \\ é 中'  # callers choose names


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    """Both engines, one of each for the module."""
    start = StoreServer.redis if request.param == "redis" else StoreServer.valkey
    with start(tmp_path_factory.mktemp("store")) as running:
        yield running


def usage(model: str, *amounts: int) -> dict[str, str]:
    return {f"{model}|{field}": str(amount) for field, amount in zip(FIELDS, amounts, strict=True)}


async def read(store: Any, **more: Any) -> list[DayTotal]:
    return sorted([total async for total in totals_of_days(store, FIRST, LAST, **more)])


async def test_what_is_in_redis_on_these_days_is_told(server: StoreServer) -> None:
    """Also of keys that nobody knows any more; names that are not ours, and amounts that are none, are passed over."""
    with server.client() as client:
        client.flushall()
        client.hset(
            "mp:{acme}:usage:alice:20260130", mapping=usage("m", 1, 2, 3, 4, 5, 6) | usage(ODD, 1, 0, 0, 0, 0, 0)
        )
        client.hset("mp:{gone}:usage:gone-too:20260202", mapping=usage("m", 9, 9, 9, 9, 9, 9))
        for name in ("mp:{acme}:usage:alice:20260129", "mp:{acme}:usage:alice:20260203"):
            client.hset(name, mapping=usage("m", 7, 7, 7, 7, 7, 7))
        client.hset("mp:{acme}:books:alice:20260130", mapping=usage("m", 7, 7, 7, 7, 7, 7))
        client.hset("mp:{x}:usage:x:2026-no-day", mapping=usage("m", 7, 7, 7, 7, 7, 7))
        client.hset("mp:{acme}:usage:bob:20260131", mapping={"m|requests": "2", "m|input_tokens": "many", "m|x": "1"})
        client.hset("mp:{acme}:usage:empty:20260131", "m|requests", "1")
        client.hdel("mp:{acme}:usage:empty:20260131", "m|requests")
    store = Store(server.url)
    try:
        assert await read(store) == [
            DayTotal("acme", "alice", FIRST, ODD, [1, 0, 0, 0, 0, 0]),
            DayTotal("acme", "alice", FIRST, "m", [1, 2, 3, 4, 5, 6]),
            DayTotal("acme", "bob", date(2026, 1, 31), "m", [2, 0, 0, 0, 0, 0]),
            DayTotal("gone", "gone-too", LAST, "m", [9, 9, 9, 9, 9, 9]),
        ]
        wanted = await read(store, wanted=lambda place: place == Place("acme", "bob", date(2026, 1, 31)))
        assert [total.key for total in wanted] == ["bob"]
        assert await store.read_hashes(["mp:{acme}:usage:nobody:20260131"]) == [{}]
        assert await store.read_hashes([]) == []
    finally:
        await store.close()


async def test_many_keys_are_read_in_slices(server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, though a scan may name it twice."""
    monkeypatch.setattr(days, "PAUSE_S", 0.0)
    count = 3 * SCANNED
    with server.client() as client:
        client.flushall()
        pipeline = client.pipeline(transaction=False)
        for number in range(count):
            pipeline.hset(f"mp:{{a{number}}}:usage:k{number}:20260201", mapping=usage("m", 1, number, 0, 0, 0, 0))
        pipeline.execute()
    store = Store(server.url)
    read_hashes, sizes = store.read_hashes, []

    async def noted(keys: Any) -> list[dict[str, str]]:
        sizes.append(len(keys))
        return await read_hashes(keys)

    monkeypatch.setattr(store, "read_hashes", noted)
    try:
        found = await read(store)
    finally:
        await store.close()
    assert sorted(total.totals[1] for total in found) == list(range(count))
    assert max(sizes) == BATCH and sum(sizes) == count


async def test_a_cluster_is_read_whole(tmp_path: Path) -> None:
    """Each server has some of the accounts."""
    with running_cluster(tmp_path) as cluster:
        written = [
            write_where_it_lives(cluster.nodes, f"mp:{{a{number}}}:usage:k{number}:20260201") for number in range(30)
        ]
        assert len(set(written)) == len(cluster.nodes)
        store = open_store(cluster.url)
        try:
            assert len(await read(store)) == 30
        finally:
            await store.close()


def write_where_it_lives(nodes: Sequence[StoreServer], name: str) -> int:
    """Write a day into the server of a cluster that takes it; which one."""
    for number, node in enumerate(nodes):
        with node.client() as client, contextlib.suppress(MovedError):
            client.hset(name, mapping=usage("m", 1, 0, 0, 0, 0, 0))
            return number
    raise AssertionError(f"no server takes {name}")


async def test_while_redis_is_away_reports_say_so(tmp_path: Path) -> None:
    """503 and when to try again; what rests on a rule is told from what this worker knows."""
    with StoreServer.valkey(tmp_path / "store") as server:
        async with ScriptedUpstream(Streams(answers.chat_stream("x"))) as upstream:
            rules = [{"name": "budget", "cost_usd": 5, "per": "month"}]
            members: dict[str, Any] = {
                "admin_token": "s3cret-admin-token",
                "redis": {"when_down": "open"},
                "models": {"m": {"upstream": "local", "price": {"input": 1, "output": 1}}},
                "keys": [{"id": "alice", "secret": {"env": "ALICE_KEY"}, "quotas": rules}],
            }
            async with in_process_proxy(upstream.url, tmp_path, server.url, **members) as proxy:
                server.kill()
                async with aiohttp.ClientSession() as session:

                    async def ask(path: str, token: str) -> aiohttp.ClientResponse:
                        headers = {"Authorization": f"Bearer {token}"}
                        async with session.get(proxy.url + path, headers=headers) as response:
                            await response.read()
                            return response

                    answer = await ask("/organization/costs?start_time=1769731200", "s3cret-admin-token")
                    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
                    answer = await ask("/dashboard/billing/usage", KEY)
                    assert (answer.status, await answer.json()) == (200, {"object": "list", "total_usage": 0.0})
    store = Store(server.url)
    with pytest.raises(StoreError):
        await read(store)
    await store.close()


async def test_without_an_admin_token_nobody_is_the_admin(tmp_path: Path, shared_store: str) -> None:
    """Not even who sends an empty one."""
    async with (
        ScriptedUpstream(Streams(answers.chat_stream("x"))) as upstream,
        in_process_proxy(upstream.url, tmp_path, shared_store) as proxy,
        aiohttp.ClientSession() as session,
    ):
        for value in ("Bearer", "Bearer ", "Bearer x", "Basic x"):
            headers = {"Authorization": value}
            async with session.get(f"{proxy.url}/organization/costs?start_time=0", headers=headers) as response:
                assert response.status == 401
                assert "admin_token" in (await response.json())["error"]["message"]
