"""Reloading the configuration of a running proxy: whole or not at all; no stream is dropped, no counter reset."""

import asyncio
import hashlib
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from tests.support import answers
from tests.support.config import basic_config, write_config
from tests.support.harms import Streams
from tests.support.httpraw import RawClient
from tests.support.proc import ProxyProcess, run_command, running_proxy
from tests.support.servers import StoreServer
from tests.support.upstream import Script, ScriptedUpstream, UpstreamExchange
from tests.support.waiting import until_async

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
PRICED = {"*": {"upstream": "local", "price": {"input": 1, "output": 1}}}
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
async def running(directory: Path, script: Script, *options: str, **members: Any) -> AsyncIterator[Running]:
    async with ScriptedUpstream(script) as upstream:
        ports = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "workers": 2}
        config = basic_config(upstream.url, directory, **{**ports, **members})
        async with running_proxy(write_config(directory, config), *options) as proxy:
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
        proxy.write(keys=[key("alice", secret="sk-new")])
        assert (await proxy.reload())[0] == 200
        assert {await proxy.ask("sk-alice") for _ in range(8)} == {401}  # in no worker any more
        assert {await proxy.ask("sk-new") for _ in range(8)} == {200}


async def test_a_secret_in_a_file_is_rotated_by_writing_it(tmp_path: Path) -> None:
    """The configuration itself stays as it is."""
    secret = tmp_path / "alice.key"
    secret.write_text("sk-one")
    keys = [{"id": "alice", "secret": {"file": "alice.key"}, "quotas": "unlimited"}]
    async with running(tmp_path, Streams(EVENTS), keys=keys) as proxy:
        assert await proxy.ask("sk-one") == 200
        secret.write_text("sk-two")
        await everywhere(proxy, "sk-two", 200)
        await everywhere(proxy, "sk-one", 401)


async def test_reload_manual_waits_to_be_told(tmp_path: Path) -> None:
    async with running(tmp_path, Streams(EVENTS), "--reload", "manual", keys=[key("alice")]) as proxy:
        proxy.write(keys=[key("bob")])
        await asyncio.sleep(2.5)  # twice what it takes otherwise
        assert await proxy.ask("sk-bob") == 401
        proxy.proxy.send_signal(signal.SIGHUP)
        await everywhere(proxy, "sk-bob", 200)


async def test_a_key_that_expires_ends_no_stream(tmp_path: Path) -> None:
    """Refused at its next request, by the clock alone."""
    go_on, asked = asyncio.Event(), 0

    async def only_the_first_waits(exchange: UpstreamExchange) -> None:
        nonlocal asked
        asked += 1
        await exchange.start_stream()
        await exchange.send_event(*EVENTS[:2])
        if asked == 1:
            await go_on.wait()
        await exchange.send_event(*EVENTS[2:])
        await exchange.end()

    async with (
        running(tmp_path, only_the_first_waits, keys=[key("alice"), key("bob")]) as proxy,
        await RawClient.connect(proxy.proxy.url) as client,
    ):
        response = await client.request("POST", CHAT, ASK, key="sk-alice")
        await response.next_event()
        soon = datetime.fromtimestamp(time.time() + 0.5, UTC).isoformat()
        proxy.write(keys=[key("alice", expires_at=soon), key("bob", disabled=True)])
        assert (await proxy.reload())[0] == 200
        assert await proxy.ask("sk-bob") == 401
        await everywhere(proxy, "sk-alice", 401)
        go_on.set()
        assert (await response.read()).endswith(answers.DONE)


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
        proxy.write(workers=1, usage_page=True, keys=[key("bob")])
        status, document = await proxy.reload()
        why = "cannot be changed while the proxy runs: restart it"
        assert (status, document["faults"]) == (422, [f"workers {why}", f"usage_page {why}"])
        await everywhere(proxy, "sk-bob", 401)


async def test_an_edited_limit_keeps_the_count(tmp_path: Path) -> None:
    """Raised: so much more; lowered below what is used: refused."""
    async with running(tmp_path, Streams(EVENTS), keys=[key("alice", {"requests": 2, "per": "day"})]) as proxy:
        assert [await proxy.ask("sk-alice") for _ in range(3)] == [200, 200, 429]
        proxy.write(keys=[key("alice", {"requests": 4, "per": "day"})])
        assert (await proxy.reload())[0] == 200
        assert [await proxy.ask("sk-alice") for _ in range(3)] == [200, 200, 429]
        proxy.write(keys=[key("alice", {"requests": 3, "per": "day"})])
        assert (await proxy.reload())[0] == 200
        await everywhere(proxy, "sk-alice", 429)


BUDGET = {"name": "budget", "cost_usd": 20, "per": "month"}
IN_TOKENS = {"name": "budget", "tokens": 1_000, "per": "month"}
ANOTHER_UNIT = (
    "keys[0].quotas[0]: counts tokens, but the counter 'budget' of key 'alice' is in cost_usd, "
    "and its window is not over: give the rule another `name`, under which it begins at 0"
)


async def test_a_named_rule_does_not_go_on_in_another_unit(tmp_path: Path) -> None:
    """20 dollars are 20,000,000,000 nano-dollars, and would be as many tokens; under another name it begins at 0."""
    async with running(tmp_path, Streams(EVENTS), models=PRICED, keys=[key("alice", BUDGET)]) as proxy:
        proxy.write(keys=[key("alice", IN_TOKENS)])
        status, document = await proxy.reload()
        assert (status, document["faults"]) == (422, [ANOTHER_UNIT])  # before anything is used
        assert await proxy.ask("sk-alice") == 200
        status, document = await proxy.reload()
        assert (status, len(document["faults"])) == (422, 1)
        assert document["faults"][0].endswith(ANOTHER_UNIT)
        assert await proxy.metric("meter_proxy_config_last_reload_successful") == "0"
        proxy.write(keys=[key("alice", {**IN_TOKENS, "name": "tokens"})])
        assert (await proxy.reload())[0] == 200
        await everywhere(proxy, "sk-alice", 200)
        proxy.write(keys=[key("alice", IN_TOKENS)])  # the name that was given up meanwhile
        status, document = await proxy.reload()
        assert (status, document["faults"][0].endswith(ANOTHER_UNIT)) == (422, True)


async def test_nor_over_a_restart(tmp_path: Path) -> None:
    """`serve` and `check-config` name the line and end; what another state directory holds is its own."""
    async with running(tmp_path, Streams(EVENTS), models=PRICED, keys=[key("alice", BUDGET)]) as proxy:
        assert await proxy.ask("sk-alice") == 200
    proxy.write(keys=[key("alice", IN_TOKENS)])
    path = tmp_path / "meter-proxy.yaml"
    line = next(number for number, text in enumerate(path.read_text().splitlines(), 1) if "- name: budget" in text)
    for command in ("serve", "check-config"):
        code, out, err = await run_command(command, path)
        assert code == 2
        assert f"{path}:{line}:5: {ANOTHER_UNIT}" in (out + err)
    proxy.write(state_dir=str(tmp_path / "other"))
    assert (await run_command("check-config", path))[0] == 0


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


async def test_a_quota_is_shown_before_it_is_used_and_as_it_is_configured(tmp_path: Path) -> None:
    """From the first scrape; a reload alone moves its limit, and takes it away."""
    account = {"accounts": {"team": {"quotas": [{"cost_usd": 2.5, "per": "total"}]}}, "models": PRICED}
    keys = [key("alice", {"requests": 4, "per": "day"}, account="team")]
    async with running(tmp_path, Streams(EVENTS), keys=keys, **account) as proxy:
        labels = '{key="alice",rule="requests-day",unit="requests"}'
        of_account = '{key="account:team",rule="cost_usd-total",unit="cost_usd"}'
        assert await proxy.metric(f"meter_proxy_quota_used{labels}") == "0"
        assert float(await proxy.metric(f"meter_proxy_quota_reset_timestamp_seconds{labels}")) > time.time()
        assert await proxy.metric(f"meter_proxy_quota_limit{of_account}") == "2.5"
        assert await proxy.metric(f"meter_proxy_quota_reset_timestamp_seconds{of_account}") == "nan"
        await proxy.ask("sk-alice")

        async def is_counted() -> bool:
            return await proxy.metric(f"meter_proxy_quota_usage_ratio{labels}") == "0.25"

        await until_async(is_counted, "the use")
        proxy.write(keys=[key("alice", {"requests": 2, "per": "day"})], accounts={})
        assert (await proxy.reload())[0] == 200
        assert await proxy.metric(f"meter_proxy_quota_usage_ratio{labels}") == "0.5"
        assert await proxy.metric(f"meter_proxy_quota_limit{of_account}") == "nan"
        await asyncio.sleep(1)  # what the workers say of it comes to nothing
        assert await proxy.metric(f"meter_proxy_quota_limit{labels}") == "2"
        assert await proxy.metric(f"meter_proxy_quota_limit{of_account}") == "nan"


async def test_what_others_use_of_a_quota_is_seen_too(tmp_path: Path, store_server: StoreServer) -> None:
    """Before the start, and on another machine; here nobody asks."""
    keys = [key("alice", {"requests": 9, "per": "total"}, {"concurrent": 5})]
    members = {"keys": keys, "redis": {"url": store_server.url}}
    used = 'meter_proxy_quota_used{key="alice",rule="requests-total",unit="requests"}'
    go_on = asyncio.Event()

    async def script(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await exchange.send_event(*EVENTS[:2])
        await go_on.wait()
        await exchange.send_event(*EVENTS[2:])
        await exchange.end()

    async def shows(proxy: Running, metric: str, value: str) -> None:
        async def does() -> bool:
            return await proxy.metric(metric) == value

        await until_async(does, f"{metric} {value}")

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    async with running(tmp_path / "one", Streams(EVENTS), **members) as first:
        assert await first.ask("sk-alice") == 200
    async with (
        running(tmp_path / "one", script, **members) as first,
        running(tmp_path / "two", Streams(EVENTS), **members) as second,
    ):
        await shows(first, used, "1")
        await shows(second, used, "1")
        open_now = 'meter_proxy_quota_used{key="alice",rule="concurrent",unit="concurrent"}'
        async with await RawClient.connect(first.proxy.url) as client:
            response = await client.request("POST", CHAT, ASK, key="sk-alice")
            await response.next_event()
            await shows(second, open_now, "1")
            go_on.set()
            await response.read()
        await shows(second, open_now, "0")
        await shows(second, used, "2")


async def test_readiness_tells_of_a_redis_that_is_away(tmp_path: Path, redis_server: StoreServer) -> None:
    """On both listeners: ready and a note, or not ready where a rule is closed; a reload changes which."""
    rule = {"requests": 100, "per": "day"}
    members = {"keys": [key("alice", rule)], "redis": {"url": redis_server.url, "when_down": "bounded"}}
    async with running(tmp_path, Streams(EVENTS), **members) as proxy:

        async def says(status: int, *reasons: str) -> None:
            async def does() -> bool:
                found = [await readiness(url) for url in (proxy.proxy.admin_url, proxy.proxy.url)]
                return found == [(status, {"ready": status == 200, "reasons": list(reasons)})] * 2

            await until_async(does, f"{status} {reasons}")

        assert (await readiness(proxy.proxy.admin_url))[0] == 200
        redis_server.kill()
        await says(200, "redis is away: bounded")
        proxy.write(keys=[key("alice", rule, {"tokens": 9, "per": "day", "when_down": "closed"})])
        assert (await proxy.reload())[0] == 200
        await says(503, "redis is away, and some rules are `when_down: closed`")
        redis_server.start()
        await says(200)


async def readiness(url: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/readyz") as response:
        return response.status, await response.json()


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
        denied = '{key="alice",model="m",operation="chat",outcome="denied",code="429"}'

        async def is_counted() -> bool:
            return await proxy.metric(f"meter_proxy_requests_total{denied}") == "1"

        await until_async(is_counted, "the refusal as a request")
