"""A worker misbehaves while all are to go over to another configuration: all do, or none does."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.proc import REPOSITORY
from tests.support.waiting import PATIENCE_S, until


class Parent:
    """`tests.integration.faulty_reloads` as a child process."""

    def __init__(self, stderr: Path, admin_url: str) -> None:
        self._stderr = stderr
        self._admin_url = admin_url

    @property
    def stderr(self) -> str:
        """What it and its workers have said."""
        return self._stderr.read_text()

    async def reload(self) -> tuple[int, Any]:
        """Ask for it; status and answer."""
        async with aiohttp.ClientSession() as session, session.post(f"{self._admin_url}/-/reload") as response:
            return response.status, await response.json()

    async def gauge(self) -> str:
        """`meter_proxy_config_last_reload_successful`."""
        async with aiohttp.ClientSession() as session, session.get(f"{self._admin_url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return next(line for line in lines if line.startswith("meter_proxy_config_last_reload_successful "))[-1]


@contextlib.asynccontextmanager
async def parent_of(harm: str, directory: Path) -> AsyncIterator[Parent]:
    """A parent whose second worker does `harm` at a reload."""
    stderr = directory / "stderr"
    with stderr.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.faulty_reloads", harm, str(directory / "state")),
            cwd=REPOSITORY,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            ready = (await process.stdout.readline()).decode()
        yield Parent(stderr, ready.rpartition("(admin ")[2].rstrip(")\n"))
        process.terminate()
        async with asyncio.timeout(PATIENCE_S):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_the_answer_comes_when_all_serve_by_it(tmp_path: Path) -> None:
    """Not when they were told."""
    async with parent_of("works", tmp_path) as parent:
        for seconds in (2, 3):
            assert await parent.reload() == (200, {"reloaded": True})
            assert all(f"<{index} goes over to {seconds}>" in parent.stderr for index in (0, 1))
        assert await parent.gauge() == "1"


async def test_one_worker_that_cannot_keeps_all_as_they_are(tmp_path: Path) -> None:
    """The answer says which and why, in one line; the metric says so, too."""
    async with parent_of("refuses", tmp_path) as parent:
        status, document = await parent.reload()
        assert (status, document["faults"]) == (422, ["worker 1 cannot serve by it: no; room"])
        assert "goes over" not in parent.stderr
        assert await parent.gauge() == "0"


async def test_one_worker_that_does_not_answer_keeps_all_as_they_are(tmp_path: Path) -> None:
    """What it says when it is too late counts for nothing."""
    async with parent_of("hangs", tmp_path) as parent:
        assert (await parent.reload())[1]["faults"] == ["worker 1 does not answer"]
        await asyncio.sleep(2.2)  # it wakes up, and has prepared it
        assert "goes over" not in parent.stderr


async def test_a_worker_that_dies_meanwhile_holds_up_nobody(tmp_path: Path) -> None:
    """Its successor, which began with the former configuration, goes over with the others."""
    async with parent_of("dies", tmp_path) as parent:
        assert (await parent.reload())[0] == 200
        assert "<0 goes over to 2>" in parent.stderr
        assert parent.stderr.count("<1 begins with 1>") == 2
        await until(lambda: "<1 goes over to 2>" in parent.stderr, "the successor has the new configuration")
