"""Quotas under parallel load, outages, and how soon all is well again; each prints one line of a table.

python -m tests.soak.races exactly-100 --rounds 20     1,000 parallel requests, 4 workers, 2 parents, room for 100
python -m tests.soak.races wall                        200 parallel streams of one key run into a slice quota
python -m tests.soak.races outage                      Redis away for 200,000 exchanges over 10,000 keys
python -m tests.soak.races recovery --rounds 20        a worker is killed: a new one serves; Redis is exact
python -m tests.soak.races sigterm                     SIGTERM with 500 live streams
python -m tests.soak.races frozen                      what a frozen Redis adds to the time to first byte
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from meter_proxy.ledger import Ledger
from meter_proxy.ledger.reading import iter_records
from meter_proxy.ledger.store import open_store
from tests.support import answers
from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
from tests.support.httpraw import BrokenOff, RawClient
from tests.support.proc import ProxyProcess, is_running, running_proxy
from tests.support.records import usage_record
from tests.support.servers import StoreServer
from tests.support.upstream import Script, ScriptedUpstream, UpstreamExchange
from tests.support.waiting import until, until_async

CHAT = "/v1/chat/completions"
STREAM = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
PLAIN = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 10}


async def _answer(exchange: UpstreamExchange) -> None:
    await exchange.answer(answers.chat_json(output_tokens=10))


@contextlib.asynccontextmanager
async def _proxies(
    directory: Path, store: StoreServer, script: Script, quotas: list[dict[str, Any]], parents: int = 1, **members: Any
) -> AsyncIterator[list[ProxyProcess]]:
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream(script))
        proxies = []
        for number in range(parents):
            place = directory / f"parent{number}"
            place.mkdir()
            config = basic_config(
                upstream.url,
                place,
                redis={"url": store.url, "when_down": "closed"},
                keys=[{"id": "alice", "secret": {"env": "ALICE_KEY"}, "quotas": quotas or "unlimited"}],
                **{"workers": 2, **members},
            )
            path = write_config(place, config)
            proxies.append(await stack.enter_async_context(running_proxy(path, env=ENVIRONMENT, within_s=30)))
        yield proxies


async def _ask(url: str, body: dict[str, Any]) -> tuple[int, bytes]:
    async with await RawClient.connect(url, timeout_s=60) as client:
        response = await client.request("POST", CHAT, body, key=KEY)
        return response.status, await response.read()


async def exactly_100(directory: Path, store: StoreServer, rounds: int) -> bool:
    """Admitted each round; 503s are requests that Redis did not answer in time: `closed` lets none of them pass."""
    admitted: list[int] = []
    unavailable = 0
    for round_ in range(rounds):
        place = directory / str(round_)
        place.mkdir()
        with store.client() as client:
            client.flushall()
        quotas = [{"name": f"r{round_}", "output_tokens": 1000, "per": "total", "reserve": "hard"}]
        models = {"m": {"upstream": "local", "max_output_tokens": 10}}
        async with _proxies(place, store, _answer, quotas, parents=2, models=models) as proxies:
            asked = [_ask(proxies[number % 2].url, PLAIN) for number in range(1000)]
            statuses = [status for status, _ in await asyncio.gather(*asked)]
        admitted.append(statuses.count(200))
        unavailable += statuses.count(503)
    print(f"exactly-100: rounds {rounds}, admitted min {min(admitted)} max {max(admitted)}, 503s {unavailable}")
    return set(admitted) == {100}


async def wall(directory: Path, store: StoreServer, rounds: int) -> bool:
    limit = 20_000
    event = answers.chat_event("x")

    async def flood(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        for _ in range(1000):
            await exchange.send_event(event)
            await asyncio.sleep(0)
            if exchange.peer_hung_up:
                return
        await exchange.end()

    async with _proxies(directory, store, flood, [{"output_tokens": limit, "per": "total"}]) as (proxy,):
        bodies = [
            body
            for status, body in await asyncio.gather(*(_ask(proxy.url, STREAM) for _ in range(200)))
            if status == 200
        ]
        await asyncio.sleep(1)
        records = list(iter_records(directory / "parent0" / "state"))
    delivered = sum(body.count(event) for body in bodies)
    billed = sum(record.output_tokens for record in records)
    cut = sum(record.outcome == "quota_cut" for record in records)
    print(f"wall: limit {limit:,}, streams {len(records)}, cut {cut}, delivered {delivered:,}, billed {billed:,}")
    return delivered <= limit


async def outage(directory: Path, store: StoreServer, rounds: int) -> bool:
    """The ledger alone, without HTTP: it is the books that catch up."""
    records, keys = 200_000, 10_000
    ledger = Ledger(directory / "state" / "w0", open_store(store.url))
    await ledger.start()
    store.kill()
    today = time.strftime("%Y-%m-%dT12:00:00.000Z", time.gmtime())
    for number in range(records):
        ledger.settle(usage_record(time=today, key=f"k{number % keys}", account=f"k{number % keys}"))
        if number % 100 == 0:
            await asyncio.sleep(0)
    store.start()
    await until(lambda: ledger.store_up, "Redis is noticed", within_s=30)
    began_at = time.monotonic()
    await until(lambda: ledger.unsynced == 0, "Redis has everything", within_s=120)
    took_s = time.monotonic() - began_at
    await ledger.stop()
    with store.client() as client:
        found = sum(int(client.hget(name, "m1|requests") or 0) for name in client.scan_iter("mp:*:usage:*"))
    print(
        f"outage: {records:,} exchanges, {keys:,} keys, in Redis {found:,}, "
        f"caught up in {took_s:.1f} s, 1 batch in flight"
    )
    return found == records


async def recovery(directory: Path, store: StoreServer, rounds: int) -> bool:
    """From the kill of a worker to the next one's readiness, and to Redis and the books being the same."""

    async def slowly(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        for _ in range(200):
            await exchange.send_event(answers.chat_event("x"))
            await asyncio.sleep(0.02)
        await exchange.end()

    serving: list[float] = []
    exact: list[float] = []
    quotas = [{"tokens": 10**12, "per": "total"}]
    state = directory / "parent0" / "state"
    async with _proxies(directory, store, slowly, quotas, workers=1) as (proxy,):
        for _ in range(rounds):
            streams = [asyncio.create_task(_stream_until_broken(proxy.url)) for _ in range(50)]
            await asyncio.sleep(0.5)
            (victim,) = [pid for pid in proxy.children() if is_running(pid)]
            os.kill(victim, signal.SIGKILL)
            began_at = time.monotonic()
            await until_async(lambda: _serves(proxy), "the next worker", within_s=30)
            serving.append(time.monotonic() - began_at)
            await until(lambda: _same(store, state), "Redis is exact", within_s=30)
            exact.append(time.monotonic() - began_at)
            await asyncio.gather(*streams)
    print(
        f"recovery: {rounds} kills of a worker with 50 streams: serving after {statistics.median(serving):.2f} s "
        f"(max {max(serving):.2f}), Redis exact after {statistics.median(exact):.2f} s (max {max(exact):.2f})"
    )
    return True


async def _stream_until_broken(url: str) -> None:
    with contextlib.suppress(BrokenOff, OSError, TimeoutError):
        await _ask(url, STREAM)


async def _serves(proxy: ProxyProcess) -> bool:
    with contextlib.suppress(BrokenOff, OSError, TimeoutError):
        async with await RawClient.connect(proxy.url, timeout_s=1) as client:
            return (await client.request("GET", "/readyz")).status == 200
    return False


def _same(store: StoreServer, state: Path) -> bool:
    tokens = sum(record.input_tokens + record.output_tokens for record in iter_records(state))
    with store.client() as client:
        return int(client.hget("mp:{alice}:quota:k:alice:tokens-total:total", "used") or 0) == tokens and tokens > 0


async def sigterm(directory: Path, store: StoreServer, rounds: int) -> bool:
    """None is cut within the drain time; those that would take longer are cut and billed."""
    lengths = {True: 0, False: 0}

    async def script(exchange: UpstreamExchange) -> None:
        is_long = len(lengths) and (lengths[True] + lengths[False]) % 5 == 0
        lengths[bool(is_long)] += 1
        await exchange.start_stream()
        for event in answers.chat_stream(*["x"] * (100 if is_long else 10)):
            await exchange.send_event(event)
            await asyncio.sleep(0.2)
        await exchange.end()

    limits = {"drain_timeout": "8s"}
    async with _proxies(directory, store, script, [], limits=limits) as (proxy,):
        streams = [asyncio.create_task(_whole(proxy.url)) for _ in range(500)]
        await asyncio.sleep(1.5)
        proxy.send_signal(signal.SIGTERM)
        code = await proxy.ended(within_s=30)
        whole = sum(await asyncio.gather(*streams))
        records = list(iter_records(directory / "parent0" / "state"))
    cut = sum(record.outcome == "drained" for record in records)
    print(f"sigterm: 500 streams, {whole} whole, {cut} cut after the drain time, {len(records)} records, exit {code}")
    return code == 0 and len(records) == 500 and whole + cut == 500 and whole == lengths[False]


async def _whole(url: str) -> bool:
    with contextlib.suppress(BrokenOff, OSError, TimeoutError):
        _, body = await _ask(url, STREAM)
        return body.endswith(answers.DONE)
    return False


async def frozen(directory: Path, store: StoreServer, rounds: int) -> bool:
    """With `open`: the median of 200 requests, before and while Redis is frozen."""
    quotas = [{"tokens": 10**12, "per": "total", "when_down": "open"}]

    async def median(url: str) -> float:
        times = []
        for _ in range(200):
            began_at = time.perf_counter()
            await _ask(url, PLAIN)
            times.append(time.perf_counter() - began_at)
        return statistics.median(times) * 1e3

    async with _proxies(directory, store, _answer, quotas, workers=1) as (proxy,):
        before = await median(proxy.url)
        store.pause()
        await asyncio.sleep(0.5)
        for _ in range(5):
            await _ask(proxy.url, PLAIN)
        while_frozen = await median(proxy.url)
        store.resume()
    print(
        f"frozen: median {before:.2f} ms before, {while_frozen:.2f} ms while Redis is frozen: "
        f"{while_frozen - before:+.2f} ms"
    )
    return while_frozen - before <= 1.0


Scenario = Callable[[Path, StoreServer, int], Coroutine[Any, Any, bool]]
SCENARIOS: dict[str, Scenario] = {
    "exactly-100": exactly_100,
    "wall": wall,
    "outage": outage,
    "recovery": recovery,
    "sigterm": sigterm,
    "frozen": frozen,
}


async def run(name: str, rounds: int) -> bool:
    """One scenario, in a directory of its own; whether it came out as promised."""
    with tempfile.TemporaryDirectory() as directory, StoreServer.redis(Path(directory)) as store:
        return await SCENARIOS[name](Path(directory), store, rounds)


def main() -> int:
    """Run what is asked for; 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=[*SCENARIOS, "all"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    names = list(SCENARIOS) if arguments.scenario == "all" else [arguments.scenario]
    kept = [asyncio.run(run(name, arguments.rounds)) for name in names]
    print(json.dumps(dict(zip(names, kept, strict=True))))
    return 0 if all(kept) else 1


if __name__ == "__main__":
    raise SystemExit(main())
