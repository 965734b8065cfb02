"""Workers are killed with -9 under live streams, again and again: three books of each exchange side by side.

    python -m tests.e2e.kill_trial --rounds 100

starts the real mock backend (running usage, its own truth) and the real proxy with two workers, keeps LIVE
streams going, and kills a worker at random instants, sometimes its successor while it recovers. At the end, for
every exchange: delivered <= billed <= generated, completed ones billed as reported, no record twice, none missing,
and Redis equal to the records.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
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


async def _stream(url: str, chance: random.Random, seen: list[Seen], number: int) -> None:
    """One stream, read to its end or to its break."""
    mine = Seen(f"client-{number}")
    seen.append(mine)
    ask = {
        "model": "mock-small",
        "messages": [{"role": "user", "content": "count for me"}],
        "stream": chance.random() < 0.9,
        "max_tokens": chance.randint(1, 200),
    }
    try:
        async with await RawClient.connect(url) as client:
            headers = [("X-Request-Id", mine.id)]
            response = await client.request("POST", "/v1/chat/completions", ask, key=KEY, headers=headers)
            if not ask["stream"]:
                text = (await response.json())["choices"][0]["message"]["content"]
                mine.words, mine.done = len(text.split()), True
                return
            while (event := await response.next_event()) is not None:
                data = event.removeprefix(b"data: ").strip()
                if data == b"[DONE]":
                    mine.done = True
                else:
                    choices = json.loads(data)["choices"]
                    mine.words += sum(len((choice["delta"].get("content") or "").split()) for choice in choices)
    except (BrokenOff, ConnectionError, TimeoutError, json.JSONDecodeError):
        pass


async def run(rounds: int, seed: int) -> Result:
    """The whole trial; nothing is left behind."""
    result = Result()
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, StoreServer.redis(Path(name)) as store:
        directory = Path(name)
        truth_file = directory / "truth.jsonl"
        async with running_mock_backend("--dialect", "vllm", "--rate", "150", "--truth", truth_file) as backend:
            config = basic_config(backend, directory, workers=2, redis={"url": store.url})
            async with running_proxy(write_config(directory, config), env=ENVIRONMENT) as proxy:
                seen: list[Seen] = []
                stop = asyncio.Event()
                clients = [asyncio.create_task(_keep_asking(proxy.url, seed, n, seen, stop)) for n in range(LIVE)]
                for _ in range(rounds):
                    await asyncio.sleep(chance.uniform(0.05, 0.6))
                    result.kills += await _kill_a_worker(proxy, chance)
                stop.set()
                await asyncio.gather(*clients)
                records = await _settled(proxy)
                await until(lambda: _redis_equals(store, records), "Redis to equal the records")
        truths = [json.loads(line) for line in truth_file.read_text().splitlines()]
    _judge(result, seen, records, truths)
    return result


async def _keep_asking(url: str, seed: int, lane: int, seen: list[Seen], stop: asyncio.Event) -> None:
    chance = random.Random(f"{seed}-{lane}")
    count = 0
    while not stop.is_set():
        await _stream(url, chance, seen, lane * 1_000_000 + count)
        count += 1
        await asyncio.sleep(0.01)


async def _kill_a_worker(proxy: ProxyProcess, chance: random.Random) -> int:
    """Kill one worker; sometimes also the one that takes its place, while it recovers."""
    victim = chance.choice(await until(lambda: _workers(proxy), "a worker"))
    os.kill(victim, signal.SIGKILL)
    if chance.random() >= DURING_RECOVERY:
        return 1
    known = set(_workers(proxy)) | {victim}
    successor = await until(lambda: next(iter(set(_workers(proxy)) - known), None), "a successor")
    await asyncio.sleep(chance.uniform(0, 0.05))
    with contextlib.suppress(ProcessLookupError):
        os.kill(successor, signal.SIGKILL)
    return 2


def _workers(proxy: ProxyProcess) -> list[int]:
    """The pids of the live workers."""
    return [pid for pid in proxy.children() if is_running(pid)]


async def _settled(proxy: ProxyProcess) -> list[dict[str, Any]]:
    """All records, once nothing is in flight and their number stands still."""
    async with await RawClient.connect(proxy.admin_url) as client:

        async def get(path: str) -> Any:
            return await (await client.request("GET", path)).json()

        counts: list[int] = []

        async def look() -> list[dict[str, Any]] | None:
            await asyncio.sleep(0.3)
            records: list[dict[str, Any]] = (await get("/api/records?limit=100000"))["data"]
            counts.append(len(records))
            return records if counts[-3:] == [len(records)] * 3 else None

        return await until_async(look, "the records to stand still", within_s=30)


def _redis_equals(store: StoreServer, records: list[dict[str, Any]]) -> bool:
    expected: Counter[str] = Counter()
    for record in records:
        expected["requests"] += 1
        expected["output_tokens"] += record["output_tokens"]
        expected["input_tokens"] += record["input_tokens"]
    found: Counter[str] = Counter()
    with store.client() as client:
        for name in client.scan_iter("mp:*:usage:*"):
            for member, value in client.hgetall(name).items():
                found[member.rpartition("|")[2]] += int(value)
    return all(found[name] == count for name, count in expected.items())


def _judge(result: Result, seen: list[Seen], records: list[dict[str, Any]], truths: list[dict[str, Any]]) -> None:
    """Join client, record and truth of each exchange."""
    by_client: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_client.setdefault(record["client_request_id"], []).append(record)
    truth_of = {truth["client_request_id"]: truth for truth in truths}
    for mine in seen:
        own = by_client.get(mine.id, [])
        result.delivered += mine.words
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
    arguments = parser.parse_args()
    result = await run(arguments.rounds, arguments.seed)
    print("kills  exchanges  crashed  delivered  billed  generated  wrong")
    print(
        f"{result.kills:5} {result.exchanges:10} {result.crashed:8} {result.delivered:10} {result.billed:7} "
        f"{result.generated:10} {len(result.wrong):6}"
    )
    for line in result.wrong[:5]:
        print("   ", line)
    return 1 if result.wrong else 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
