"""What clients cost that do not read, and streams that say nothing: python -m tests.bench.memory

Starts the real proxy with one worker in front of a flooding upstream, and prints the worker's resident memory
before, with CLIENTS clients that never read (the upstream is held back), and after they were cut.
"""

import asyncio
import tempfile
from pathlib import Path

from tests.support import answers
from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
from tests.support.harms import FloodsUntilHungUp, StallsAfter
from tests.support.httpraw import RawClient, request_bytes
from tests.support.proc import ProxyProcess, running_proxy
from tests.support.upstream import Script, ScriptedUpstream
from tests.support.waiting import until

CLIENTS = 200
ASK = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


def worker_kib(proxy: ProxyProcess) -> int:
    """Resident memory of the one worker."""
    for pid in proxy.children():
        if b"meter_proxy" in Path(f"/proc/{pid}/cmdline").read_bytes():
            status = Path(f"/proc/{pid}/status").read_text()
            return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    raise AssertionError("no worker")


async def measure(what: str, script: Script, *, reads: bool) -> None:
    """Memory with CLIENTS clients on `script`."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with ScriptedUpstream(script) as upstream:
            limits = {"client_stall": "3s"}
            config = basic_config(upstream.url, directory, limits=limits)
            config["upstreams"]["local"]["running_usage"] = "off"
            async with running_proxy(write_config(directory, config), env=ENVIRONMENT) as proxy:
                clients = [await RawClient.connect(proxy.url, receive_buffer_bytes=4096) for _ in range(CLIENTS)]
                before = worker_kib(proxy)
                for client in clients:
                    await client.send(request_bytes("POST", "/v1/chat/completions", ASK, key=KEY))
                await until(lambda: len(upstream.exchanges) == CLIENTS, "all requests at the upstream")
                await asyncio.sleep(1.5)  # all buffers fill; nothing tells when
                during = worker_kib(proxy)
                print(
                    f"{what:22} {CLIENTS} clients: {before} KiB before, {during} KiB with them: "
                    f"{(during - before) / CLIENTS:.1f} KiB each"
                )
                if not reads:
                    for exchange in upstream.exchanges:
                        await exchange.hung_up(within_s=20)
                for client in clients:
                    client.close_rst()


async def main() -> None:
    await measure("never read", FloodsUntilHungUp(), reads=False)
    await measure("quiet stream", StallsAfter([answers.chat_event("a")]), reads=True)


if __name__ == "__main__":
    asyncio.run(main())
