"""The README is true: every command in it is run here, as it stands there, in a copy of the project.

Where the README starts somebody's model server, the mock backend takes that server's port and part.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.proc import running_mock_backend

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
MODEL_SERVERS = {"vllm serve": "vllm", "llama-server": "llamacpp", "ollama serve": "ollama"}
PORTS = {"vllm": 8000, "llamacpp": 8000, "ollama": 11434}
NOTHING: Mapping[str, str] = {}
RUN_BY = {
    "make demo": "test_make_demo",
    "make run": "test_make_run_in_front_of",
    "curl http": "test_make_run_in_front_of",
    ".venv/bin/meter-proxy records": "test_make_run_in_front_of",
    "meter-proxy keys create": "test_configuration_commands",
    "export ALICE_KEY": "test_configuration_commands",
    "meter-proxy check-config": "test_configuration_commands",
    "meter-proxy serve": "test_configuration_commands",
    "meter-proxy usage": "test_configuration_commands",
    "meter-proxy records": "test_configuration_commands",
    "meter-proxy audit": "test_configuration_commands",
    "meter-proxy top": "test_configuration_commands",
    "meter-proxy doctor": "test_configuration_commands",
    "meter-proxy import litellm": "test_configuration_commands",
    "meter-proxy repair": "test_configuration_commands",
    "make test": "the run that you are reading",
    **dict.fromkeys(MODEL_SERVERS, "the mock backend"),
}
LITELLM = """
model_list:
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY}
"""


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command of the README; continuation lines joined."""
    return [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def command_starting(prefix: str) -> str:
    """The one command (of possibly equal ones) that starts so."""
    found = {command for command in commands() if command.startswith(prefix)}
    assert len(found) == 1, found
    return found.pop()


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    """A new command in the README needs a line in RUN_BY, and a test."""
    unknown = [command for command in commands() if not any(command.startswith(prefix) for prefix in RUN_BY)]
    assert not unknown


@pytest.fixture
def project(tmp_path: Path, usual_ports: None) -> Iterator[Path]:
    """A copy of what the commands need; the environment is the project's own, made by `make`."""
    for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tmp_path / name)
        os.utime(tmp_path / name, (0, 0))  # older than the environment: `make` must not install this copy into it
    for name in ("meter_proxy", "deploy", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    yield tmp_path


@contextlib.asynccontextmanager
async def running(command: str, cwd: Path, ready: str, environment: Mapping[str, str] = NOTHING) -> AsyncIterator[None]:
    """A command of the README that goes on until it is interrupted; ended with Ctrl-C, as people do."""
    process = await asyncio.create_subprocess_shell(
        command,
        cwd=cwd,
        env={**os.environ, **environment, "PATH": f"{cwd}/.venv/bin:{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    printed = b""
    try:
        async with asyncio.timeout(120):
            while ready.encode() not in printed:
                line = await process.stdout.readline()
                assert line, printed.decode()
                printed += line
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        async with asyncio.timeout(30):
            await process.communicate()


async def run(command: str, cwd: Path, environment: Mapping[str, str] = NOTHING) -> str:
    """A command of the README that ends by itself, and well; what it prints."""
    process = await asyncio.create_subprocess_shell(
        command,
        cwd=cwd,
        env={**os.environ, **environment, "PATH": f"{cwd}/.venv/bin:{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(120):
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def test_make_demo(project: Path) -> None:
    """The first command of a newcomer: a bill with a hang-up in it."""
    out = await run(command_starting("make demo") + " ARGS=--once", project)
    for word in ("alice", "client_disconnected", "completed", "running", "reported"):
        assert word in out


@pytest.mark.parametrize("server", MODEL_SERVERS)
async def test_make_run_in_front_of(project: Path, server: str) -> None:
    """Model server, `make run`, curl, records, metrics: verbatim, on the README's own ports."""
    dialect = MODEL_SERVERS[server]
    block = next(block for block in blocks("sh") if block.startswith(server))
    make_run = next(line for line in block.splitlines() if line.startswith("make run"))
    asks = [command for command in commands() if command.startswith("curl http")]
    async with (
        running_mock_backend("--dialect", dialect, "--listen", f"127.0.0.1:{PORTS[dialect]}"),
        running(make_run, project, "serving http://127.0.0.1:8080"),
    ):
        assert "data: [DONE]" in await run(asks[0], project)
        shown = ""
        async with asyncio.timeout(10):
            while "anonymous" not in shown:
                shown = await run(command_starting(".venv/bin/meter-proxy records"), project)
        assert "completed" in shown
        assert "meter_proxy_tokens_total" in await run(asks[-1], project)


async def test_configuration_commands(project: Path) -> None:
    """Keys, check, serve, usage, records: with the README's own YAML."""
    (project / "meter-proxy.yaml").write_text(next(block for block in blocks("yaml") if block.startswith("listen")))
    name, _, secret = command_starting("export ").removeprefix("export ").partition("=")
    keys = {name: secret}
    assert "sha256:" in await run(command_starting("meter-proxy keys create"), project)
    await run(command_starting("meter-proxy check-config"), project, keys)
    async with (
        running_mock_backend("--listen", "127.0.0.1:8000"),
        running(command_starting("meter-proxy serve"), project, "serving http://127.0.0.1:8080", keys),
    ):
        await run(
            f"curl -sSf http://127.0.0.1:8080/v1/chat/completions -H 'Authorization: Bearer {secret}' "
            "-H 'Content-Type: application/json' "
            """-d '{"model": "small", "messages": [{"role": "user", "content": "Hi"}]}'""",
            project,
        )
        assert "QUOTAS" in await run(command_starting("meter-proxy top"), project)  # into a pipe: one frame
        assert "good  upstream local" in await run(command_starting("meter-proxy doctor"), project, keys)
    assert "alice" in await run(command_starting("meter-proxy usage"), project)
    assert "no difference" in await run(command_starting("meter-proxy audit"), project, keys)
    assert "nothing to do" in await run(command_starting("meter-proxy repair"), project)
    (project / "config.yaml").write_text(LITELLM)
    assert "gpt-4o:" in await run(command_starting("meter-proxy import litellm"), project)
    assert '"key":"alice"' in (await run(command_starting("meter-proxy records"), project)).replace(": ", ":")
