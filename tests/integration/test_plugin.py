"""The meter on somebody else's application: same streams, same bills, nothing else touched."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

import meter_proxy
from meter_proxy.config.load import load_config
from meter_proxy.config.schema import Config
from meter_proxy.errors import ConfigError
from meter_proxy.ledger.journal import encode_line
from meter_proxy.plugin import MeterProxy, install
from meter_proxy.quota.charge import Charge, Unit
from meter_proxy.usage import Basis, Outcome
from tests.support import answers
from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
from tests.support.harms import StallsAfter, Streams
from tests.support.httpraw import RawClient
from tests.support.inprocess import InProcessProxy, serving
from tests.support.journals import open_journal
from tests.support.records import usage_record
from tests.support.upstream import Script, ScriptedUpstream
from tests.support.waiting import until_async

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
EVENTS = answers.chat_stream("Hel", "lo")


@contextlib.asynccontextmanager
async def foreign_app(
    script: Script, directory: Path, store_url: str, *, handler_cancellation: bool
) -> AsyncIterator[tuple[InProcessProxy, list[str]]]:
    """An application with a route and a middleware of its own; the middleware keeps a log."""
    log: list[str] = []

    @web.middleware
    async def own(request: web.Request, handler: Handler) -> web.StreamResponse:
        log.append(request.path)
        return await handler(request)

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def signed(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["x-own"] = "1"

    async with ScriptedUpstream(script) as upstream:
        path = write_config(
            directory,
            basic_config(
                upstream.url, directory, upstreams={"local": {"base_url": upstream.url, "running_usage": "off"}}
            ),
        )
        app = web.Application(middlewares=[own])
        app.router.add_get("/hello", hello)
        app.on_response_prepare.append(signed)
        installed = MeterProxy(load_config(path, ENVIRONMENT), store_url=store_url)
        install(app, installed)
        async with serving(app, handler_cancellation=handler_cancellation) as url:
            proxy = InProcessProxy(installed)
            proxy.url = url
            proxy.listen_in()
            yield proxy, log


either = pytest.mark.parametrize("handler_cancellation", [False, True])


@either
async def test_streams_are_metered_on_a_foreign_app(
    tmp_path: Path, shared_store: str, handler_cancellation: bool
) -> None:
    """Its middleware, its signal and its route work as before."""
    async with foreign_app(Streams(EVENTS), tmp_path, shared_store, handler_cancellation=handler_cancellation) as (
        proxy,
        log,
    ):
        async with await RawClient.connect(proxy.url) as client:
            response = await client.request("POST", CHAT, ASK, key=KEY)
            assert response.headers["x-own"] == "1"
            assert await response.read() == b"".join(EVENTS[:-2] + EVENTS[-1:])
            hello = await client.request("GET", "/hello")
            assert await hello.read() == b"hello"
        record = await proxy.record()
        assert (record.outcome, record.basis, record.output_tokens) == (Outcome.COMPLETED, Basis.REPORTED, 2)
        assert log == [CHAT, "/hello"]


@either
async def test_hang_ups_are_noticed_on_a_foreign_app(
    tmp_path: Path, shared_store: str, handler_cancellation: bool
) -> None:
    """At once, and billed the same, whether the host cancels handlers or not."""
    async with foreign_app(
        StallsAfter(EVENTS[:2]), tmp_path, shared_store, handler_cancellation=handler_cancellation
    ) as (proxy, _):
        async with await RawClient.connect(proxy.url) as client:
            response = await client.request("POST", CHAT, ASK, key=KEY)
            for _ in range(2):
                await response.next_event()
            client.close_fin()
            record = await proxy.record()
        assert (record.outcome, record.basis, record.output_tokens) == (
            Outcome.CLIENT_DISCONNECTED,
            Basis.COUNTED,
            1,
        )


async def test_setup_takes_a_yaml_and_starts_the_embedded_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three lines of the example are all it takes."""
    async with ScriptedUpstream(Streams(EVENTS)) as upstream:
        path = write_config(tmp_path, basic_config(upstream.url, tmp_path))
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        app = web.Application()
        app.router.add_get("/metrics", meter_proxy.metrics)
        installed = meter_proxy.setup(app, str(path))
        assert app[meter_proxy.METER_PROXY] is installed
        async with serving(app) as url, await RawClient.connect(url) as client:
            response = await client.request("POST", CHAT, ASK, key=KEY)
            assert await response.read() == b"".join(EVENTS[:-2] + EVENTS[-1:])
            assert installed.gateway.ledger.store_up

            async def counted() -> bool:
                shown = await (await client.request("GET", "/metrics")).read()
                return b'meter_proxy_tokens_total{key="alice",model="m",operation="chat",type="output"} 2' in shown

            await until_async(counted, "the exchange in the application's own /metrics")


async def test_a_reload_takes_effect_at_once_or_not_at_all(
    tmp_path: Path, shared_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys, models and metrics go over together; what fails on the way leaves all as it was."""

    def config(directory: str, **members: object) -> Config:
        (tmp_path / directory).mkdir()
        keys = [{"id": directory, "secret": {"env": "ALICE_KEY"}, "quotas": [{"requests": 9, "per": "day"}]}]
        document = {"keys": keys, "state_dir": str(tmp_path / "state"), "listen": "127.0.0.1:1", **members}
        return load_config(
            write_config(tmp_path / directory, basic_config("http://127.0.0.1:9/v1", tmp_path, **document)), ENVIRONMENT
        )

    same = {"admin": "127.0.0.1:2"}
    app = web.Application()
    installed = MeterProxy(config("alice", **same), store_url=shared_store)
    app.cleanup_ctx.append(installed.measured)
    install(app, installed)

    def state() -> tuple[object, ...]:
        metrics = installed.metrics
        assert metrics is not None
        gateway = installed.gateway
        limited = {key for key, _, _ in metrics.quotas.limit.values}
        return installed.config, gateway.config, set(gateway.pools), limited

    async with serving(app):
        before = state()
        assert before[3] == {"alice"}
        with pytest.raises(ConfigError, match=r"^workers cannot be changed"):
            installed.reload(config("moved", workers=2, **same))
        assert state() == before

        def no_files_left() -> None:
            raise OSError("too many open files")

        tls = {"plain": {"base_url": "http://127.0.0.1:9/v1"}, "tls": {"base_url": "https://127.0.0.1:9/v1"}}
        good = config("bob", upstreams=tls, models={"*": {"upstream": ["plain", "tls"]}}, **same)
        with monkeypatch.context() as patched:
            patched.setattr("ssl.create_default_context", no_files_left)
            with pytest.raises(OSError, match="too many open files"):
                installed.reload(good)
        assert state() == before
        installed.reload(good)
        after = state()
        assert after[:2] == (good, good)
        assert after[3] == {"bob"}


def test_setup_refuses_a_rule_whose_counter_is_in_another_unit(tmp_path: Path) -> None:
    """As `serve` does."""
    journal = open_journal(tmp_path / "state" / "w0")
    journal.append(encode_line(usage_record(), "m1", [Charge("k", "budget", "total", Unit.COST_USD, 0)]))
    journal.close()
    rule = {"name": "budget", "tokens": 9, "per": "total"}
    keys = [{"id": "alice", "secret": {"env": "ALICE_KEY"}, "quotas": [rule]}]
    path = write_config(tmp_path, basic_config("http://127.0.0.1:9/v1", tmp_path, keys=keys))
    with pytest.raises(ConfigError, match=r"keys\[0\].quotas\[0\]: counts tokens, but .* is in cost_usd"):
        meter_proxy.setup(web.Application(), load_config(path, ENVIRONMENT))
