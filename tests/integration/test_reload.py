"""Reloading the configuration of a running proxy: whole or not at all; no stream is dropped, no counter reset."""

import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.support import answers
from tests.support.config import basic_config, write_config
from tests.support.harms import Streams
from tests.support.httpraw import RawClient
from tests.support.proc import ProxyProcess, running_proxy
from tests.support.upstream import Script, ScriptedUpstream, UpstreamExchange
from tests.support.waiting import until_async

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
EVENTS = answers.chat_stream("Hel", "lo", output_tokens=5)


def key(id: str, *quotas: dict[str, Any], secret: str | list[str] | None = None, **members: Any) -> dict[str, Any]:
    """A key whose secret is `sk-ID`."""
    secrets = [secret] if isinstance(secret, str) else secret or [f"sk-{id}"]
    digests = [f"sha256:{hashlib.sha256(one.encode()).hexdigest()}" for one in secrets]
    return {"id": id, "secret": digests, "quotas": list(quotas) or "unlimited", **members}


class Running:
    """A proxy with two workers, and the file that it was started with."""

    def __init__(self, proxy: ProxyProcess, directory: Path, config: dict[str, Any]) -> None:
        self.proxy = proxy
        self.directory = directory
        self.config = config

    def write(self, **members: Any) -> None:
        self.config = {**self.config, **members}
        write_config(self.directory, self.config)

    async def reload(self) -> tuple[int, Any]:
        async with aiohttp.ClientSession() as session, session.post(f"{self.proxy.admin_url}/-/reload") as response:
            return response.status, await response.json()

    async def ask(self, secret: str) -> int:
        async with await RawClient.connect(self.proxy.url) as client:
            response = await client.request("POST", CHAT, ASK, key=secret)
            await response.read()
            return response.status

    async def metric(self, name: str) -> str:
        async with aiohttp.ClientSession() as session, session.get(f"{self.proxy.admin_url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return next((line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")), "nan")


@asynccontextmanager
async def running(directory: Path, script: Script, **members: Any) -> AsyncIterator[Running]:
    async with ScriptedUpstream(script) as upstream:
        ports = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "workers": 2}
        config = basic_config(upstream.url, directory, **{**ports, **members})
        async with running_proxy(write_config(directory, config)) as proxy:
            yield Running(proxy, directory, config)


async def everywhere(running: Running, secret: str, status: int) -> None:
    """Both workers answer so: connections are spread by chance."""

    async def all_say_so() -> bool:
        return all([await running.ask(secret) == status for _ in range(8)])

    await until_async(all_say_so, f"{status} for {secret}")


async def test_keys_come_and_go_without_a_restart(tmp_path: Path) -> None:
    """By POST, by SIGHUP, and by itself when the file changes; what is disabled or expired is refused at once."""
    async with running(tmp_path, Streams(EVENTS), keys=[key("alice")]) as proxy:
        assert await proxy.ask("sk-alice") == 200
        assert await proxy.ask("sk-bob") == 401
        proxy.write(keys=[key("alice", disabled=True), key("bob")])
        assert await proxy.reload() == (200, {"reloaded": True})
        await everywhere(proxy, "sk-bob", 200)
        await everywhere(proxy, "sk-alice", 401)
        proxy.write(keys=[key("alice"), key("bob", expires_at="2020-01-01T00:00:00Z")])
        proxy.proxy.send_signal(signal.SIGHUP)
        await everywhere(proxy, "sk-alice", 200)
        await everywhere(proxy, "sk-bob", 401)
        proxy.write(keys=[key("alice", secret=["sk-alice", "sk-new"])])  # rotation: both for a while
        await everywhere(proxy, "sk-new", 200)
        await everywhere(proxy, "sk-alice", 200)


async def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    """Every fault is named; metrics say so; the old configuration is served."""
    async with running(tmp_path, Streams(EVENTS), keys=[key("alice")]) as proxy:
        proxy.write(keys=[key("alice", {"requests": 1, "per": "fortnight"}, disabled=True)])
        status, document = await proxy.reload()
        assert status == 422
        assert any("keys[0].quotas[0].per" in fault for fault in document["faults"])
        assert await proxy.metric("meter_proxy_config_last_reload_successful") == "0"
        await everywhere(proxy, "sk-alice", 200)
        proxy.write(keys=[key("alice")])
        assert (await proxy.reload())[0] == 200
        assert await proxy.metric("meter_proxy_config_last_reload_successful") == "1"


async def test_what_only_a_start_can_change_is_refused_by_name(tmp_path: Path) -> None:
    async with running(tmp_path, Streams(EVENTS), keys=[key("alice")]) as proxy:
        proxy.write(workers=1, keys=[key("bob")])
        status, document = await proxy.reload()
        assert (status, document["faults"]) == (422, ["workers cannot be changed while the proxy runs: restart it"])
        await everywhere(proxy, "sk-bob", 401)


async def test_an_edited_limit_keeps_the_count(tmp_path: Path) -> None:
    """Raised: so much more; lowered below what is used: refused."""
    async with running(tmp_path, Streams(EVENTS), keys=[key("alice", {"requests": 2, "per": "day"})]) as proxy:
        assert [await proxy.ask("sk-alice") for _ in range(3)] == [200, 200, 429]
        proxy.write(keys=[key("alice", {"requests": 4, "per": "day"})])
        assert (await proxy.reload())[0] == 200
        await asyncio.sleep(0.2)  # the workers take it one after the other
        assert [await proxy.ask("sk-alice") for _ in range(3)] == [200, 200, 429]
        proxy.write(keys=[key("alice", {"requests": 3, "per": "day"})])
        assert (await proxy.reload())[0] == 200
        await everywhere(proxy, "sk-alice", 429)


async def test_a_key_that_moves_to_another_account_takes_its_windows_along(tmp_path: Path) -> None:
    rule = {"requests": 3, "per": "day"}
    async with running(tmp_path, Streams(EVENTS), keys=[key("alice", rule)]) as proxy:
        assert [await proxy.ask("sk-alice") for _ in range(2)] == [200, 200]
        proxy.write(keys=[key("alice", rule, account="team")])
        assert (await proxy.reload())[0] == 200
        await asyncio.sleep(0.5)
        assert [await proxy.ask("sk-alice") for _ in range(2)] == [200, 429]


async def test_a_stream_lives_through_a_reload(tmp_path: Path) -> None:
    """It ends as its upstream ends it, also where that upstream is no longer configured."""
    go_on = asyncio.Event()

    async def script(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await exchange.send_event(EVENTS[0], EVENTS[1])
        await go_on.wait()
        await exchange.send_event(*EVENTS[2:])
        await exchange.end()

    async with running(tmp_path, script, keys=[key("alice")]) as proxy:
        async with await RawClient.connect(proxy.proxy.url) as client:
            response = await client.request("POST", CHAT, ASK, key="sk-alice")
            await response.next_event()
            proxy.write(
                upstreams={"other": {"base_url": "http://127.0.0.1:9/v1"}},
                models={"*": {"upstream": "other"}},
                keys=[key("bob")],
            )
            assert (await proxy.reload())[0] == 200
            await everywhere(proxy, "sk-alice", 401)
            go_on.set()
            assert (await response.read()).endswith(answers.DONE)
        await everywhere(proxy, "sk-bob", 502)


async def test_a_quota_is_seen_in_metrics(tmp_path: Path) -> None:
    """Used, limit, share and reset of a rule; refusals by rule."""
    rule = {"name": "daily", "requests": 4, "per": "day"}
    async with running(tmp_path, Streams(EVENTS), keys=[key("alice", rule)]) as proxy:
        for _ in range(5):
            await proxy.ask("sk-alice")
        labels = '{key="alice",rule="daily",unit="requests"}'

        async def shown() -> bool:
            used = await proxy.metric(f"meter_proxy_quota_used{labels}")
            refused = await proxy.metric('meter_proxy_quota_rejections_total{key="alice",rule="daily"}')
            return (float(used), float(refused)) == (4, 1)

        await until_async(shown, "the use of the quota, and the refusal")
        assert float(await proxy.metric(f"meter_proxy_quota_limit{labels}")) == 4
        assert float(await proxy.metric(f"meter_proxy_quota_usage_ratio{labels}")) == 1
        assert float(await proxy.metric(f"meter_proxy_quota_reset_timestamp_seconds{labels}")) > 1_700_000_000
