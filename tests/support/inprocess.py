"""A proxy in the test's own process and loop: the worker's application, as served, with its books in sight.

async with in_process_proxy(upstream.url, tmp_path, store.url) as proxy:
    client = await RawClient.connect(proxy.url)
    ...
    record = await proxy.record()
"""

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from aiohttp import web

from meter_proxy.app import build_app, front_door, listening
from meter_proxy.config.load import load_config
from meter_proxy.gateway.gateway import Gateway
from meter_proxy.ledger.slots import Slot
from meter_proxy.plugin import MeterProxy
from meter_proxy.usage import UsageRecord
from tests.support.config import ENVIRONMENT, basic_config, write_config
from tests.support.waiting import until

Lane: TypeAlias = Literal["front", "aiohttp"]


class InProcessProxy:
    """A serving proxy. `records` are the settled exchanges in the order of their settlement."""

    def __init__(self, installed: MeterProxy) -> None:
        self.url = ""
        self.records: list[UsageRecord] = []
        self._installed = installed

    @property
    def gateway(self) -> Gateway:
        """The running gateway."""
        return self._installed.gateway

    async def record(self, count: int = 1) -> UsageRecord:
        """Wait for the `count`-th settlement; its record."""
        await until(lambda: len(self.records) >= count, f"{count} settled exchanges")
        assert len(self.records) == count, f"more than {count} records: {self.records}"
        return self.records[-1]

    def listen_in(self) -> None:
        """Keep a copy of everything that is settled from now on."""
        ledger = self.gateway.ledger
        settle = ledger.settle

        def settle_and_copy(record: UsageRecord, slot: Slot | None = None, **more: Any) -> None:
            settle(record, slot, **more)
            self.records.append(record)

        ledger.settle = settle_and_copy  # type: ignore[method-assign]


@contextlib.asynccontextmanager
async def in_process_proxy(
    upstream_url: str,
    directory: Path,
    store_url: str,
    *,
    environment: dict[str, str] | None = None,
    lane: Lane = "front",
    **members: Any,
) -> AsyncIterator[InProcessProxy]:
    """Serve `basic_config(upstream_url)` with `members` on a free loopback port.

    `lane` front: as `serve` does; aiohttp: as the plugin does, all requests by aiohttp's server.
    """
    path = write_config(directory, basic_config(upstream_url, directory, **members))
    config = load_config(path, environment or ENVIRONMENT)
    installed = MeterProxy(config, store_url=store_url)
    served = serving(build_app(installed)) if lane == "aiohttp" else serving_in_front(installed)
    async with served as url:
        proxy = InProcessProxy(installed)
        proxy.url = url
        proxy.listen_in()
        yield proxy


@contextlib.asynccontextmanager
async def serving_in_front(installed: MeterProxy) -> AsyncIterator[str]:
    """The worker's own server on a free loopback port; its base URL with /v1."""
    runner = web.AppRunner(build_app(installed), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    sock = socket.create_server(("127.0.0.1", 0))
    door = front_door(runner, installed)
    try:
        async with listening(door, sock):
            yield f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
    finally:
        await installed.drain()
        door.close()
        await runner.cleanup()


@contextlib.asynccontextmanager
async def serving(app: web.Application, **runner_options: Any) -> AsyncIterator[str]:
    """Any aiohttp application on a free loopback port; its base URL with /v1."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, **runner_options)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        await runner.cleanup()
