"""What quotas cost an exchange: its admission, the headers that tell what is left, its release.

    python -m tests.bench.admission

Prints microseconds, best, median and worst of the rounds: for a plain call and for a stream, of a key with three
rules, far from its limits. Then the share of admissions that this worker could grant by itself, at several rates: from
real admissions with a real store, arriving at random.
"""

import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from meter_proxy.config.load import load_config
from meter_proxy.config.lookup import ModelTable
from meter_proxy.config.rulebook import RuleBook
from meter_proxy.config.schema import Config
from meter_proxy.errors import StoreError
from meter_proxy.gateway.headers import Forwarded
from meter_proxy.gateway.inbound import Call as InboundCall
from meter_proxy.gateway.inbound import Caller
from meter_proxy.gateway.quotas import MUST_ASK, QuotaGate
from meter_proxy.ledger import Ledger
from meter_proxy.ledger.grants import Grant
from meter_proxy.ledger.messages import Call
from meter_proxy.ledger.store import Store
from meter_proxy.metering.request import parse_body
from meter_proxy.telemetry.stats import WorkerStats
from meter_proxy.usage import Operation
from tests.bench.costs import Costs
from tests.support.servers import StoreServer

ROUNDS = 300
EXCHANGES = 100  # at once, in a round
PLENTY = 2**50  # of credit, so that nobody need be asked
RATES = (5, 10, 25, 100, 1_000, 3_000)  # admissions per second
MEASURED_S = 5.0
LASTS_S = 0.5  # an exchange
CONFIG = """
upstreams: {mock: {base_url: "http://127.0.0.1:1/v1"}}
models: {"*": {upstream: mock, price: {input: 2.5, output: 10}}}
keys:
  - id: bench
    secret: sha256:1111111111111111111111111111111111111111111111111111111111111111
    quotas: [{requests: 900M, per: day}, {tokens: 900M, per: day}, {cost_usd: 1000000, per: month}]
"""
PLAIN = b'{"model":"m","messages":[{"role":"user","content":"12345678"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"12345678"}]}'


class Silent:
    """A store that is there, and never answers: nothing happens beside what is measured."""

    def __init__(self) -> None:
        self.is_over = asyncio.Event()

    async def call(self, batch: Sequence[Call]) -> list[Any | StoreError]:
        await self.is_over.wait()
        raise StoreError("nowhere")

    async def now(self) -> float:
        return time.time()

    async def read_hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        return []

    async def close(self) -> None:
        return


def config_in(directory: Path) -> Config:
    """The configuration that is measured."""
    path = directory / "meter-proxy.yaml"
    path.write_text(CONFIG)
    return load_config(path, {})


def call_of(config: Config, body: bytes) -> InboundCall:
    """What a client asked, as the gateway hands it on."""
    asked = parse_body(body, Operation.CHAT)
    key = config.keys[0]
    model = ModelTable(config).resolve(asked.model, key)
    assert model is not None
    caller = Caller(key, key.id, key.account_id)
    return InboundCall(caller, Operation.CHAT, "/chat/completions", asked, model, Forwarded(b"", False), None)


async def measure_costs(directory: Path, costs: Costs) -> None:
    """Admit and release, round after round, all from credit."""
    config, store = config_in(directory), Silent()
    ledger = Ledger(directory / "costs" / "w0", store)
    await ledger.start()
    gate = QuotaGate(RuleBook(config), ledger, WorkerStats())
    for name, body in (("plain", PLAIN), ("stream", STREAM)):
        call = call_of(config, body)
        first = gate.grant_now(call)
        if first is MUST_ASK:  # there are counters now
            for book in ledger._books.counters:
                assert book.live is not None
                book.live.credit = PLENTY
        for _ in range(ROUNDS):
            with costs.of(f"{name}: whole", EXCHANGES):
                for _ in range(EXCHANGES):
                    grant = gate.grant_now(call)
                    assert isinstance(grant, Grant)
                    gate.headers(grant)
                    grant.release()
            with costs.of(f"{name}: admission", EXCHANGES):
                grants = [gate.grant_now(call) for _ in range(EXCHANGES)]
            with costs.of(f"{name}: headers", EXCHANGES):
                for grant in grants:
                    gate.headers(grant)  # type: ignore[arg-type]
            with costs.of(f"{name}: charges", EXCHANGES):
                for grant in grants:
                    _ = grant.charges  # type: ignore[union-attr]
            with costs.of(f"{name}: release", EXCHANGES):
                for grant in grants:
                    grant.release()  # type: ignore[union-attr]
            await asyncio.sleep(0)
    store.is_over.set()
    await ledger.stop()


@contextlib.asynccontextmanager
async def connected(directory: Path, url: str) -> AsyncIterator[Ledger]:
    """A ledger with a store that answers."""
    ledger = Ledger(directory / "w0", Store(url))
    await ledger.start()
    try:
        yield ledger
    finally:
        await ledger.stop()


async def measure_share(directory: Path, url: str, rate: int, body: bytes) -> tuple[int, int]:
    """How many of how many admissions at `rate` per second needed nobody but this worker, after the first second."""
    config, chance = config_in(directory), random.Random(rate)
    loop = asyncio.get_running_loop()
    by_itself = admitted = 0
    asking: set[asyncio.Task[None]] = set()

    async def ask() -> None:
        grant = await gate.grant(call)
        assert grant is not None
        loop.call_later(LASTS_S, grant.release)

    async with connected(directory / f"share-{rate}-{len(body)}", url) as ledger:
        gate, call = QuotaGate(RuleBook(config), ledger, WorkerStats()), call_of(config, body)
        began_at = due_at = loop.time()
        while due_at < began_at + 1 + MEASURED_S:
            grant = gate.grant_now(call)
            if due_at > began_at + 1:
                admitted += 1
                by_itself += grant is not MUST_ASK
            if isinstance(grant, Grant):
                loop.call_later(LASTS_S, grant.release)
            else:
                task = loop.create_task(ask())
                asking.add(task)
                task.add_done_callback(asking.discard)
            due_at += chance.expovariate(rate)
            await asyncio.sleep(max(0.0, due_at - loop.time()))
        await asyncio.sleep(2 * LASTS_S)
    return by_itself, admitted


def main() -> None:
    """Run all of it and print the result."""
    costs = Costs()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        asyncio.run(measure_costs(directory, costs))
        print(costs)
        if "--costs" in sys.argv:
            return
        with StoreServer.valkey(directory / "store") as server:
            for kind, body in (("plain", PLAIN), ("stream", STREAM)):
                for rate in RATES:
                    by_itself, admitted = asyncio.run(measure_share(directory, server.url, rate, body))
                    print(f"{kind:6} {rate:5}/s  by itself {by_itself / admitted:6.1%} of {admitted}")


if __name__ == "__main__":
    main()
