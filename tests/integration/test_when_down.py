"""Redis is away: what limited keys may do, and that every token arrives afterwards, once."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from meter_proxy.usage import Outcome
from tests.integration.test_quotas import ASK, CHAT, KEY, contents, limited
from tests.support import answers
from tests.support.harms import Streams
from tests.support.httpraw import RawClient
from tests.support.inprocess import InProcessProxy, in_process_proxy
from tests.support.servers import StoreServer
from tests.support.upstream import ScriptedUpstream, UpstreamExchange
from tests.support.waiting import until

EVENTS = answers.chat_stream(*["x"] * 20, output_tokens=20)


@asynccontextmanager
async def proxy_on(
    server: StoreServer, directory: Path, script: Any, when_down: str, *rules: dict[str, Any], **redis: Any
) -> AsyncIterator[InProcessProxy]:
    async with ScriptedUpstream(script) as upstream:
        members = limited(*(rules or ({"tokens": 100_000, "per": "day"},)))
        members["redis"] = {"when_down": when_down, **redis}
        members["upstreams"] = {"local": {"base_url": upstream.url, "running_usage": "off"}}
        async with in_process_proxy(upstream.url, directory, server.url, **members) as proxy:
            yield proxy


async def ask(proxy: InProcessProxy) -> tuple[int, bytes, dict[str, str]]:
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        return response.status, await response.read(), dict(response.headers)


def counters(server: StoreServer) -> tuple[int, int]:
    """Used and reserved, summed over the quota hashes."""
    with Redis.from_url(server.url, decode_responses=True) as client:
        hashes = [client.hgetall(name) for name in client.scan_iter("mp:*:quota:*")]
    return sum(int(one.get("used", 0)) for one in hashes), sum(int(one.get("reserved", 0)) for one in hashes)


async def away(proxy: InProcessProxy) -> None:
    await until(lambda: not proxy.gateway.ledger.store_up, "Redis is known to be away")


async def test_closed_refuses_and_says_when_to_come_back(tmp_path: Path) -> None:
    with StoreServer.redis(tmp_path) as server:
        async with proxy_on(server, tmp_path, Streams(EVENTS), "closed") as proxy:
            assert (await ask(proxy))[0] == 200
            server.kill()
            await away(proxy)
            status, body, headers = await ask(proxy)
            assert status == 503
            assert b"metering_unavailable" in body
            assert int(headers["retry-after"]) > 0
            async with await RawClient.connect(proxy.url) as client:
                assert (await client.request("GET", "/readyz")).status == 503


async def test_open_lets_everything_pass_and_bills_it_afterwards(tmp_path: Path) -> None:
    """Nobody waits; when Redis is back it has every token, once."""
    with StoreServer.redis(tmp_path) as server:
        async with proxy_on(server, tmp_path, Streams(EVENTS), "open", {"requests": 3, "per": "day"}) as proxy:
            server.kill()
            await away(proxy)
            for _ in range(5):
                assert (await ask(proxy))[0] == 200
            server.start()
            await until(lambda: proxy.gateway.ledger.unsynced == 0 and proxy.gateway.ledger.store_up, "Redis is back")
            await until(lambda: counters(server) == (5, 0), "the books are in Redis")
            assert (await ask(proxy))[0] == 429


async def test_bounded_gives_each_key_an_allowance(tmp_path: Path) -> None:
    """22 tokens an exchange, 50 allowed: two pass, the third is cut, the fourth is refused."""
    with StoreServer.redis(tmp_path) as server:
        async with proxy_on(server, tmp_path, Streams(EVENTS), "bounded", bounded_tokens=50) as proxy:
            server.kill()
            await away(proxy)
            answered = [await ask(proxy) for _ in range(4)]
            assert [status for status, _, _ in answered[:2]] == [200, 200]
            assert 503 in [status for status, _, _ in answered]
            server.start()
            await until(lambda: proxy.gateway.ledger.store_up, "Redis is back")
            await until(lambda: counters(server)[1] == 0, "nothing is held")
            assert counters(server)[0] == sum(r.input_tokens + r.output_tokens for r in proxy.records)
            assert (await ask(proxy))[0] == 200


async def test_a_rule_may_differ_from_the_rest(tmp_path: Path) -> None:
    """The strictest rule of an exchange decides."""
    with StoreServer.redis(tmp_path) as server:
        rules = ({"requests": 100, "per": "day"}, {"tokens": 1000, "per": "day", "when_down": "closed"})
        async with proxy_on(server, tmp_path, Streams(EVENTS), "open", *rules) as proxy:
            server.kill()
            await away(proxy)
            assert (await ask(proxy))[0] == 503


@pytest.mark.alone
@pytest.mark.parametrize(("when_down", "delivered"), [("closed", 512), ("open", 600)])
async def test_a_stream_at_the_wall_waits_a_quarter_of_a_second(tmp_path: Path, when_down: str, delivered: int) -> None:
    """Redis freezes while it flows: then the policy decides, as at the beginning."""
    events = answers.chat_stream(*["x"] * 600, output_tokens=600)
    frozen = asyncio.Event()

    async def script(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await exchange.send_event(*events[:50])
        await frozen.wait()
        await exchange.send_event(*events[50:])
        await exchange.end()

    with StoreServer.redis(tmp_path) as server:
        async with proxy_on(server, tmp_path, script, when_down) as proxy:
            async with await RawClient.connect(proxy.url) as client:
                response = await client.request("POST", CHAT, ASK, key=KEY)
                await response.next_event()
                server.pause()
                frozen.set()
                began_at = time.monotonic()
                body = await response.read()
                assert time.monotonic() - began_at < 2
            server.resume()
            assert contents(body).count("x") in (delivered, delivered - 1)
            record = await proxy.record()
            assert record.outcome is (Outcome.COMPLETED if when_down == "open" else Outcome.QUOTA_CUT)


@pytest.mark.alone
async def test_a_frozen_redis_costs_the_others_nothing(tmp_path: Path) -> None:
    """Once it is known to be away, nobody waits for it."""
    with StoreServer.redis(tmp_path) as server:
        async with proxy_on(server, tmp_path, Streams(EVENTS), "open") as proxy:
            await ask(proxy)
            server.pause()
            try:
                await away(proxy)
                times = []
                for _ in range(20):
                    began_at = time.perf_counter()
                    assert (await ask(proxy))[0] == 200
                    times.append(time.perf_counter() - began_at)
            finally:
                server.resume()
            assert statistics.median(times) < 0.1
