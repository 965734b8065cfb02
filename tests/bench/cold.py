"""What a chunk and a request cost when the processor's caches hold none of it: python -m tests.bench.cold

A worker with many paced streams sleeps between chunks, and others use the caches meanwhile. Here 3 MB are written
before each chunk and each request; beside that stand the same without it. The transports are ours: no socket, no
kernel, no quotas. Prints microseconds, the 20th percentile and the median.
"""

import asyncio
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import uvloop

from meter_proxy.gateway.front import Front, FrontDoor
from meter_proxy.gateway.gateway import Gateway
from meter_proxy.gateway.upstream import UpstreamConnection
from meter_proxy.ledger import Ledger
from meter_proxy.telemetry.stats import WorkerStats
from tests.support import answers
from tests.unit.gateway.plain_requests import config_of, request

CONFIG = config_of(
    """
upstreams: {one: {base_url: "http://one/v1", running_usage: off}}
models: {"*": {upstream: one, price: {input: 2.5, output: 10}}}
keys: [{id: alice, secret: {env: K}, quotas: unlimited}]
""",
    K="sk-plain",
)
PLAIN = request(b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}')
STREAM = request(b'{"model":"m","messages":[],"stream":true}')
STREAMS = 100
TIMES = 3_000
CACHE_BYTES = 3_000_000  # three times the second level's
EVENT = b'data: {"id":"c-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}\n\n'  # noqa: E501
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = answers.chat_json(output_tokens=7)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class Transport:
    """Takes everything at once."""

    def write(self, data: bytes) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        pass

    close = abort


def connected(gateway: Gateway, door: FrontDoor) -> tuple[Front, UpstreamConnection]:
    """A client, and the idle connection to the upstream that its next request gets."""
    front, upstream = Front(door), UpstreamConnection(gateway.pools["one"])
    front.connection_made(cast(asyncio.Transport, Transport()))
    upstream.connection_made(cast(asyncio.Transport, Transport()))
    gateway.pools["one"].give_back(upstream)
    return front, upstream


def costs(do: Callable[[int], None], *, cold: bool) -> str:
    """Time `do`, each by itself."""
    space, zeros = bytearray(CACHE_BYTES), bytes(CACHE_BYTES)
    found = []
    for number in range(TIMES):
        if cold:
            space[:] = zeros
        began_at = time.perf_counter_ns()
        do(number)
        found.append((time.perf_counter_ns() - began_at) / 1e3)
    return f"{sorted(found)[TIMES // 5]:7.2f} {statistics.median(found):7.2f}"


async def measure(directory: Path) -> None:
    """Print the four."""
    ledger = Ledger(directory / "w0", None, configured_models=[])
    await ledger.start()
    gateway = Gateway(CONFIG, ledger, WorkerStats())
    door = FrontDoor(lambda: gateway, asyncio.Protocol, header_timeout_s=3_600, keep_alive_s=3_600)
    streams = []
    for _ in range(STREAMS):
        front, upstream = connected(gateway, door)
        front.data_received(STREAM)
        streams.append(upstream)
    client, answering = connected(gateway, door)

    def chunk(number: int) -> None:
        streams[number % STREAMS].data_received(CHUNK)

    def exchange(number: int) -> None:
        client.data_received(PLAIN)
        answering.data_received(ANSWER)

    for upstream in streams:
        upstream.data_received(STREAM_HEAD + 5 * CHUNK)
    gc.collect()
    gc.freeze()
    for what, do in (("a chunk", chunk), ("a plain request", exchange)):
        for cold in (False, True):
            print(f"{what:16} {'cold' if cold else 'warm'} {costs(do, cold=cold)}")
    for upstream in streams:
        upstream.data_received(b"0\r\n\r\n")
    await ledger.stop()


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="meter-proxy-cold-") as directory:
        uvloop.run(measure(Path(directory)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
