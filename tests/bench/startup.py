"""How long from the command to the first served request, on the embedded store: python -m tests.bench.startup

Prints the median and the range of ROUNDS starts, each in a new state directory, and what `import meter_proxy` costs.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
from tests.support.httpraw import RawClient
from tests.support.proc import running_mock_backend, running_proxy

ROUNDS = 7


async def one_start(backend: str) -> float:
    """Seconds from the start of the process to the end of a plain answer."""
    with tempfile.TemporaryDirectory() as name:
        path = write_config(Path(name), basic_config(backend, Path(name), workers=2))
        began_at = time.perf_counter()
        async with running_proxy(path, env=ENVIRONMENT) as proxy:
            async with await RawClient.connect(proxy.url) as client:
                ask = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
                response = await client.request("POST", "/v1/chat/completions", ask, key=KEY)
                assert response.status == 200, await response.read()
                await response.read()
            return time.perf_counter() - began_at


def import_seconds() -> float:
    """Of `import meter_proxy` alone, interpreter included."""
    began_at = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import meter_proxy"], check=True)
    return time.perf_counter() - began_at


async def main() -> None:
    async with running_mock_backend() as backend:
        starts = [await one_start(backend) for _ in range(ROUNDS)]
    imports = [import_seconds() for _ in range(ROUNDS)]
    for what, times in (("start to first answer", starts), ("import meter_proxy", imports)):
        print(f"{what:22} median {statistics.median(times):.3f} s  [{min(times):.3f} - {max(times):.3f}]")


if __name__ == "__main__":
    asyncio.run(main())
