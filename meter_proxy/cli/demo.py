"""`meter-proxy demo`: mock backend, real proxy, six requests over real HTTP, and the bill.

The proxy is `meter-proxy serve` as a child process with a YAML written for the occasion, so that what one
sees here is what one gets. The mock backend runs in this process and plays vLLM, which counts while it
streams: the hung-up answer is billed to the token.
"""

import asyncio
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from meter_proxy.cli.tables import Cell, counted, decimals_for, print_table, usd
from meter_proxy.config.secrets import digest
from meter_proxy.errors import CannotStart, MeterProxyError
from meter_proxy.mock_backend import MockBackend, Truth
from meter_proxy.tasks import spawn

RATE_TOKENS_PER_S = 100.0  # about what one reads off a fast model
START_WITHIN_S = 20.0
BILL_WITHIN_S = 10.0  # records are visible half a second after the settlement
STOP_WITHIN_S = 10.0
ANSWER_WITHIN_S = 30.0

EXAMPLES = (
    "meter-proxy demo",
    "meter-proxy demo --once",
)

KEYS = ("alice", "bob", "ci")
COLUMNS = ("key", "model", "input", "output", "cost", "basis", "outcome")
NUMBERS = frozenset({"input", "output", "cost"})
CHAT, COMPLETIONS = "chat/completions", "completions"

CONFIGURATION = """\
# Written by `meter-proxy demo`. All options: `meter-proxy config schema`.
listen: {listen}
admin: {admin}
workers: 2
state_dir: state

upstreams:
  mock: {{base_url: "{upstream_url}"}}

models:    # prices in USD per million tokens
  gpt-4o: {{upstream: mock, name: mock-large, price: {{input: 2.50, cached_input: 1.25, output: 10.00}}}}
  gpt-4o-mini: {{upstream: mock, name: mock-small, price: {{input: 0.15, cached_input: 0.075, output: 0.60}}}}

keys:
{keys}"""
USUAL_PORTS = ("127.0.0.1:8080", "127.0.0.1:9090")
FREE_PORTS = ("127.0.0.1:0", "127.0.0.1:0")
READY_LINE = re.compile(rb"meter-proxy: serving (?P<public>http://\S+) \(admin (?P<admin>http://\S+)\)\s*")


@dataclass(frozen=True)
class Scene:
    """One request of the demo. `key` None is a wrong key; `hang_up_after` counts events."""

    key: str | None
    model: str
    prompt: str
    path: str = CHAT
    stream: bool = True
    hang_up_after: int | None = None


SCENES = (
    Scene("alice", "gpt-4o", "Write a poem about spring"),
    Scene("alice", "gpt-4o-mini", "Write a long story", hang_up_after=10),
    Scene("bob", "gpt-4o-mini", "Once upon a time", path=COMPLETIONS),
    Scene(None, "gpt-4o", "Let me in"),
    Scene("ci", "gpt-4o", "Is this change good? Answer yes or no", stream=False),
    Scene("bob", "gpt-4o", "Say it again, in other words"),
)


@dataclass(frozen=True)
class Stage:
    """Where the demo plays: a fresh directory. It stays when the demo has ended: the books in it can be read on."""

    directory: Path
    upstream_url: str
    api_keys: Mapping[str, str]  # key id -> secret
    truths: Sequence[Truth]  # what the backend says of each request that has ended

    @property
    def config_path(self) -> Path:
        """The YAML that the proxy is started with."""
        return self.directory / "meter-proxy.yaml"

    @property
    def log_path(self) -> Path:
        """What the proxy says."""
        return self.directory / "serve.log"

    def write_config(self, listen: str, admin: str) -> None:
        """Write the YAML. It holds the digests of the keys, not the keys."""
        keys = "".join(
            f'  - {{id: {key}, secret: "{digest(secret.encode())}", quotas: unlimited}}\n'
            for key, secret in self.api_keys.items()
        )
        text = CONFIGURATION.format(listen=listen, admin=admin, upstream_url=self.upstream_url, keys=keys)
        self.config_path.write_text(text)


@dataclass(frozen=True)
class Proxy:
    """A serving child process and its addresses."""

    process: asyncio.subprocess.Process
    public_url: str
    admin_url: str


def command(
    once: Annotated[bool, typer.Option("--once", help="Exit after the bill instead of serving on.")] = False,
) -> None:
    """Show it: a fake backend, the proxy, six requests, the bill."""
    asyncio.run(_demo(once=once))


async def _demo(*, once: bool) -> None:
    """The demo from start to end. SIGINT, SIGTERM and SIGHUP end it in good order at any point."""
    this_task = asyncio.current_task()
    assert this_task is not None

    def end() -> None:
        if not this_task.cancelling():  # a second Ctrl-C must not cut the clean-up short: the proxy would be left
            this_task.cancel()

    for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGHUP: the terminal was closed
        asyncio.get_running_loop().add_signal_handler(which, end)
    with suppress(asyncio.CancelledError):
        truths: list[Truth] = []
        async with MockBackend(dialect="vllm", rate=RATE_TOKENS_PER_S, witness=truths.append) as backend:
            api_keys = {key: f"sk-mp-{key}-{secrets.token_urlsafe(18)}" for key in KEYS}
            stage = Stage(Path(tempfile.mkdtemp(prefix="meter-proxy-demo-")), backend.url, api_keys, truths)
            async with _serving(stage) as proxy:
                await _play(stage, proxy)
                _print_ways_on(stage)
                if not once:
                    _print_ways_in(stage, proxy)
                    print("\nServing until Ctrl-C.", flush=True)
                    await asyncio.Event().wait()


@asynccontextmanager
async def _serving(stage: Stage) -> AsyncIterator[Proxy]:
    """The proxy, on the usual ports or else on free ones, from its ready line to its end. Raises CannotStart."""
    proxy = await _start(stage, USUAL_PORTS) or await _start(stage, FREE_PORTS)
    if proxy is None:
        words = stage.log_path.read_text(errors="replace").strip().splitlines()
        raise CannotStart(f"the proxy did not start: {words[-1] if words else 'it said nothing'}")
    print(f"meter-proxy: serving {proxy.public_url} (admin {proxy.admin_url})", flush=True)
    reading = spawn(proxy.process.communicate(), name="demo: read on what the proxy prints")
    try:
        yield proxy
    finally:
        await _stop(proxy.process)
        await reading


async def _start(stage: Stage, ports: tuple[str, str]) -> Proxy | None:
    """Start `meter-proxy serve` and wait for its ready line; None when it gave up, with the reason in its log."""
    stage.write_config(*ports)
    with stage.log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meter_proxy", "serve", str(stage.config_path)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is ours; the proxy gets a SIGTERM when we are done with it
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_WITHIN_S):
            ready = READY_LINE.fullmatch(await process.stdout.readline())
    except TimeoutError as exc:
        await _stop(process)
        raise CannotStart(f"the proxy was not ready after {START_WITHIN_S:g} s; see {stage.log_path}") from exc
    except BaseException:
        await _stop(process)
        raise
    if ready is None:
        await _stop(process)
        return None
    return Proxy(process, ready["public"].decode(), ready["admin"].decode())


async def _stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, then SIGKILL. Harmless when it has ended."""
    for which in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            if process.returncode is None:
                # Not process.terminate(): its poll() may reap a child that just ended, and asyncio's own
                # watcher then complains on stderr that it lost one.
                os.kill(process.pid, which)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_WITHIN_S):
                await process.wait()
                return


async def _play(stage: Stage, proxy: Proxy) -> None:
    """Send the six requests, wait for their records, print the bill."""
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)) as session:
            for number, scene in enumerate(SCENES, 1):
                print(f"{number}. {await _perform(session, stage, proxy, number, scene)}", flush=True)
            records = await _records(session, proxy)
    except (aiohttp.ClientError, TimeoutError) as exc:
        raise MeterProxyError(f"the demo's proxy failed: {exc or 'it took too long'}; see {stage.log_path}") from exc
    _print_bill(records)


async def _perform(session: aiohttp.ClientSession, stage: Stage, proxy: Proxy, number: int, scene: Scene) -> str:
    """Send one request as its scene says; what happened, in one line."""
    body: dict[str, Any] = {"model": scene.model, "stream": scene.stream}
    if scene.path == CHAT:
        body["messages"] = [{"role": "user", "content": scene.prompt}]
    else:
        body["prompt"] = scene.prompt
    if scene.hang_up_after is not None:
        body["max_tokens"] = 500
    secret = stage.api_keys[scene.key] if scene.key is not None else "sk-wrong"
    headers = {"Authorization": f"Bearer {secret}", "X-Request-Id": _request_id(number)}
    who = f"{scene.key or 'a wrong key'} asks {scene.model}"
    expected_status = 401 if scene.key is None else 200
    async with session.post(f"{proxy.public_url}/v1/{scene.path}", json=body, headers=headers) as response:
        if response.status != expected_status:
            raise MeterProxyError(f"{who}: HTTP {response.status} instead of {expected_status}; see {stage.log_path}")
        if response.status == 401:
            return f"{who}: refused with 401"
        if not scene.stream:
            await response.read()
            return f"{who}: a plain answer"
        events = 0
        async for line in response.content:
            events += line.startswith(b"data:")
            if events == scene.hang_up_after:
                response.close()  # the connection, as a browser tab does
                break
        else:
            return f"{who}: a stream of {counted(events, 'event')}"
    generated_tokens = (await _truth(stage, response.headers["X-Meter-Request-Id"])).generated_tokens
    seen, generated = counted(events, "event"), counted(generated_tokens, "token")
    return f"{who}: the client hung up after {seen}; the backend had generated {generated}"


async def _truth(stage: Stage, request_id: str) -> Truth:
    """What the backend says of the request that the proxy calls `request_id`, once it has noticed its end."""
    async with asyncio.timeout(BILL_WITHIN_S):
        while True:
            for truth in stage.truths:
                if truth.client_request_id == request_id:
                    return truth
            await asyncio.sleep(0.01)


async def _records(session: aiohttp.ClientSession, proxy: Proxy) -> list[dict[str, Any]]:
    """The usage records of the admitted scenes, once all are visible, in the order of the scenes."""
    wanted = [_request_id(number) for number, scene in enumerate(SCENES, 1) if scene.key is not None]
    async with asyncio.timeout(BILL_WITHIN_S):
        while True:
            async with session.get(f"{proxy.admin_url}/api/records", params={"limit": "100"}) as response:
                response.raise_for_status()
                found = {record["client_request_id"]: record for record in (await response.json())["data"]}
            if all(request_id in found for request_id in wanted):
                return [found[request_id] for request_id in wanted]
            await asyncio.sleep(0.05)


def _request_id(number: int) -> str:
    return f"demo-{number}"


def _print_bill(records: list[dict[str, Any]]) -> None:
    """A row per request in the order of the scenes, the refused one included, and a total."""
    costs = [record["cost_nano_usd"] for record in records]
    decimals = decimals_for(costs)

    def cost(nano_usd: int) -> str:
        return f"${usd(nano_usd, decimals)}"

    rows: list[list[Cell]] = []
    remaining = iter(records)
    for scene in SCENES:
        if scene.key is None:  # a refusal makes no record; it stands in meter_proxy_requests_total
            rows.append(["unknown", scene.model, 0, 0, cost(0), "none", "denied"])
            continue
        record = next(remaining)
        counts = [record["input_tokens"], record["output_tokens"], cost(record["cost_nano_usd"])]
        rows.append([record["key"], record["model"], *counts, record["basis"], record["outcome"]])
    input_tokens = sum(record["input_tokens"] for record in records)
    output_tokens = sum(record["output_tokens"] for record in records)
    rows.append(["total", "", input_tokens, output_tokens, cost(sum(costs)), "", ""])
    print()
    print_table(COLUMNS, NUMBERS, rows)


def _print_ways_on(stage: Stage) -> None:
    """Where to look next, also when the demo has ended; each line can be copied as it is."""
    usage = [*_our_command(), "usage", str(stage.config_path)]
    print(f"\ntotals         {shlex.join(usage)}")
    print(f"configuration  {stage.config_path}")
    remove = ["rm", "-r", str(stage.directory)]
    print(f"clean-up       {shlex.join(remove)}  # until then the directory stays", flush=True)


def _print_ways_in(stage: Stage, proxy: Proxy) -> None:
    """What else there is to look at while the proxy serves; each line can be copied as it is."""
    body = '{"model": "gpt-4o", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'
    curl = [
        *("curl", "-N", f"{proxy.public_url}/v1/{CHAT}"),
        *("-H", f"Authorization: Bearer {stage.api_keys['alice']}"),
        *("-H", "Content-Type: application/json"),
        *("-d", body),
    ]
    print(f"metrics        {proxy.admin_url}/metrics")
    print(f"records        {proxy.admin_url}/api/records")
    print(f"try            {shlex.join(curl)}", flush=True)


def _our_command() -> list[str]:
    """How this program can be started again from a shell here."""
    started_as = sys.argv[0]
    if Path(started_as).name != "meter-proxy":
        return [sys.executable, "-m", "meter_proxy"]
    on_path = shutil.which("meter-proxy")
    return ["meter-proxy"] if on_path and Path(on_path).samefile(started_as) else [started_as]
