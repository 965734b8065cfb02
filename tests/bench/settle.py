"""What settling one exchange costs the worker: journal line, label, books.

    python -m tests.bench.settle [DIRECTORY]

Prints microseconds per record, best and worst of five rounds of 20,000. DIRECTORY is on the disk to measure.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meter_proxy.errors import StoreError
from meter_proxy.ledger import Ledger
from meter_proxy.ledger.messages import Call
from tests.support.records import usage_record

ROUNDS = 5
RECORDS = 20_000
KEYS = 100


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


async def measure(directory: Path) -> list[float]:
    """Return the cost of each round, in microseconds per record."""
    ledger = Ledger(directory / "w0", Nowhere(), configured_models=["m1"])
    await ledger.start()
    records = [usage_record(key=f"key-{number % KEYS}") for number in range(RECORDS)]
    costs: list[float] = []
    for _ in range(ROUNDS):
        began_at = time.perf_counter()
        for record in records:
            ledger.settle(record)
        costs.append((time.perf_counter() - began_at) / RECORDS * 1e6)
        await asyncio.sleep(0.2)
    await ledger.stop()
    return costs


def main() -> None:
    """Run the rounds and print the result."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as directory:
        costs = asyncio.run(measure(Path(directory)))
    print(f"settle: best {min(costs):.1f} us, worst {max(costs):.1f} us a record")


if __name__ == "__main__":
    main()
