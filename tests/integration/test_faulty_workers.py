"""Workers that misbehave, and what the parent makes of it."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.proc import REPOSITORY, is_running
from tests.support.waiting import PATIENCE_S, until


class FaultyParent:
    """`tests.integration.faulty_workers` as a child process."""

    def __init__(self, process: asyncio.subprocess.Process, stderr: Path) -> None:
        self.process = process
        self._stderr = stderr

    @property
    def stderr(self) -> str:
        """What it has complained about so far."""
        return self._stderr.read_text()

    @property
    def starts(self) -> int:
        """How many workers have come to life."""
        return self.stderr.count("started\n")

    async def ended(self) -> int:
        """The exit code."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    async def ready(self) -> None:
        """Wait for the ready line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            assert (await self.process.stdout.readline()).startswith(b"meter-proxy: serving ")


@contextlib.asynccontextmanager
async def parent_of(harm: str, directory: Path) -> AsyncIterator[FaultyParent]:
    """A parent whose workers do `harm`."""
    stderr = directory / "stderr"
    with stderr.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.faulty_workers", harm, str(directory / "state")),
            cwd=REPOSITORY,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
        )
    try:
        yield FaultyParent(process, stderr)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_workers_that_die_before_they_are_ready_are_not_tried_for_ever(tmp_path: Path) -> None:
    """Five times at start-up, then exit 3 with the reason; nothing is left behind."""
    async with parent_of("dies_before_ready", tmp_path) as parent:
        assert await parent.ended() == 3
        last_line = parent.stderr.splitlines()[-1]
        assert last_line == "meter-proxy: worker 0 ended with 7 before it was ready; the log says more"
        assert parent.starts == 5
        assert "Traceback" not in parent.stderr


async def test_a_worker_that_says_why_it_cannot_start_is_believed(tmp_path: Path) -> None:
    """Exit 3 at once, with its reason on one line."""
    async with parent_of("cannot_start", tmp_path) as parent:
        assert await parent.ended() == 3
        assert parent.stderr.splitlines()[-1] == "meter-proxy: the moon is; not full"
        assert parent.starts == 1


async def test_a_crash_loop_does_not_eat_the_machine(tmp_path: Path) -> None:
    """Replaced at once a few times, then with pauses; and it can still be stopped."""
    async with parent_of("dies_when_ready", tmp_path) as parent:
        await parent.ready()
        await until(lambda: "again; next try in" in parent.stderr, "a pause")
        assert parent.starts <= 6
        parent.process.terminate()
        assert await parent.ended() == 0


@pytest.mark.alone
async def test_a_worker_that_hangs_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    """Else the state directory would stay in use, and nobody would know by whom."""
    async with parent_of("hangs", tmp_path) as parent:
        await parent.ready()
        pid = parent.process.pid
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        assert len(children) == 2
        parent.process.kill()
        try:
            await until(lambda: not any(map(is_running, children)), "the end of all children", within_s=2.0)
        finally:
            for child in filter(is_running, children):
                os.kill(child, signal.SIGKILL)


async def test_a_worker_that_hangs_is_killed_at_the_end(tmp_path: Path) -> None:
    """After the drain time and what a worker may take after it."""
    async with parent_of("hangs", tmp_path) as parent:
        await parent.ready()
        parent.process.terminate()
        assert await parent.ended() == 0
        assert "does not end; killing it" in parent.stderr
