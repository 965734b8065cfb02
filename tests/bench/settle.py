"""What the books cost: a worker per exchange (admission, settlement), the parent per record (the feed).

    python -m tests.bench.settle [DIRECTORY]

Prints microseconds: best, median and worst of the rounds. DIRECTORY is on the disk to measure. An exchange has three
quotas and a price; the feed takes in blocks of records, as it does five times a second under load.
"""

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from meter_proxy.config.lookup import ResolvedModel
from meter_proxy.config.schema import Price
from meter_proxy.errors import StoreError
from meter_proxy.gateway.headers import Forwarded
from meter_proxy.gateway.inbound import Call as InboundCall
from meter_proxy.gateway.inbound import Caller
from meter_proxy.gateway.settlement import make_admission, make_record
from meter_proxy.ledger import Ledger
from meter_proxy.ledger.admission import Admission
from meter_proxy.ledger.journal import encode_line
from meter_proxy.ledger.messages import Call
from meter_proxy.metering.request import parse_body
from meter_proxy.metering.tally import Reading
from meter_proxy.quota.charge import Charge, Unit
from meter_proxy.telemetry.feed import RecordFeed
from meter_proxy.telemetry.metrics import Metrics
from meter_proxy.telemetry.servers import Server
from meter_proxy.usage import Basis, Operation, Outcome, Usage
from tests.bench.costs import Costs
from tests.support.journals import open_journal
from tests.support.records import usage_record

ROUNDS = 100
EXCHANGES = 200  # at once, in a round
BLOCK = 1_000  # records in a poll: 5,000 a second
KEYS = 100
CHARGES = (
    Charge("k", "tokens-minute", "202603011200", Unit.TOKENS, 1_772_366_460),
    Charge("k", "requests-day", "20260301", Unit.REQUESTS, 1_772_409_600),
    Charge("a", "cost-month", "202603", Unit.COST_USD, 1_775_001_600),
)
READING = Reading(Usage(120, 60, 0, None), Basis.REPORTED, Basis.REPORTED)


class Nowhere:
    """A store that is not there: the books stay dirty, nothing is sent."""

    async def call(self, batch: Sequence[Call]) -> list[Any | StoreError]:
        raise StoreError("nowhere")

    async def now(self) -> float:
        raise StoreError("nowhere")

    async def read_hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        return []

    async def close(self) -> None:
        return


@contextlib.asynccontextmanager
async def started(directory: Path) -> AsyncIterator[Ledger]:
    """A ledger at work, without a store."""
    ledger = Ledger(directory / "w0", Nowhere(), configured_models=["m1"])
    await ledger.start()
    try:
        yield ledger
    finally:
        await ledger.stop()


def calls() -> list[InboundCall]:
    """What callers asked."""
    body = b'{"model":"m1","messages":[{"role":"user","content":"12345678"}]}'
    asked = parse_body(body, Operation.CHAT)
    price = Price(input=Decimal("2.5"), output=Decimal(10), cached_input=Decimal("1.25"))
    model = ResolvedModel("m1", "m1", ("local",), "m1", price, None)
    return [
        InboundCall(
            Caller(None, f"key-{number}", f"account-{number % 10}"),
            Operation.CHAT,
            "/chat/completions",
            asked,
            model,
            Forwarded(b"", False),
            None,
        )
        for number in range(KEYS)
    ]


def exchange_of(admission: Admission) -> Any:
    """A completed plain call, as far as its record is concerned."""
    meter = SimpleNamespace(usage_so_far=lambda: READING, response_model="m1")
    return SimpleNamespace(
        admission=admission,
        relay=SimpleNamespace(meter=meter, first_token_at=None),
        outcome=Outcome.COMPLETED,
        status=200,
        reached_upstream=True,
        began_at=time.perf_counter(),
    )


async def measure_worker(directory: Path, costs: Costs) -> None:
    """Admit and settle, round after round."""
    asked = calls()
    async with started(directory) as ledger:
        for _ in range(ROUNDS):
            admitted: list[Any] = []
            with costs.of("admission", EXCHANGES):
                for number in range(EXCHANGES):
                    admission = make_admission(
                        asked[number % KEYS],
                        "req_0123456789abcdef01234567",
                        admitted_at=ledger.now(),
                        upstream="local",
                        prompt_always=False,
                        charges=CHARGES,
                    )
                    admitted.append((admission, ledger.admit(admission)))
            exchanges = [(exchange_of(admission), slot) for admission, slot in admitted]
            with costs.of("settlement", EXCHANGES):
                for exchange, slot in exchanges:
                    record = make_record(exchange, now=time.perf_counter())
                    ledger.settle(record, slot, charges=CHARGES)
            await asyncio.sleep(0.01)


def measure_feed(directory: Path, costs: Costs) -> None:
    """Take in what a worker has written."""
    metrics = Metrics(version="1", servers={"local": Server("openai", "backend", "8000")})
    feed = RecordFeed(directory, metrics, workers=1)
    journal = open_journal(directory / "w9")
    lines = b"".join(encode_line(usage_record(key=f"key-{n % KEYS}"), "m1", CHARGES) for n in range(BLOCK))
    for _ in range(ROUNDS):
        journal.append(lines)
        with costs.of("feed", BLOCK):
            while feed.poll():
                pass
    for _ in range(ROUNDS):
        with costs.of("idle poll", 1):
            feed.poll()
    assert sum(metrics.requests.values.values()) == ROUNDS * BLOCK
    journal.close()


def main() -> None:
    """Run the rounds and print the result."""
    costs = Costs()
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as directory:
        asyncio.run(measure_worker(Path(directory), costs))
        measure_feed(Path(directory), costs)
    print(costs)


if __name__ == "__main__":
    main()
