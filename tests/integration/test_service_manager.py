"""Under systemd: the real proxy tells a real notification socket how it is."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support import answers
from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
from tests.support.httpraw import RawClient
from tests.support.proc import running_proxy
from tests.support.service_manager import ServiceManagerSocket
from tests.support.upstream import ScriptedUpstream, UpstreamExchange


@pytest.mark.parametrize("is_abstract", [False, True], ids=["path", "abstract"])
async def test_ready_reloading_ready_stopping_in_this_order(tmp_path: Path, is_abstract: bool) -> None:
    """READY not before it serves; each reload is announced and ended, a refused one too; STOPPING when told to."""
    config = basic_config("http://127.0.0.1:9/v1", tmp_path)
    with ServiceManagerSocket(None if is_abstract else tmp_path) as manager:
        path = write_config(tmp_path, config)
        async with running_proxy(path, "--reload", "manual", env=ENVIRONMENT | manager.environment()) as proxy:
            (ready,) = await manager.told("READY")
            assert ready["STATUS"] == f"serving {proxy.url} (admin {proxy.admin_url})"
            proxy.send_signal(signal.SIGHUP)
            await manager.told("READY", times=2)
            write_config(tmp_path, {**config, "models": {}})
            proxy.send_signal(signal.SIGHUP)
            await manager.told("READY", times=3)
            reloads = await manager.told("RELOADING", times=2)
            stamps = [int(message["MONOTONIC_USEC"]) for message in reloads]
            assert stamps[0] < stamps[1] <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert manager.story() == ["READY", "RELOADING", "READY", "RELOADING", "READY", "STOPPING"]
        assert not any("WATCHDOG" in message for message in manager.messages)


async def test_signs_of_life_while_it_lives_and_while_it_drains(tmp_path: Path) -> None:
    """At least twice per watchdog time, also during a long drain; a parent that hangs falls silent."""

    async def script(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await exchange.send_event(answers.chat_event("Hello"))
        await exchange.hung_up()

    async with ScriptedUpstream(script) as upstream:
        with ServiceManagerSocket(tmp_path) as manager:
            config = write_config(tmp_path, basic_config(upstream.url, tmp_path))
            env = ENVIRONMENT | manager.environment(watchdog_s=0.2)
            async with running_proxy(config, env=env) as proxy, await RawClient.connect(proxy.url) as client:
                await manager.told("WATCHDOG", times=3)
                os.kill(proxy.pid, signal.SIGSTOP)
                manager.hear()
                silent = len(manager.messages)
                time.sleep(0.3)  # longer than the watchdog's time; nothing to wait for, it must not come
                assert len(manager.hear()) == silent
                os.kill(proxy.pid, signal.SIGCONT)
                ask = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
                response = await client.request("POST", "/v1/chat/completions", ask, key=KEY)
                assert await response.next_event() == answers.chat_event("Hello")
                proxy.send_signal(signal.SIGTERM)
                (stopping,) = await manager.told("STOPPING")
                assert stopping["STATUS"] == "waiting at most 60 s for open exchanges to end"
                so_far = len(await manager.told("WATCHDOG"))
                await manager.told("WATCHDOG", times=so_far + 3)
                assert proxy.exit_code is None
