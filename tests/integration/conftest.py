"""One store for all in-process proxies of a run: their state directories differ, so do their journals."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.support.inprocess import InProcessProxy, Lane, in_process_proxy
from tests.support.servers import StoreServer
from tests.support.upstream import Script, ScriptedUpstream

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
StartProxy = Callable[..., Awaitable[tuple[InProcessProxy, ScriptedUpstream]]]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """The loop that workers run on; a host application may well run on asyncio's own."""
    if item.path.name == "test_plugin.py":
        return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Valkey that lives as long as the run."""
    with StoreServer.valkey(tmp_path_factory.mktemp("store")) as server:
        yield server.url


@pytest.fixture(params=["front", "aiohttp"])
def lane(request: pytest.FixtureRequest) -> Lane:
    """The ways that a request may come in: what is promised is promised for both."""
    way: Lane = request.param
    return way


@pytest.fixture
async def start(shared_store: str, tmp_path: Path, lane: Lane) -> AsyncIterator[StartProxy]:
    """`proxy, upstream = await start(script, **members_of_the_configuration)`"""
    async with AsyncExitStack() as stack:

        async def start_both(script: Script, **members: Any) -> tuple[InProcessProxy, ScriptedUpstream]:
            upstream = await stack.enter_async_context(ScriptedUpstream(script))
            options = members.pop("upstream", {})
            upstreams = {"local": {"base_url": upstream.url, "running_usage": "off", **options}}
            proxy = await stack.enter_async_context(
                in_process_proxy(upstream.url, tmp_path, shared_store, upstreams=upstreams, lane=lane, **members)
            )
            return proxy, upstream

        yield start_both
