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
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import yaml

from meter_proxy.ledger.reading import newest_records
from tests.support.httpraw import RawClient
from tests.support.pages import REPOSITORY, Block, blocks
from tests.support.proc import Command, ProxyProcess, running_proxy
from tests.support.servers import StoreServer, free_port
from tests.support.waiting import until, until_async

DOCS = REPOSITORY / "deploy" / "docs"
MACHINES = ("Several machines",)
SMALLEST = Block(
    DOCS, 0, "", "yaml", "", 'upstreams: {l: {base_url: "http://127.0.0.1:8000/v1"}}\nmodels: {"*": {upstream: l}}\n'
)
AWAY = "While Redis is away"  # of quotas.md: needs a Redis, and takes it away
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
_RESET = re.compile(r"^(x-ratelimit-reset-\w+|retry-after(?:-ms)?): .*$", re.MULTILINE | re.IGNORECASE)
_RANDOM = re.compile(r"\b[0-9a-f]{4}\.\.\.|\b[0-9a-f]{32}\b|(?<=journal-)ID\b")  # ids of journals
_DAY = re.compile(r"(?<=:)\d{8}\b")
_BYTES = re.compile(r"(?<=at byte )\d+|\d+(?= bytes cannot)")
_STATUS = re.compile(r"^(HTTP/1\.1 \d+).*$", re.MULTILINE)  # newer Pythons have other words for some
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
        """Run commands of the page with bash; what they print, complaints of `serve` and `repair` included.

        They may fail: a hang-up is a failure to curl.
        """
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            self.set(self.words + text),
            cwd=self.directory,
            env={**os.environ, **self.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, complaints = await process.communicate()
        said = [line for line in complaints.decode().splitlines(keepends=True) if line.startswith("meter-proxy: ")]
        return ("".join(said) + out.decode()).replace(f"{self.directory}/", "")

    async def play(self, story: Iterable[Block]) -> list[str]:
        """Run each command, and compare what it prints with what is shown behind it; what is wrong."""
        wrong: list[str] = []
        printed: str | None = None
        for block in story:
            if block.language == "sh":
                printed = await self.shell(block.text)
            else:
                assert printed is not None, f"nothing is asked before {block}"
                wrong += [f"{block} {block.heading} {line}" for line in differences_of_output(block, printed)]
                printed = None
        return wrong

    @contextlib.asynccontextmanager
    async def started(self, text: str) -> AsyncIterator[list[ProxyProcess]]:
        """Start what is started in the background: mock backends, and `serve`, once or several times."""
        async with contextlib.AsyncExitStack() as stack:
            proxies: list[ProxyProcess] = []
            for line in self.set(text).splitlines():
                words = shlex.split(line)
                if words[0] == "export":
                    for name, _, value in (word.partition("=") for word in words[1:]):
                        self.environment[name] = value
                    continue
                assert (words[0], words[-1]) == ("meter-proxy", "&"), line
                if words[1] == "serve":
                    here = [self.directory / word if (self.directory / word).exists() or word[0] == "." else word
                            for word in words[2:-1]]  # fmt: skip
                    proxies.append(await stack.enter_async_context(running_proxy(*here, env=self.environment)))
                else:
                    backend = Command(words[1:-1])
                    stack.push_async_callback(backend.close)
                    await backend.printed(re.compile("serving"))
            yield proxies

    def newest_record(self) -> dict[str, Any]:
        """As `records --format jsonl | tail -n 1` prints it; {} where there is none."""
        for record in newest_records(self.state_dir, limit=1):
            return {name: getattr(record, name) for name in record.__struct_fields__}
        return {}


def normal(text: str) -> str:
    """`text` without what is another thing each time."""
    text = _WINDOW.sub(r'"\1": "..."', _TIME.sub("TIME", text.replace("\r", "")))
    text = _BYTES.sub("N", _DAY.sub("DAY", _RANDOM.sub("ID", text)))
    text = _STATUS.sub(r"\1", text)
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


def by_configuration(story: Iterable[Block]) -> Iterator[list[Block]]:
    """Each configuration, and what is played with it."""
    group: list[Block] = []
    for block in story:
        if block.language == "yaml" and group:
            yield group
            group = []
        group.append(block)
    yield group


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
    async with stage.started(start.text):
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
    async with stage.started(start.text) as (proxy,):
        for config, *story in by_configuration(rest):
            stage.write_config(config)
            async with await RawClient.connect(proxy.admin_url) as client:
                response = await client.request("POST", "/-/reload")
                assert response.status == 200, f"{config}: {await response.read()!r}"
            await away_from_the_end_of_a_minute()
            wrong += await stage.play(story)
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
        async with stage.started(start.text) as (proxy,):
            server.kill()

            async def is_known() -> bool:
                async with await RawClient.connect(proxy.admin_url) as client:
                    return (await client.request("GET", "/readyz")).status == 503

            await until_async(is_known, "Redis is known to be away")
            assert not await stage.play([asking, shown])


async def test_several_machines(tmp_path: Path) -> None:
    """Two of them on one Redis: one quota, and each one's books are right."""
    config, start, *story = [block for block in blocks(DOCS / "several-machines.md") if block.heading in MACHINES]
    stage = Stage(tmp_path)
    with StoreServer.redis(tmp_path) as server:
        stage.ports["6379"] = str(server.port)
        stage.write_config(config)
        async with stage.started(start.text):
            await away_from_the_end_of_a_minute()
            assert not await stage.play(story)


async def test_troubleshooting(tmp_path: Path) -> None:
    """Each refusal comes as it is shown, and every command runs."""
    page = [block for block in blocks(DOCS / "troubleshooting.md") if block.language != "text"]
    first, config, start, words, *story = page
    stage = Stage(tmp_path)
    stage.write_config(config)
    stage.words = words.text
    async with stage.started(start.text):
        wrong = await stage.play([first, *story])
    assert not wrong, "\n".join(wrong)


async def test_usage_api(tmp_path: Path) -> None:
    """One request, seen in each place."""
    config, start, *story = blocks(DOCS / "usage-api.md")
    stage = Stage(tmp_path)
    stage.write_config(config)
    async with stage.started(start.text):
        assert not await stage.play(block for block in story if "--follow" not in block.text)  # it never ends


START = "meter-proxy mock-backend --listen 127.0.0.1:8000 --rate 0 &\nmeter-proxy serve meter-proxy.yaml &\n"
ASK = (
    "curl -sS http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' -o /dev/null "
    """-d '{"model": "any", "messages": [{"role": "user", "content": "Hi"}]}'\n"""
)


async def test_backup_restore_and_another_redis(tmp_path: Path) -> None:
    """Three requests, a backup, two more, the restore, one more: Redis knows of six, another one of the four."""
    page = blocks(DOCS / "upgrade-and-backup.md")
    stage = Stage(tmp_path)

    def under(heading: str) -> list[Block]:
        return [block for block in page if block.heading == heading]

    wrong: list[str] = []
    with StoreServer.redis(tmp_path) as server, StoreServer.valkey(tmp_path) as another:
        stage.ports["6379"] = str(server.port)
        config = next(block for block in page if block.language == "yaml")
        stage.write_config(config)
        async with stage.started(START):
            await stage.shell(ASK * 3)
            wrong += await stage.play([*under("What is in Redis"), *under("Back up")])
            assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 3
            await stage.shell(ASK * 2)
        restoring, *looking = under("Restore")
        await stage.shell(restoring.text)
        async with stage.started(START):
            await stage.shell(ASK)
            wrong += await stage.play(looking)
        assert requests_in(server) == 6
        stage.ports["6379"] = str(another.port)
        stage.write_config(config)
        async with stage.started(START):
            wrong += await stage.play(under("Another Redis"))
        assert requests_in(another) == 4
    assert not wrong, "\n".join(wrong)


async def test_restore_with_the_embedded_store(tmp_path: Path) -> None:
    """Redis begins empty, and gets everything that the copy has."""
    backup, _ = [block for block in blocks(DOCS / "upgrade-and-backup.md", "sh") if block.heading == "Back up"]
    restore = next(block for block in blocks(DOCS / "upgrade-and-backup.md", "sh") if block.heading == "Restore")
    stage = Stage(tmp_path)
    stage.write_config(SMALLEST)
    async with stage.started(START):
        await stage.shell(ASK * 3 + backup.text + ASK * 2)
    await stage.shell(restore.text)
    async with stage.started(START):
        await stage.shell(ASK)
        printed = await stage.shell("meter-proxy audit meter-proxy.yaml")
    assert "4 records" in printed
    assert "no difference" in printed


async def test_repair(tmp_path: Path) -> None:
    """The second of five records is damaged: the start refuses, `repair` explains, then saves the others."""
    story = [block for block in blocks(DOCS / "upgrade-and-backup.md") if block.heading == "Repair"]
    stage = Stage(tmp_path)
    stage.write_config(SMALLEST)
    async with stage.started(START):
        await stage.shell(ASK * 5)
    (path,) = tmp_path.glob("state/w0/journal-*/*.log")
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b'"any"', b'"ant"', 1)
    path.write_bytes(b"\n".join(lines))
    (path.parent / "checkpoint").unlink()  # else the start need not look there
    assert not await stage.play(story)
    async with stage.started(START):
        await stage.shell(ASK)
    assert len((await stage.shell("meter-proxy records meter-proxy.yaml --format jsonl")).splitlines()) == 5


def requests_in(server: StoreServer) -> int:
    """All requests of all days and keys."""
    with server.client() as client:
        names = [str(name) for name in client.scan_iter("mp:*:usage:*")]
        return sum(int(cast(Any, client).hget(name, "any|requests") or 0) for name in names)
