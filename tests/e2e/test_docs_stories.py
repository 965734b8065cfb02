"""The pages that tell a story are played: their configuration, their commands, and what they show comes out.

Shown is what matters of an answer: a record or document may have more members, a reply more headers. Ports are
replaced by free ones, times and durations by words, for they are others each time.
"""

import asyncio
import contextlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml

from meter_proxy.ledger.reading import newest_records
from tests.support.httpraw import RawClient
from tests.support.pages import REPOSITORY, Block, blocks
from tests.support.proc import Command, ProxyProcess, running_proxy
from tests.support.servers import StoreServer, free_port
from tests.support.waiting import until, until_async

DOCS = REPOSITORY / "deploy" / "docs"
AWAY = "While Redis is away"  # of quotas.md: needs a Redis, and takes it away
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
_RESET = re.compile(r"^(x-ratelimit-reset-\w+|retry-after(?:-ms)?): .*$", re.MULTILINE | re.IGNORECASE)
_WINDOW = re.compile(r'"(window|day)": ?"[^"]*"')  # of GET /v1/usage


class Stage:
    """Where a page is played: its ports, made free ones; its directory; what its shell knows."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment: dict[str, str] = {}
        self.words = ""  # of the shell: functions and variables
        self.ports: dict[str, str] = {}

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    def set(self, text: str) -> str:
        """`text` with the ports of this stage."""

        def port(found: re.Match[str]) -> str:
            return f"127.0.0.1:{self.ports.setdefault(found[1], str(free_port()))}"

        return re.sub(r"127\.0\.0\.1:(\d+)", port, text)

    def write_config(self, block: Block) -> Path:
        """The page's configuration, with listeners of this stage."""
        listeners = {"listen": "127.0.0.1:8080", "admin": "127.0.0.1:9090", "workers": 1}
        config = {**listeners, **yaml.safe_load(block.text)}
        path = self.directory / "meter-proxy.yaml"
        path.write_text(self.set(yaml.safe_dump(config, sort_keys=False)))
        return path

    async def shell(self, text: str) -> str:
        """Run commands of the page with bash; what they print. They may fail: a hang-up is a failure to curl."""
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            self.set(self.words + text),
            cwd=self.directory,
            env={**os.environ, **self.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
        return out.decode()

    @contextlib.asynccontextmanager
    async def started(self, block: Block) -> AsyncIterator[ProxyProcess]:
        """Start what the block starts in the background: mock backends, and `serve`."""
        async with contextlib.AsyncExitStack() as stack:
            proxy: ProxyProcess | None = None
            for line in self.set(block.text).splitlines():
                words = shlex.split(line)
                if words[0] == "export":
                    for name, _, value in (word.partition("=") for word in words[1:]):
                        self.environment[name] = value
                    continue
                assert (words[0], words[-1]) == ("meter-proxy", "&"), line
                if words[1] == "serve":
                    arguments = words[2:-1]
                    assert arguments == ["meter-proxy.yaml"]
                    proxy = await stack.enter_async_context(
                        running_proxy(self.directory / arguments[0], env=self.environment)
                    )
                else:
                    backend = Command(words[1:-1])
                    stack.push_async_callback(backend.close)
                    await backend.printed(re.compile("serving"))
            assert proxy is not None
            yield proxy

    def newest_record(self) -> dict[str, Any]:
        """As `records --format jsonl | tail -n 1` prints it; {} where there is none."""
        for record in newest_records(self.state_dir, limit=1):
            return {name: getattr(record, name) for name in record.__struct_fields__}
        return {}


def normal(text: str) -> str:
    """`text` without what is another thing each time."""
    text = _WINDOW.sub(r'"\1": "..."', _TIME.sub("TIME", text.replace("\r", "")))
    return _RESET.sub(lambda found: f"{found[1].lower()}: SOON", text)


def differences(shown: Any, real: Any, at: str = "") -> list[str]:
    """What of `shown` is not so in `real`, each as a line; mappings may have more members than shown."""
    if isinstance(shown, dict) and isinstance(real, dict):
        return [line for name in shown for line in differences(shown[name], real.get(name, "nothing"), f"{at}.{name}")]
    if isinstance(shown, list) and isinstance(real, list) and len(shown) == len(real):
        return [line for i, one in enumerate(shown) for line in differences(one, real[i], f"{at}[{i}]")]
    return [] if shown == real else [f"{at}: shown is {shown!r}, real is {real!r}"]


def differences_of_reply(shown: str, printed: str) -> list[str]:
    """The status line and the body are as shown; of the headers those that are shown."""
    shown_head, _, shown_body = normal(shown).strip().partition("\n\n")
    head, _, body = normal(printed).strip().partition("\n\n")
    lines = {line.lower().rstrip() for line in head.splitlines()}
    missing = [f"no line {line!r}" for line in shown_head.splitlines() if line.lower().rstrip() not in lines]
    if missing:
        return [*missing, head]
    return differences(json.loads(shown_body), json.loads(body)) if shown_body else []


def differences_of_output(block: Block, printed: str) -> list[str]:
    """Between what a block shows and what was printed: a reply, a JSON document, or words."""
    match block.language:
        case "http":
            return differences_of_reply(block.text, printed)
        case "json":
            return differences(json.loads(normal(block.text)), json.loads(normal(printed)))
    return [] if normal(block.text).split() == normal(printed).split() else [f": printed is\n{printed}"]


async def settled(stage: Stage, before: str | None) -> dict[str, Any]:
    """The newest record, once it is another one than `before`, and nothing is in flight."""
    return await until(
        lambda: found if (found := stage.newest_record()) and found["id"] != before else None, "a new record"
    )


async def away_from_the_end_of_a_minute() -> None:
    """A window that ends in the middle of a case makes it another one: a minute's, and with it all longer ones."""
    left_s = 60 - time.time() % 60
    if left_s < 15:
        await asyncio.sleep(left_s)


async def test_billing_case_by_case(tmp_path: Path) -> None:
    """Each case leaves the record that the page shows behind it."""
    page = blocks(DOCS / "billing.md")
    stage = Stage(tmp_path)
    stage.write_config(next(block for block in page if block.language == "yaml"))
    start, words, *cases = [block for block in page if block.language in ("sh", "json")]
    stage.words = words.text
    wrong: list[str] = []
    shown = 0
    asking: Block | None = None
    async with stage.started(start):
        last: str | None = None
        for block in cases:
            if block.language == "sh":
                assert asking is None or "records" in asking.text, f"{asking} shows nothing"
                asking = block
                continue
            assert asking is not None, f"nothing is asked before {block}"
            await stage.shell(asking.text)
            record = await settled(stage, last)
            asking, last = None, record["id"]
            wrong += [f"{block} {block.heading}{line}" for line in differences(json.loads(block.text), record)]
            shown += 1
    assert not wrong, "\n".join(wrong)
    assert shown >= 20


async def test_quotas_by_example(tmp_path: Path) -> None:
    """Each configuration is taken over by the running proxy; each command prints what the page shows."""
    page = blocks(DOCS / "quotas.md")
    stage = Stage(tmp_path)
    start, words, *rest = [block for block in page if block.heading != AWAY]
    stage.write_config(next(block for block in rest if block.language == "yaml"))
    stage.words = words.text
    wrong: list[str] = []
    printed: str | None = None
    async with stage.started(start) as proxy:
        for block in rest:
            if block.language == "yaml":
                stage.write_config(block)
                async with await RawClient.connect(proxy.admin_url) as client:
                    response = await client.request("POST", "/-/reload")
                    assert response.status == 200, f"{block}: {await response.read()!r}"
                await away_from_the_end_of_a_minute()
                continue
            if block.language == "sh":
                assert printed is None, f"what comes before {block} shows nothing"
                printed = await stage.shell(block.text)
                continue
            assert printed is not None, f"nothing is asked before {block}"
            wrong += [f"{block} {block.heading} {line}" for line in differences_of_output(block, printed)]
            printed = None
    assert not wrong, "\n".join(wrong)


async def test_quotas_while_redis_is_away(tmp_path: Path) -> None:
    """`closed` refuses in the words that the page shows, and `/readyz` says so."""
    start, words = blocks(DOCS / "quotas.md", "sh")[:2]
    config, asking, shown = [block for block in blocks(DOCS / "quotas.md") if block.heading == AWAY]
    stage = Stage(tmp_path)
    with StoreServer.redis(tmp_path) as server:
        stage.ports["6379"] = str(server.port)
        stage.write_config(config)
        stage.words = words.text
        async with stage.started(start) as proxy:
            server.kill()

            async def is_known() -> bool:
                async with await RawClient.connect(proxy.admin_url) as client:
                    return (await client.request("GET", "/readyz")).status == 503

            await until_async(is_known, "Redis is known to be away")
            assert not differences_of_output(shown, await stage.shell(asking.text))
