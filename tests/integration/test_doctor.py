"""`doctor` before real servers, well and ill: each illness is found, and nothing is found that is not there."""

from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from redis import Redis

from meter_proxy.cli import front, servers
from meter_proxy.cli.findings import Finding, Level
from meter_proxy.config.load import load_config
from meter_proxy.config.schema import Config
from meter_proxy.mock_backend import MockBackend
from tests.support.config import ENVIRONMENT, basic_config, write_config
from tests.support.proc import run_command, running_mock_backend, running_proxy
from tests.support.servers import StoreServer, free_port
from tests.support.upstream import ScriptedUpstream, UpstreamExchange


def config_of(tmp_path: Path, upstream_url: str, **members: Any) -> Config:
    """A configuration with this upstream."""
    return load_config(write_config(tmp_path, basic_config(upstream_url, tmp_path, **members)), ENVIRONMENT)


async def ask(tmp_path: Path, status: int, *headers: tuple[str, str]) -> list[Finding]:
    """What is found of an upstream that answers `GET /v1/models` so."""

    async def answer(exchange: UpstreamExchange) -> None:
        await exchange.answer(b"{}", status, headers)

    async with ScriptedUpstream(answer) as upstream:
        upstream.on_get("/v1/models", answer)
        return await servers.upstreams(config_of(tmp_path, upstream.url))


async def test_a_good_upstream_is_good_and_its_kind_is_told(tmp_path: Path) -> None:
    """By its own identity endpoints; its clock is compared."""
    async with running_mock_backend("--dialect", "vllm") as url:
        first, *others = await servers.upstreams(config_of(tmp_path, url))
        assert (first.level, first.message.partition("; ")[2]) == (
            Level.GOOD,
            "it is vLLM or TensorRT-LLM, which counts while it streams",
        )
        assert {finding.level for finding in others} <= {Level.GOOD}


@pytest.mark.parametrize(
    ("status", "level", "advice"),
    [
        (401, Level.BAD, "it wants a key"),
        (403, Level.BAD, "it wants a key"),
        (302, Level.BAD, "redirects are not followed"),
        (404, Level.NOTE, "lacks its /v1"),
        (500, Level.BAD, "look at its log"),
        (200, Level.GOOD, ""),
    ],
)
async def test_each_answer_of_an_upstream_has_its_advice(
    tmp_path: Path, status: int, level: Level, advice: str
) -> None:
    """What is wrong is not the same, so what to do is not either."""
    found = (await ask(tmp_path, status, ("Location", "http://127.0.0.1/")))[0]
    assert found.level is level
    assert advice in found.advice


async def test_an_upstream_that_is_not_there_hurts(tmp_path: Path) -> None:
    """With the system's own words."""
    (found,) = await servers.upstreams(config_of(tmp_path, f"http://127.0.0.1:{free_port()}/v1"))
    assert (found.level, found.message) == (Level.BAD, "cannot be reached: Connection refused")


async def test_a_clock_that_is_an_hour_off_hurts(tmp_path: Path) -> None:
    """By HTTP's Date."""
    found = await ask(tmp_path, 200, ("Date", formatdate(0, usegmt=True)))
    (clock,) = (finding for finding in found if finding.about.startswith("clock"))
    assert clock.level is Level.BAD
    assert "ahead" in clock.message


async def test_a_good_store_is_good(tmp_path: Path, store_server: StoreServer) -> None:
    """Its version, its policy and its speed are told."""
    config = config_of(tmp_path, "http://127.0.0.1:9/v1", redis={"url": store_server.url})
    store, clock = await servers.store(config)
    assert (store.level, clock.level) == (Level.GOOD, Level.GOOD)
    assert store.message.startswith(("Redis ", "Valkey "))
    assert "maxmemory-policy noeviction" in store.message


async def test_a_store_that_forgets_hurts(tmp_path: Path, redis_server: StoreServer) -> None:
    """An evicted counter is a quota that begins anew."""
    client = Redis.from_url(redis_server.url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.close()
    (found,) = await servers.store(config_of(tmp_path, "http://127.0.0.1:9/v1", redis={"url": redis_server.url}))
    assert found.level is Level.BAD
    assert "set maxmemory-policy to noeviction" in found.message


async def test_a_store_that_is_not_there_hurts_and_the_embedded_one_is_no_fault(tmp_path: Path) -> None:
    """serve starts the embedded one."""
    gone = config_of(tmp_path, "http://127.0.0.1:9/v1", redis={"url": f"redis://127.0.0.1:{free_port()}"})
    assert [finding.level for finding in await servers.store(gone)] == [Level.BAD]
    (embedded,) = await servers.store(config_of(tmp_path, "http://127.0.0.1:9/v1"))
    assert embedded.level is Level.NOTE


async def _in_front_of(origin: str, *, holds_back: bool) -> AsyncIterator[str]:
    """A reverse proxy that passes each read on, or collects the answer first."""

    async def handle(request: web.Request) -> web.StreamResponse:
        parts = urlsplit(origin)
        url = f"{parts.scheme}://{parts.netloc}{request.path}"
        headers = {"Content-Type": "application/json"}
        if credential := request.headers.get("Authorization"):
            headers["Authorization"] = credential
        async with ClientSession() as session, session.post(url, data=await request.read(), headers=headers) as answer:
            response = web.StreamResponse(status=answer.status)
            await response.prepare(request)
            kept = b""
            async for data in answer.content.iter_any():
                if holds_back:
                    kept += data
                else:
                    await response.write(data)
            await response.write(kept)
            return response

    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    async with TestServer(app) as server:
        yield str(server.make_url("/v1"))


@pytest.mark.parametrize(("holds_back", "level"), [(True, Level.BAD), (False, Level.GOOD)])
async def test_what_holds_a_stream_back_in_front_is_found(tmp_path: Path, holds_back: bool, level: Level) -> None:
    """The mock backend speaks at a reader's pace; only what collects its answer is blamed."""
    async with MockBackend("127.0.0.1", 0, rate=50.0) as backend:
        config = config_of(tmp_path, backend.url)
        async for url in _in_front_of(backend.url, holds_back=holds_back):
            found = await front.in_front(config, url, "", "mock-large")
            assert found.level is level, found
            assert ("proxy_buffering off" in found.advice) is holds_back


async def test_a_public_address_without_a_stream_is_said(tmp_path: Path) -> None:
    """A wrong path, or a wrong key."""
    async with MockBackend("127.0.0.1", 0, rate=50.0) as backend:
        found = await front.in_front(config_of(tmp_path, backend.url), f"{backend.url}/nope", "", "mock-large")
        assert (found.level, "status 404" in found.message) == (Level.BAD, True)


async def test_doctor_beside_a_running_serve_finds_nothing_that_hurts(tmp_path: Path) -> None:
    """The whole command, with the proxy as the public address: exit 0, and the stream is billed like any other."""
    async with running_mock_backend("--rate", "50") as upstream_url:
        config = write_config(tmp_path, basic_config(upstream_url, tmp_path))
        async with running_proxy(config, env=ENVIRONMENT) as proxy:
            env = {**ENVIRONMENT, "METER_PROXY_KEY": ENVIRONMENT["ALICE_KEY"]}
            words = ("doctor", config, "--url", proxy.base_url, "--model", "mock-large")
            code, out, err = await run_command(*words, env=env, within_s=30.0)
            assert (code, err) == (0, ""), out
            assert "good  buffering in front: none" in out
            assert "good  store (embedded): Valkey" in out
            code, out, _ = await run_command("records", config, "--format", "jsonl", env=ENVIRONMENT)
            assert (code, out.count('"completed"')) == (0, 1)
