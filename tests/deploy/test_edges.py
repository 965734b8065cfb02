"""Each snippet of deploy/edge/, in the real program, in front of the real proxy."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support import answers
from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
from tests.support.edges import SNIPPETS, Edge
from tests.support.httpraw import RawClient, request_bytes
from tests.support.proc import ProxyProcess, running_proxy
from tests.support.upstream import ScriptedUpstream, UpstreamExchange
from tests.support.waiting import PATIENCE_S, until_async

EDGES: dict[str, Callable[..., Edge]] = {
    "nginx.conf": Edge.nginx,
    "haproxy.cfg": Edge.haproxy,
    "Caddyfile": Edge.caddy,
    "traefik.yaml": Edge.traefik,
    "envoy.yaml": Edge.envoy,
}
pytestmark = pytest.mark.asyncio(loop_scope="module")  # the programs are started once, not once a test

CHAT = "/v1/chat/completions"
ENVOYS_DEFAULT_S = 15.0  # of a route, for the whole answer; no other edge has a time-out for that by default
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
REPORTED = {"stream_options": {"include_usage": True}}
EVENTS = answers.chat_stream("One", " two", " three", " four", output_tokens=4)


async def test_every_snippet_is_tested() -> None:
    """A new file in deploy/edge/ needs a place in EDGES."""
    assert {path.name for path in SNIPPETS.iterdir()} == {*EDGES, "traefik-dynamic.yaml"}


@dataclass
class Chain:
    """A backend, the proxy in front of it, and one of EDGES in front of that."""

    upstream: ScriptedUpstream
    proxy: ProxyProcess
    edge: Edge

    async def record(self, model: str) -> dict[str, Any]:
        """The record of the one call that asked for `model`, once there is one."""

        async def look() -> dict[str, Any] | None:
            async with aiohttp.ClientSession() as http, http.get(f"{self.proxy.admin_url}/api/records") as response:
                found = [record for record in (await response.json())["data"] if record["model"] == model]
                assert len(found) <= 1
                return found[0] if found else None

        return await until_async(look, f"a record of {model}")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=EDGES)
async def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chain]:
    """Each edge in turn."""

    async def script(exchange: UpstreamExchange) -> None:
        raise AssertionError("each test says what the backend does")

    directory = tmp_path_factory.mktemp("chain")
    async with ScriptedUpstream(script) as upstream:
        config = write_config(directory, basic_config(upstream.url, directory))
        async with running_proxy(config, env=ENVIRONMENT) as proxy:
            with EDGES[request.param](directory / "edge", to=proxy.url) as edge:
                yield Chain(upstream, proxy, edge)


async def test_a_stream_passes_event_by_event(chain: Chain) -> None:
    """Each event is with the client before the backend sends the next; all bytes are its own; it is billed whole."""
    arrived = [asyncio.Event() for _ in EVENTS]

    async def script(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        for event, at_the_client in zip(EVENTS, arrived, strict=True):
            await exchange.send_event(event)
            await at_the_client.wait()
        await exchange.end()

    chain.upstream.then(script)
    async with await RawClient.connect(chain.edge.url) as client:
        response = await client.request("POST", CHAT, ASK | REPORTED | {"model": "whole"}, key=KEY)
        assert response.status == 200
        for event, at_the_client in zip(EVENTS, arrived, strict=True):
            assert await response.next_event() == event
            at_the_client.set()
        assert await response.next_event() is None
    billed = await chain.record("whole")
    assert (billed["outcome"], billed["output_tokens"], billed["basis"]) == ("completed", 4, "reported")


@pytest.mark.parametrize("chain", ["envoy.yaml"], indirect=True)
async def test_a_stream_may_last_longer_than_a_default(chain: Chain) -> None:
    """Events come all the time; the end is the backend's, and not the edge's."""
    began_at = time.monotonic()

    async def script(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await exchange.send_event(EVENTS[0])
        while time.monotonic() - began_at < ENVOYS_DEFAULT_S + 1:
            await exchange.send_event(EVENTS[1])
            await asyncio.sleep(0.5)
        await exchange.send_event(*EVENTS[2:])
        await exchange.end()

    chain.upstream.then(script)
    async with await RawClient.connect(chain.edge.url) as client:
        response = await client.request("POST", CHAT, ASK | REPORTED | {"model": "long"}, key=KEY)
        events = []
        while (event := await response.next_event()) is not None:
            events.append(event)
    assert (events[0], events[-1]) == (EVENTS[0], EVENTS[-1])
    assert (await chain.record("long"))["outcome"] == "completed"


@pytest.mark.parametrize("events", [0, 2], ids=["before the first event", "between two events"])
async def test_a_hang_up_reaches_the_backend(chain: Chain, events: int) -> None:
    """The edge hands it on though no event comes that would make it notice; so the backend stops generating."""
    stopped = asyncio.Event()

    async def script(exchange: UpstreamExchange) -> None:
        if events:
            await exchange.start_stream()
            await exchange.send_event(*EVENTS[:events])
        await exchange.hung_up()
        stopped.set()

    chain.upstream.then(script)
    posts = len(chain.upstream.exchanges)
    model = f"left-after-{events}"
    async with await RawClient.connect(chain.edge.url) as client:
        await client.send(request_bytes("POST", CHAT, ASK | {"model": model}, key=KEY))
        await chain.upstream.exchange(posts)
        if events:
            response = await client.response()
            assert [await response.next_event() for _ in range(events)] == EVENTS[:events]
    async with asyncio.timeout(PATIENCE_S):
        await stopped.wait()
    assert (await chain.record(model))["outcome"] == "client_disconnected"


async def test_a_failed_call_is_sent_once(chain: Chain) -> None:
    """A backend's 503 is handed on, and not tried again."""

    async def script(exchange: UpstreamExchange) -> None:
        await exchange.answer(b'{"error": {"message": "busy"}}', 503)

    chain.upstream.then(script)
    posts = len(chain.upstream.posts)
    async with await RawClient.connect(chain.edge.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        assert (response.status, await response.json()) == (503, {"error": {"message": "busy"}})
    assert len(chain.upstream.posts) == posts + 1


@pytest.mark.parametrize("path", ["/metrics", "/", "/readyz", "/api/records"])
async def test_nothing_else_is_open(chain: Chain, path: str) -> None:
    """Paths that callers do not need are not there."""
    async with await RawClient.connect(chain.edge.url) as client:
        assert (await client.request("GET", path)).status == 404
