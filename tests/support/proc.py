"""The command `meter-proxy` as a child process, as an operator starts it.

    async with running_proxy(config_path) as proxy:
        proxy.url, proxy.admin_url, proxy.pid, proxy.children(), proxy.stderr

Output goes to files, so that a test which does not read it never blocks the process. At the end of the
block the process gets SIGTERM, then SIGKILL; children of its that outlive it are ended by pid and fail the test.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from tests.support.waiting import PATIENCE_S, until

REPOSITORY = Path(__file__).resolve().parents[2]
_PROXY_READY = re.compile(r"^meter-proxy: serving (http://\S+) \(admin (http://\S+)\)$", re.MULTILINE)
_MOCK_READY = re.compile(r"^mock-backend: serving (http://\S+)$", re.MULTILINE)


class Command:
    """One run of `python -m meter_proxy ARGUMENTS...`."""

    def __init__(
        self, arguments: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """Start it. `env` is added to a minimal environment; `cwd` is a fresh directory by default."""
        self._home = tempfile.TemporaryDirectory(prefix="meter-proxy-test-")
        home = Path(self._home.name)
        self._stdout_path, self._stderr_path = home / "stdout", home / "stderr"
        base = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        with self._stdout_path.open("wb") as stdout, self._stderr_path.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "meter_proxy", *map(str, arguments)],
                cwd=cwd or home,
                env={**base, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )

    @property
    def pid(self) -> int:
        """The process' id."""
        return self._process.pid

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._stdout_path.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has complained about so far."""
        return self._stderr_path.read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll()

    def children(self) -> list[int]:
        """The pids of its direct children, oldest first; empty once it has ended."""
        return children_of(self.pid)

    def send_signal(self, which: signal.Signals) -> None:
        """Send a signal to the process itself (not its children); nothing when it has ended."""
        self._process.send_signal(which)

    async def printed(self, pattern: re.Pattern[str], *, within_s: float = PATIENCE_S) -> re.Match[str]:
        """Wait until stdout matches; AssertionError with all it said when it ends or takes too long."""

        def look() -> re.Match[str] | None:
            found = pattern.search(self.stdout)
            if found is None and self.exit_code is not None:
                raise AssertionError(f"ended with {self.exit_code}")
            return found

        try:
            return await until(look, f"{pattern.pattern!r} on stdout", within_s=within_s)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.stdout}\n{self.stderr}") from None

    async def ended(self, *, within_s: float = PATIENCE_S) -> int:
        """Wait for its end; the exit code."""
        await until(lambda: self.exit_code is not None, f"end of pid {self.pid}", within_s=within_s)
        return self._process.returncode

    async def close(self) -> None:
        """End it if it runs. AssertionError when children of it live on; they are killed."""
        children = self.children()
        with contextlib.suppress(AssertionError):
            self.send_signal(signal.SIGTERM)
            await self.ended()
        if self.exit_code is None:
            children = self.children()
            self._process.kill()
            await self.ended()
        try:
            await until(lambda: not any(map(is_running, children)), f"end of the children {children}")
        except AssertionError:
            for pid in filter(is_running, children):
                os.kill(pid, signal.SIGKILL)
            raise
        finally:
            self._home.cleanup()


class ProxyProcess(Command):
    """`meter-proxy serve`, ready."""

    url = ""  # of the public listener, without a path
    admin_url = ""

    @property
    def base_url(self) -> str:
        """What an OpenAI client calls its base URL."""
        return f"{self.url}/v1"


@contextlib.asynccontextmanager
async def running_proxy(
    *arguments: str | Path, env: Mapping[str, str] | None = None, within_s: float = PATIENCE_S
) -> AsyncIterator[ProxyProcess]:
    """`meter-proxy serve ARGUMENTS...`, from its ready line to its end."""
    proxy = ProxyProcess(["serve", *arguments], env=env)
    try:
        ready = await proxy.printed(_PROXY_READY, within_s=within_s)
        proxy.url, proxy.admin_url = ready[1], ready[2]
        yield proxy
    finally:
        await proxy.close()


@contextlib.asynccontextmanager
async def running_mock_backend(*arguments: str | Path) -> AsyncIterator[str]:
    """`meter-proxy mock-backend ARGUMENTS...` on a free port; its base URL."""
    backend = Command(["mock-backend", "--listen", "127.0.0.1:0", *arguments])
    try:
        yield (await backend.printed(_MOCK_READY))[1]
    finally:
        await backend.close()


async def run_command(
    *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None, within_s: float = PATIENCE_S
) -> tuple[int, str, str]:
    """Run a command to its end: exit code, stdout, stderr."""
    command = Command(arguments, env=env, cwd=cwd)
    try:
        code = await command.ended(within_s=within_s)
        return code, command.stdout, command.stderr
    finally:
        await command.close()


def is_running(pid: int) -> bool:
    """Whether a process lives (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def children_of(pid: int) -> list[int]:
    """The pids of a process' children; none of one that is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
