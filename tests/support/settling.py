"""A process that settles records until it is killed: `python -m tests.support.settling STATE_DIR STORE_URL PREFIX`.

Prints the id of each record once `settle` has returned. Ids are PREFIX and a number.
"""

import asyncio
import sys
from pathlib import Path

from meter_proxy.ledger import Ledger
from meter_proxy.ledger.store import Store
from tests.support.records import usage_record


async def settle_for_ever(state_dir: Path, url: str, prefix: str) -> None:
    """Settle five records each millisecond, of seven keys and three models."""
    ledger = Ledger(state_dir / "w0", Store(url))
    await ledger.start()
    number = 0
    while True:
        for _ in range(5):
            id = f"{prefix}{number}"
            ledger.settle(usage_record(id=id, key=f"k{number % 7}", model=f"m{number % 3}", output_tokens=number))
            sys.stdout.write(f"{id}\n")
            number += 1
        sys.stdout.flush()
        await asyncio.sleep(0.001)


if __name__ == "__main__":
    asyncio.run(settle_for_ever(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
