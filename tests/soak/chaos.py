"""Workers and Redis die under live streams, networks fail, clients leave: four books of each exchange side by side.

    python -m tests.soak.chaos --rounds 1000 --faults workers
    python -m tests.soak.chaos --rounds 100 --faults redis
    python -m tests.soak.chaos --exchanges 100000 --faults workers,redis,network,hang-ups

starts the real mock backend (running usage, its own truth), a network that can fail on both sides of the real proxy
with two workers, and a Redis; keeps LIVE clients asking; and does one harm after the other at random instants:

    workers     kill -9, sometimes of the successor while it recovers
    redis       kill -9 with the last 30% of its log cut off, SIGSTOP, FLUSHALL
    network     delays, splits, resets, stalls, half-closes, black holes between client, proxy and upstream
    hang-ups    clients leave in the middle

At the end, for every exchange: delivered <= billed <= generated, completed ones billed as reported, no record twice,
none missing. And `audit`: the journals, the readable counters and the quota in Redis say the same, nothing is held.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from meter_proxy.ledger.audit import audit
from meter_proxy.ledger.reading import iter_records
from meter_proxy.ledger.store import open_store
from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
from tests.support.fault_proxy import FaultProxy
from tests.support.httpraw import BrokenOff, RawClient
from tests.support.proc import ProxyProcess, is_running, running_mock_backend, running_proxy
from tests.support.servers import StoreServer
from tests.support.waiting import until, until_async

LIVE = 50
DURING_RECOVERY = 0.3  # of the kills are followed at once by one of the successor


@dataclass
class Result:
    """What the trial came to."""

    kills: int = 0
    redis_harms: int = 0
    network_faults: int = 0
    hang_ups: int = 0
    regressions: int = 0
    differences: int = 0  # between the journals and Redis, at the end
    exchanges: int = 0
    crashed: int = 0
    delivered: int = 0
    billed: int = 0
    generated: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass
class Seen:
    """What one client got."""

    id: str
    words: int = 0  # each is a token; some tokens make no word
    done: bool = False
    left: bool = False  # by its own will


async def _stream(
    url: str, chance: random.Random, seen: list[Seen], number: int, faults: frozenset[str], most: int
) -> None:
    """One stream, read to its end or to its break."""
    mine = Seen(f"client-{number}")
    seen.append(mine)
    ask = {
        "model": "mock-small",
        "messages": [{"role": "user", "content": "count for me"}],
        "stream": chance.random() < 0.9,
        "max_tokens": chance.randint(1, most),
    }
    leaves_after = chance.randint(0, 10) if "hang-ups" in faults and chance.random() < 0.3 else None
    try:
        async with await RawClient.connect(url) as client:
            headers = [("X-Request-Id", mine.id)]
            response = await client.request("POST", "/v1/chat/completions", ask, key=KEY, headers=headers)
            if not ask["stream"]:
                text = (await response.json())["choices"][0]["message"]["content"]
                mine.words, mine.done = len(text.split()), True
                return
            while (event := await response.next_event()) is not None:
                if leaves_after is not None and mine.words >= leaves_after:
                    mine.left = True
                    return
                data = event.removeprefix(b"data: ").strip()
                if data == b"[DONE]":
                    mine.done = True
                else:
                    choices = json.loads(data)["choices"]
                    mine.words += sum(len((choice["delta"].get("content") or "").split()) for choice in choices)
    except (BrokenOff, ConnectionError, TimeoutError, json.JSONDecodeError, KeyError):
        pass


async def run(rounds: int, seed: int, faults: frozenset[str] = frozenset({"workers"}), exchanges: int = 0) -> Result:
    """The whole trial; nothing is left behind. With `exchanges`, it goes on until there were so many."""
    result = Result()
    most_tokens, rate = (200, "150") if not exchanges else (12, "2000")
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, StoreServer.redis(Path(name)) as store:
        directory = Path(name)
        truth_file = directory / "truth.jsonl"
        async with running_mock_backend("--dialect", "vllm", "--rate", rate, "--truth", truth_file) as backend:
            host, _, port = backend.removeprefix("http://").partition("/")[0].partition(":")
            network = FaultProxy(host, int(port), chance)
            await network.__aenter__()
            quotas = [{"tokens": 10**12, "per": "total"}, {"concurrent": 10_000}, {"requests": 10**9, "per": "month"}]
            config = basic_config(
                f"{network.url}/v1",
                directory,
                workers=2,
                # Said, not asked of the backend: a fault that hits that question leaves events to be counted, which are
                # worth two tokens here, and that is no mistake of the books.
                upstreams={"local": {"base_url": f"{network.url}/v1", "running_usage": "vllm"}},
                redis={"url": store.url, "when_down": "open"},
                keys=[{"id": "alice", "secret": {"env": "ALICE_KEY"}, "quotas": quotas}],
            )
            async with running_proxy(write_config(directory, config), env=ENVIRONMENT) as proxy:
                seen: list[Seen] = []
                stop = asyncio.Event()
                near = FaultProxy("127.0.0.1", int(proxy.url.rpartition(":")[2]), chance)
                await near.__aenter__()
                network.trouble = near.trouble = 0.1 if "network" in faults else 0.0
                clients = [
                    asyncio.create_task(_keep_asking(near.url, seed, n, seen, stop, faults, most_tokens))
                    for n in range(LIVE)
                ]
                done = 0
                while done < rounds or len(seen) < max(exchanges, 2 * LIVE):  # each client comes back
                    await asyncio.sleep(chance.uniform(0.05, 0.6))
                    done += 1
                    harms = [harm for harm in ("workers", "redis") if harm in faults]
                    harm = chance.choice(harms) if harms else None
                    if harm == "workers":
                        result.kills += await _kill_a_worker(proxy, chance)
                    elif harm == "redis":
                        await _harm_redis(store, chance)
                        result.redis_harms += 1
                network.trouble = near.trouble = 0.0
                stop.set()
                await asyncio.gather(*clients)
                result.network_faults = sum(network.happened.values()) + sum(near.happened.values())
                await until_async(lambda: _is_ready(proxy), "all workers, with what they recovered", within_s=30)
                result.regressions = await _regressions(proxy)
                records = await _settled(proxy, directory)
                result.differences = await _differences(directory, store)
                for one in (network, near):
                    await one.__aexit__(None, None, None)
        truths = [json.loads(line) for line in truth_file.read_text().splitlines()]
    _judge(result, seen, records, truths)
    return result


async def _keep_asking(
    url: str, seed: int, lane: int, seen: list[Seen], stop: asyncio.Event, faults: frozenset[str], most: int
) -> None:
    chance = random.Random(f"{seed}-{lane}")
    count = 0
    while not stop.is_set():
        await _stream(url, chance, seen, lane * 1_000_000 + count, faults, most)
        count += 1
        await asyncio.sleep(0.01)


async def _kill_a_worker(proxy: ProxyProcess, chance: random.Random) -> int:
    """Kill one worker; sometimes also the one that takes its place, while it recovers."""
    known = await until(lambda: _workers(proxy), "a worker")
    os.kill(chance.choice(known), signal.SIGKILL)
    if chance.random() >= DURING_RECOVERY:
        return 1
    successor = await until(lambda: next(iter(set(_workers(proxy)) - set(known)), None), "a successor")
    await asyncio.sleep(chance.uniform(0, 0.05))
    with contextlib.suppress(ProcessLookupError):
        os.kill(successor, signal.SIGKILL)
    return 2


async def _harm_redis(store: StoreServer, chance: random.Random) -> None:
    """Kill it and take the end of its log away; freeze it; or empty it."""
    match chance.choice(("kill", "kill", "freeze", "empty")):
        case "kill":
            store.kill()
            for log in (store.directory / "appendonlydir").glob("*.incr.aof"):
                _cut_log(log)
            store.start()
        case "freeze":
            store.pause()
            await asyncio.sleep(chance.choice((0.1, 0.4, 1.0)))
            store.resume()
        case "empty":
            with store.client() as client:
                client.flushall()


def _cut_log(log: Path) -> None:
    """As if the last 30% had never reached the disk; the server itself cuts off what is torn then."""
    size = log.stat().st_size
    os.truncate(log, size - size * 3 // 10)


async def _is_ready(proxy: ProxyProcess) -> bool:
    async with await RawClient.connect(proxy.admin_url) as client:
        return (await client.request("GET", "/readyz")).status == 200


async def _regressions(proxy: ProxyProcess) -> int:
    async with await RawClient.connect(proxy.admin_url) as client:
        text = (await (await client.request("GET", "/metrics")).read()).decode()
    line = next(line for line in text.splitlines() if line.startswith("meter_proxy_redis_regressions_total "))
    return int(float(line.rpartition(" ")[2]))


async def _differences(directory: Path, store: StoreServer) -> int:
    """What `audit` finds once all has had time to arrive; and whether anything is still held."""
    connection = open_store(store.url)
    found: list[Any] = []
    try:
        for _ in range(50):
            result = await audit(
                directory / "state", connection, now=time.time(), retention_s=400 * 86_400, accounts={}
            )
            found = list(result.differences)
            with store.client() as client:
                for name in client.scan_iter("mp:*:quota:*"):
                    if int(client.hget(name, "reserved") or 0):
                        found.append(f"{name} holds {client.hgetall(name)}")
            if not found:
                break
            await asyncio.sleep(0.2)
    finally:
        await connection.close()
    for difference in found[:5]:
        print("   ", difference)
    return len(found)


def _workers(proxy: ProxyProcess) -> list[int]:
    """The pids of the live workers."""
    return [pid for pid in proxy.children() if is_running(pid)]


async def _settled(proxy: ProxyProcess, directory: Path) -> list[dict[str, Any]]:
    """All records, once nothing is in flight and their number stands still."""
    counts: list[int] = []

    async def look() -> list[dict[str, Any]] | None:
        await asyncio.sleep(0.3)
        records = [msgspec.to_builtins(record) for record in iter_records(directory / "state")]
        counts.append(len(records))
        return records if counts[-3:] == [len(records)] * 3 else None

    return await until_async(look, "the records to stand still", within_s=60)


def _judge(result: Result, seen: list[Seen], records: list[dict[str, Any]], truths: list[dict[str, Any]]) -> None:
    """Join client, record and truth of each exchange."""
    by_client: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_client.setdefault(record["client_request_id"], []).append(record)
    truth_of = {truth["client_request_id"]: truth for truth in truths}
    for mine in seen:
        own = by_client.get(mine.id, [])
        result.delivered += mine.words
        result.hang_ups += mine.left
        if not own:
            if mine.words or mine.done:
                result.wrong.append(f"delivered but unbilled: {mine}")
            continue  # the connection broke before the request was admitted
        if len(own) > 1:
            result.wrong.append(f"billed twice: {mine} {own}")
        (record, *_) = own
        truth = truth_of.get(record["id"])
        generated = truth["generated_tokens"] if truth is not None else 0
        result.exchanges += 1
        result.crashed += record["outcome"] == "crashed"
        result.billed += record["output_tokens"]
        result.generated += generated
        if not mine.words <= record["output_tokens"] <= generated:
            result.wrong.append(f"not delivered <= billed <= generated: {mine} {record} {truth}")
        if mine.done and (record["outcome"], record["basis"], record["output_tokens"]) != (
            "completed",
            "reported",
            generated,
        ):
            result.wrong.append(f"whole, but billed otherwise: {mine} {record} {truth}")


async def main() -> int:
    """Print the table; 1 if any exchange was billed wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", default="workers")
    parser.add_argument("--exchanges", type=int, default=0)
    arguments = parser.parse_args()
    faults = frozenset(arguments.faults.split(","))
    result = await run(arguments.rounds, arguments.seed, faults, arguments.exchanges)
    for name, value in vars(result).items():
        print(f"{name:15} {len(value) if name == 'wrong' else value:10,}")
    for line in result.wrong[:5]:
        print("   ", line)
    return 1 if result.wrong or result.differences else 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
