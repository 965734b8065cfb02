"""Three books of a thousand exchanges of every kind, on two workers: records, Prometheus, Redis. They are equal."""

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
from tests.support.httpraw import BrokenOff, RawClient
from tests.support.proc import ProxyProcess, running_mock_backend, running_proxy
from tests.support.servers import StoreServer
from tests.support.waiting import until_async

EXCHANGES = 1_000
AT_ONCE = 50
FIELDS = ("requests", "input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "cost_nano_usd")
MODELS = {
    "priced": {"upstream": "local", "price": {"input": 2.5, "output": 10}},
    "free": {"upstream": "local"},
    "*": {"upstream": "local"},
}
KEYS = [
    {"id": "alice", "secret": {"env": "ALICE_KEY"}, "quotas": "unlimited"},
    {"id": "bob", "secret": {"env": "BOB_KEY"}, "account": "team", "quotas": "unlimited"},
]
WISHES: tuple[list[tuple[str, str]], ...] = (
    [],
    [],
    [],
    [("x-mock-status", "500")],
    [("x-mock-status", "400")],
    [("x-mock-fault", "reset@2")],
)


async def one_exchange(url: str, number: int) -> bool:
    """A stream or a plain call, whole, hung up, failed or refused; -> whether it was admitted."""
    chance = random.Random(number)
    key = chance.choice([KEY, KEY, "sk-bob", "sk-wrong"])
    path = chance.choice(["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
    ask: dict[str, Any] = {
        "model": chance.choice(["priced", "free", f"passed-through-{chance.randint(1, 3)}"]),
        "stream": chance.random() < 0.7 and path != "/v1/embeddings",
        "max_tokens": chance.randint(1, 20),
        **({"messages": [{"role": "user", "content": "hello there"}]} if "chat" in path else {}),
        **({"prompt": "hello"} if path == "/v1/completions" else {}),
        **({"input": "hello"} if path == "/v1/embeddings" else {}),
    }
    async with await RawClient.connect(url) as client:
        response = await client.request("POST", path, ask, key=key, headers=chance.choice(WISHES))
        try:
            if chance.random() < 0.3:
                await response.next_piece()
                client.close_rst()
            else:
                await response.read()
        except BrokenOff:
            pass
    return key != "sk-wrong"


async def get(admin_url: str, path: str) -> bytes:
    async with await RawClient.connect(admin_url) as client:
        return await (await client.request("GET", path)).read()


def samples(text: str) -> dict[str, Counter[tuple[str, ...]]]:
    """Counter families by name: values by (key, model, type or outcome ...)."""
    found: dict[str, Counter[tuple[str, ...]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sample.labels.get(name, "") for name in ("key", "model", "type", "outcome"))
            found.setdefault(sample.name, Counter())[labels] += sample.value  # type: ignore[assignment]
    return found


async def test_records_prometheus_and_redis_are_equal(redis_server: StoreServer, tmp_path: Path) -> None:
    """Sums per key and model agree to the token and to the nano-dollar, and refusals are counted once."""
    async with running_mock_backend("--dialect", "vllm") as backend:
        config = basic_config(backend, tmp_path, models=MODELS, keys=KEYS, workers=2, redis={"url": redis_server.url})
        environment = {**ENVIRONMENT, "BOB_KEY": "sk-bob"}
        async with running_proxy(write_config(tmp_path, config), env=environment) as proxy:
            slots = asyncio.Semaphore(AT_ONCE)

            async def bounded(number: int) -> bool:
                async with slots:
                    return await one_exchange(proxy.url, number)

            admitted = sum(await asyncio.gather(*(bounded(number) for number in range(EXCHANGES))))
            await compare(proxy, redis_server, admitted)


async def compare(proxy: ProxyProcess, store: StoreServer, admitted: int) -> None:
    """Wait until every book holds all exchanges, then compare them."""

    async def records_whole() -> list[dict[str, Any]] | None:
        found: list[dict[str, Any]] = json.loads(await get(proxy.admin_url, "/api/records?limit=100000"))["data"]
        return found if len(found) >= admitted else None

    records = await until_async(records_whole, f"{admitted} records")
    assert len(records) == admitted
    by_record: Counter[tuple[str, str, str]] = Counter()
    for record in records:
        for name in FIELDS:
            amount = 1 if name == "requests" else record[name] or 0
            by_record[record["key"], record["model_label"], name] += amount
    by_record = +by_record

    async def in_redis() -> bool:
        by_redis: Counter[tuple[str, str, str]] = Counter()
        with store.client() as client:
            for name in client.scan_iter("mp:*:usage:*"):
                _, _, _, key, _ = name.split(":")
                for member, value in client.hgetall(name).items():
                    model, _, member_field = member.rpartition("|")
                    by_redis[key, model, member_field] += int(value)
        return +by_redis == by_record

    await until_async(in_redis, "Redis to equal the records")

    async def in_prometheus() -> bool:
        found = samples((await get(proxy.admin_url, "/metrics")).decode())
        sums: Counter[tuple[str, str, str]] = Counter()
        for (key, model, kind, _), value in found["meter_proxy_tokens_total"].items():
            sums[key, model, f"{kind}_tokens"] += int(value)
        for (key, model, kind, _), value in found.get("meter_proxy_token_details_total", Counter()).items():
            name = {"input_cached": "cached_input_tokens", "output_reasoning": "reasoning_tokens"}[kind]
            sums[key, model, name] += int(value)
        for (key, model, _, _), value in found["meter_proxy_cost_usd_total"].items():
            sums[key, model, "cost_nano_usd"] += round(value * 1e9)
        refused = 0
        for (key, model, _, outcome), value in found["meter_proxy_requests_total"].items():
            if outcome == "denied":
                refused += int(value)
            else:
                sums[key, model, "requests"] += int(value)
        return +sums == by_record and refused == EXCHANGES - admitted

    await until_async(in_prometheus, "Prometheus to equal the records")
