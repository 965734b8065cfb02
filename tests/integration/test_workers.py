"""`meter-proxy serve` as processes: start, death, drain, end."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from meter_proxy.ledger.reading import iter_records
from meter_proxy.usage import Outcome
from tests.support import answers
from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
from tests.support.harms import NeverAnswers, StallsAfter, Streams, StreamsOnlyWhatIsAcknowledged
from tests.support.httpraw import BrokenOff, RawClient, request_bytes
from tests.support.proc import Command, ProxyProcess, is_running, run_command, running_proxy
from tests.support.upstream import Script, ScriptedUpstream
from tests.support.waiting import until, until_async

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
EVENTS = answers.chat_stream("Hel", "lo", output_tokens=5)
ANY_PORT = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0"}
ANY_PORT_OPTIONS = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
SOME_UPSTREAM = ("--upstream", "http://127.0.0.1:9")


@contextlib.asynccontextmanager
async def proxy_before(script: Script, directory: Path, **members: Any) -> AsyncIterator[ProxyProcess]:
    """A proxy on free ports in front of a scripted upstream."""
    async with ScriptedUpstream(script) as upstream:
        path = write_config(directory, basic_config(upstream.url, directory, **{**ANY_PORT, **members}))
        async with running_proxy(path, env=ENVIRONMENT) as proxy:
            yield proxy


async def get(url: str, expected: int = 200) -> Any:
    """The JSON at `url`, on a connection of its own."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == expected
        return await response.json()


async def counters(proxy: ProxyProcess) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of every counter and histogram."""
    async with aiohttp.ClientSession() as session, session.get(f"{proxy.admin_url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            if family.type in ("counter", "histogram")
            for sample in family.samples
        }


async def total(proxy: ProxyProcess, name: str, **labels: str) -> float:
    """The sum of a counter's samples that have these labels."""
    found = await counters(proxy)
    return sum(value for (of, its), value in found.items() if of == name and labels.items() <= dict(its).items())


async def ask(proxy: ProxyProcess, *, key: str = KEY) -> int:
    """One stream, to its end; the status."""
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=key)
        await response.read()
        return response.status


async def workers(proxy: ProxyProcess) -> list[dict[str, Any]]:
    """The workers as `/api/live` shows them."""
    found: list[dict[str, Any]] = (await get(f"{proxy.admin_url}/api/live"))["workers"]
    return found


async def pids(proxy: ProxyProcess) -> list[int]:
    """The workers' pids."""
    return [worker["pid"] for worker in await workers(proxy)]


async def opened(proxy: ProxyProcess) -> tuple[RawClient, Any]:
    """A stream whose first event has arrived."""
    client = await RawClient.connect(proxy.url)
    response = await client.request("POST", CHAT, ASK, key=KEY)
    assert await response.next_event() is not None
    return client, response


# Death.


@pytest.mark.alone
async def test_a_killed_worker_is_replaced_and_no_counter_decreases(tmp_path: Path) -> None:
    """Its settled exchanges and its refusals stay counted; its successor adds to them."""
    async with proxy_before(Streams(EVENTS), tmp_path, workers=1) as proxy:
        assert [await ask(proxy), await ask(proxy, key="wrong")] == [200, 401]

        async def has_both() -> bool:
            return await total(proxy, "meter_proxy_requests_total") == 2

        await until_async(has_both, "both requests in the metrics", within_s=1.0)
        before = await counters(proxy)
        (worker,) = await pids(proxy)
        os.kill(worker, signal.SIGKILL)
        assert [await ask(proxy), await ask(proxy, key="wrong")] == [200, 401]  # no connection is refused meanwhile

        async def has_all() -> bool:
            return await total(proxy, "meter_proxy_requests_total") == 4

        await until_async(has_all, "all four requests in the metrics", within_s=2.0)
        after = await counters(proxy)
        assert {sample for sample, value in before.items() if after[sample] < value} == set()
        assert await total(proxy, "meter_proxy_requests_total", outcome="denied", code="401") == 2
        (replaced,) = await workers(proxy)
        assert (replaced["pid"] != worker, replaced["state"], replaced["restarts"]) == (True, "ready", 1)


@pytest.mark.alone
async def test_a_replacement_is_ready_at_once(tmp_path: Path) -> None:
    """It is a fork of a process that has imported everything: some 50 ms, here with patience for a busy machine."""
    async with proxy_before(Streams(EVENTS), tmp_path, workers=2) as proxy:
        for restarts in (1, 2):
            os.kill((await pids(proxy))[1], signal.SIGKILL)

            async def is_back(restarts: int = restarts) -> bool:
                worker = (await workers(proxy))[1]
                return (worker["state"], worker["restarts"]) == ("ready", restarts)

            await until_async(is_back, "the replacement", within_s=0.5)


async def test_dead_workers_leave_no_zombies(tmp_path: Path) -> None:
    """The children are the workers and the store, nothing else."""
    async with proxy_before(Streams(EVENTS), tmp_path, workers=2) as proxy:
        for pid in await pids(proxy):
            os.kill(pid, signal.SIGKILL)

        async def are_back() -> bool:
            return all(worker["restarts"] == 1 and worker["state"] == "ready" for worker in await workers(proxy))

        await until_async(are_back, "both replacements")
        assert all(map(is_running, proxy.children()))
        assert set(await pids(proxy)) < set(proxy.children())
        assert len(proxy.children()) == 3


@pytest.mark.alone
async def test_when_the_parent_is_killed_its_children_settle_and_end(tmp_path: Path) -> None:
    """Within a second; what was generated is billed; the next proxy starts on the same directory."""
    async with ScriptedUpstream(StallsAfter(EVENTS[:2])) as upstream:
        path = write_config(tmp_path, basic_config(upstream.url, tmp_path, **ANY_PORT, workers=2))
        async with running_proxy(path, env=ENVIRONMENT) as proxy:
            client, _ = await opened(proxy)
            children = proxy.children()
            assert len(children) == 3
            proxy.send_signal(signal.SIGKILL)
            await until(lambda: not any(map(is_running, children)), "the end of all children", within_s=1.2)
            await client.__aexit__(None, None, None)
        (record,) = iter_records(tmp_path / "state")
        assert record.output_tokens >= 1
        async with running_proxy(path, env=ENVIRONMENT) as proxy:
            assert (await get(f"{proxy.admin_url}/api/records"))["data"][0]["id"] == record.id


async def test_a_killed_parent_is_followed_at_once(tmp_path: Path) -> None:
    """A service manager starts the next one while the workers of the last still settle."""
    options = (*SOME_UPSTREAM, *ANY_PORT_OPTIONS, "--state-dir", tmp_path / "state")
    async with running_proxy(*options) as proxy:
        proxy.send_signal(signal.SIGKILL)
        await proxy.ended()
        async with running_proxy(*options) as successor:
            assert (await get(f"{successor.admin_url}/readyz"))["ready"]


async def test_a_dead_store_is_started_again(tmp_path: Path) -> None:
    """At the same address: the workers find it by themselves."""
    async with proxy_before(Streams(EVENTS), tmp_path, workers=1) as proxy:
        before = await pids(proxy)
        (store,) = set(proxy.children()) - set(before)
        os.kill(store, signal.SIGKILL)
        await until(lambda: len(set(proxy.children()) - {store}) == 2, "another store")
        assert await ask(proxy) == 200

        async def is_up() -> bool:
            async with aiohttp.ClientSession() as session, session.get(f"{proxy.admin_url}/metrics") as response:
                text = await response.text()
            return "\nmeter_proxy_redis_up 1\n" in text and "\nmeter_proxy_unsynced_records 0\n" in text

        await until_async(is_up, "the books in the store")
        assert await pids(proxy) == before


# What a fork takes over.


def inodes(pid: int) -> set[str]:
    """The files and sockets that a process has open."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(entry.readlink()))
    return found


async def test_workers_hold_nothing_of_the_parent(tmp_path: Path) -> None:
    """Only the two output streams: an admin connection that the parent closes is closed."""
    async with proxy_before(Streams(EVENTS), tmp_path, workers=2) as proxy, aiohttp.ClientSession() as session:
        async with session.get(f"{proxy.admin_url}/healthz"):
            pass  # the connection stays open
        first, second = await pids(proxy)
        os.kill(second, signal.SIGKILL)  # its successor is forked beside that connection

        async def is_back() -> bool:
            worker = (await workers(proxy))[1]
            return bool(worker["state"] == "ready" and worker["restarts"])

        await until_async(is_back, "the replacement")
        first, second = await pids(proxy)
        of_parent = inodes(proxy.pid)
        for _ in range(3):  # the parent reads journals, and has one open for a moment
            await asyncio.sleep(0.05)
            of_parent &= inodes(proxy.pid)
        allowed = {str(Path(f"/proc/{proxy.pid}/fd/{fd}").readlink()) for fd in (1, 2)} | {"/dev/null"}
        for pid in (first, second):
            shared = {name for name in inodes(pid) & of_parent if name not in allowed and not name.startswith("anon_")}
            listening = {name for name in shared if name.startswith("socket:")}
            assert len(listening) == 1  # its own place at the public port
            assert shared == listening
            assert str(Path(f"/proc/{pid}/fd/0").readlink()) == "/dev/null"
        assert not {name for name in inodes(first) & inodes(second) if name.startswith("socket:")}


async def test_the_parent_has_one_thread(tmp_path: Path) -> None:
    """A fork beside other threads would copy their locks as they are."""
    async with proxy_before(Streams(EVENTS), tmp_path, workers=1) as proxy:
        await ask(proxy)
        await get(f"{proxy.admin_url}/api/usage?since=1h")
        assert len(list(Path(f"/proc/{proxy.pid}/task").iterdir())) == 1


# Start.


async def test_a_second_proxy_on_the_same_state_directory_is_refused(tmp_path: Path) -> None:
    """Exit 3; the line names the directory and the process."""
    options = (*SOME_UPSTREAM, *ANY_PORT_OPTIONS, "--state-dir", tmp_path / "state")
    async with running_proxy(*options) as proxy:
        code, stdout, stderr = await run_command("serve", *options)
        assert (code, stdout) == (3, "")
        assert stderr.splitlines()[-1] == (
            f"meter-proxy: {tmp_path / 'state'} is in use by process {proxy.pid}; stop it, or use another state_dir"
        )


@pytest.mark.parametrize("option", ["--listen", "--admin"])
async def test_a_port_that_another_program_has_is_refused(tmp_path: Path, option: str) -> None:
    """Exit 3; the line names the address and the option, and nothing is left running."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        options = (*SOME_UPSTREAM, *ANY_PORT_OPTIONS, "--state-dir", tmp_path / "state", option, address)
        code, stdout, stderr = await run_command("serve", *options)
    assert (code, stdout) == (3, "")
    assert stderr == f"meter-proxy: cannot listen on {address}: address already in use; choose another with {option}\n"


async def test_two_proxies_never_share_a_port(tmp_path: Path) -> None:
    """The kernel would let them: both could ask for SO_REUSEPORT. Started together, one of them serves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = f"127.0.0.1:{free.getsockname()[1]}"
    options = (*SOME_UPSTREAM, "--listen", port, "--admin", "127.0.0.1:0", "--state-dir")
    commands = [Command(["serve", *options, str(tmp_path / name)]) for name in ("a", "b")]
    try:
        await until(lambda: [one.exit_code for one in commands].count(3) == 1, "the refusal of one of them")
        (winner,) = (one for one in commands if one.exit_code is None)
        await until(lambda: "serving" in winner.stdout, "the other one's service")
        code, _, stderr = await run_command("serve", *options, str(tmp_path / "c"))
        assert (code, "address already in use" in stderr) == (3, True)
    finally:
        for command in commands:
            await command.close()


async def test_a_store_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """Exit 3 before anything is served."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"redis://:secret@127.0.0.1:{unused.getsockname()[1]}/0"
        options = (*SOME_UPSTREAM, *ANY_PORT_OPTIONS, "--state-dir", tmp_path / "state", "--redis", url)
        code, stdout, stderr = await run_command("serve", *options)
    assert (code, stdout, len(stderr.splitlines())) == (3, "", 1)
    assert "secret" not in stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "serve --upstream http://"),
        (("some.yaml", *SOME_UPSTREAM), "both a CONFIG and an --upstream"),
        ((*SOME_UPSTREAM, "--listen", "0.0.0.0:0"), "--allow-anonymous"),
        ((*SOME_UPSTREAM, "--admin", "0.0.0.0:0"), "admin_token"),
        (("missing.yaml",), "missing.yaml:1:1: cannot read the file"),
        ((*SOME_UPSTREAM, "--workers", "0"), "--workers"),
    ],
)
async def test_wrong_usage_is_one_line_and_exit_2(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    """And nothing is written."""
    code, stdout, stderr = await run_command("serve", *arguments, cwd=tmp_path)
    assert (code, stdout) == (2, "")
    assert words in stderr
    assert list(tmp_path.iterdir()) == []


# The end.


async def test_sigterm_lets_streams_end(tmp_path: Path) -> None:
    """No new connections, not ready, the open stream complete, exit 0; and the record is there."""
    script = StreamsOnlyWhatIsAcknowledged(EVENTS)
    async with proxy_before(script, tmp_path, workers=2) as proxy:
        client, response = await opened(proxy)
        proxy.send_signal(signal.SIGTERM)

        async def is_draining() -> bool:
            assert await get(f"{proxy.admin_url}/healthz") == {"status": "ok"}
            return await is_unready(proxy)

        await until_async(is_draining, "readyz to say 503")
        await until(lambda: "waiting at most 60 s for 1 open exchange" in proxy.stderr, "the word about it")

        await until_async(lambda: refuses(proxy), "a refused connection")
        for _ in EVENTS:
            script.acknowledged.release()
        rest = await response.read()
        assert rest.endswith(answers.DONE)
        assert await proxy.ended() == 0
        await client.__aexit__(None, None, None)
    (record,) = iter_records(tmp_path / "state")
    assert (record.outcome, record.output_tokens) == (Outcome.COMPLETED, 5)


async def test_a_stop_with_nothing_open_waits_for_nothing(tmp_path: Path) -> None:
    """And says so: two lines, the beginning and the end."""
    async with proxy_before(Streams(EVENTS), tmp_path, workers=2) as proxy:
        await ask(proxy)
        before = len(proxy.stderr)
        proxy.send_signal(signal.SIGTERM)
        assert await proxy.ended() == 0
        said = [json.loads(line)["message"] for line in proxy.stderr[before:].splitlines()]
        assert said == ["stopping", "stopped"]


async def refuses(proxy: ProxyProcess) -> bool:
    """Whether nobody listens on the public port: a connection that is accepted and never served is worse."""
    try:
        client = await RawClient.connect(proxy.url)
    except ConnectionRefusedError:
        return True
    await client.__aexit__(None, None, None)
    return False


async def is_unready(proxy: ProxyProcess) -> bool:
    """Whether `/readyz` of the admin listener is a 503 that says draining."""
    async with aiohttp.ClientSession() as session, session.get(f"{proxy.admin_url}/readyz") as response:
        return response.status == 503 and (await response.json())["reasons"] == ["draining"]


async def test_what_outlasts_the_drain_time_is_cut_and_billed(tmp_path: Path) -> None:
    """The client sees a break, never a faked end."""
    limits = {"drain_timeout": "200ms"}
    async with proxy_before(StallsAfter(EVENTS[:2]), tmp_path, limits=limits) as proxy:
        client, response = await opened(proxy)
        proxy.send_signal(signal.SIGTERM)
        assert await proxy.ended() == 0
        with pytest.raises((BrokenOff, ConnectionError)):
            await response.read()
        await client.__aexit__(None, None, None)
    (record,) = iter_records(tmp_path / "state")
    assert (record.outcome, record.output_tokens) == (Outcome.DRAINED, 1)


async def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """What was generated is billed all the same."""
    async with proxy_before(StallsAfter(EVENTS[:2]), tmp_path) as proxy:
        client, _ = await opened(proxy)
        proxy.send_signal(signal.SIGINT)
        await until(lambda: "stopping" in proxy.stderr, "the drain to begin")
        proxy.send_signal(signal.SIGINT)
        assert await proxy.ended() == 0  # long before `drain_timeout`, a minute
        await client.__aexit__(None, None, None)
    (record,) = iter_records(tmp_path / "state")
    assert record.output_tokens == 1


async def test_a_worker_that_is_told_to_end_is_replaced(tmp_path: Path) -> None:
    """SIGTERM to one worker by hand: its stream ends in peace; no connection waits for it."""
    script = StreamsOnlyWhatIsAcknowledged(EVENTS)
    async with proxy_before(script, tmp_path, workers=1) as proxy:
        client, response = await opened(proxy)
        (worker,) = await pids(proxy)
        os.kill(worker, signal.SIGTERM)

        async def is_leaving() -> bool:
            return bool((await workers(proxy))[0]["state"] == "leaving")

        await until_async(is_leaving, "the worker to leave")
        await until_async(lambda: refuses(proxy), "a refused connection")  # it was the only worker
        for _ in EVENTS:
            script.acknowledged.release()
        assert (await response.read()).endswith(answers.DONE)
        await client.__aexit__(None, None, None)

        async def is_back() -> bool:
            return (await pids(proxy))[0] not in (worker, None) and (await workers(proxy))[0]["state"] == "ready"

        await until_async(is_back, "the replacement")
        for _ in EVENTS:
            script.acknowledged.release()
        assert await ask(proxy) == 200


@pytest.mark.alone
async def test_records_and_metrics_appear_in_time(tmp_path: Path) -> None:
    """Records of all workers within 0.5 s of their settlement, metrics within 1 s, in flight while it lasts."""
    async with proxy_before(Streams(EVENTS), tmp_path, workers=2) as proxy:
        for number in range(1, 6):
            await ask(proxy)

            async def is_shown(number: int = number) -> bool:
                return len((await get(f"{proxy.admin_url}/api/records"))["data"]) == number

            await until_async(is_shown, "the record", within_s=0.5)
        assert await total(proxy, "meter_proxy_tokens_total", type="output") == 25


@pytest.mark.alone
async def test_what_is_in_flight_is_shown_by_model(tmp_path: Path) -> None:
    """While it lasts."""
    async with proxy_before(NeverAnswers(), tmp_path) as proxy:
        client = await RawClient.connect(proxy.url)
        await client.send(request_bytes("POST", CHAT, ASK, key=KEY))

        def shows(count: int) -> Callable[[], Any]:
            async def is_shown() -> bool:
                inflight: dict[str, int] = (await get(f"{proxy.admin_url}/api/live"))["inflight"]
                return sum(inflight.values()) == count

            return is_shown

        await until_async(shows(1), "the exchange in flight")
        client.close_rst()
        await until_async(shows(0), "its end")

        async def is_counted() -> bool:
            return await total(proxy, "meter_proxy_disconnects_total", phase="before_first_token") == 1

        await until_async(is_counted, "the hang-up in the metrics", within_s=1.0)
