"""`meter-proxy demo`, as a newcomer runs it."""

import asyncio
import contextlib
import os
import re
import shlex
import signal
import socket
import urllib.request
from pathlib import Path

import pytest

from tests.support.proc import Command, is_running, run_command

pytestmark = pytest.mark.usefixtures("usual_ports")

BILL_WITHIN_S = 60.0


def rows_of(stdout: str) -> list[list[str]]:
    """The bill's rows, its heading first."""
    lines = stdout.splitlines()
    heading = next(i for i, line in enumerate(lines) if line.split()[:2] == ["key", "model"])
    return [line.split() for line in lines[heading : heading + 8]]


async def test_demo_once_prints_the_bill_of_six_requests(tmp_path: Path) -> None:
    """Exit 0, the contract's columns, one hang-up billed by running usage, one refusal, a total that adds up.

    The hang-up's bill is what the backend says, give or take the one event that nobody was left to read.
    """
    code, stdout, stderr = await run_command("demo", "--once", env={"TMPDIR": str(tmp_path)}, within_s=BILL_WITHIN_S)
    assert (code, stderr) == (0, "")
    heading, *rows, total = rows_of(stdout)
    assert heading == ["key", "model", "input", "output", "cost", "basis", "outcome"]
    assert [row[0] for row in rows] == ["alice", "alice", "bob", "unknown", "ci", "bob"]
    hung_up, refused = rows[1], rows[3]
    assert hung_up[5:] == ["running", "client_disconnected"]
    assert 9 <= int(hung_up[3]) < 500
    said = re.search(r"^2\. .* hung up after 10 events; the backend had generated (\d+) tokens$", stdout, re.MULTILINE)
    assert said is not None
    assert 0 <= int(said[1]) - int(hung_up[3]) <= 3
    assert re.fullmatch(r"0 0 \$0\.0000+ none denied", " ".join(refused[2:]))
    assert len({len(row[-3].partition(".")[2]) for row in rows} | {len(total[-1].partition(".")[2])}) == 1
    assert all(row[5:] == ["reported", "completed"] for row in rows if row not in (hung_up, refused))
    assert [int(number) for number in total[1:3]] == [sum(int(row[column]) for row in rows) for column in (2, 3)]


async def test_after_demo_once_only_what_stays_is_pointed_to(tmp_path: Path) -> None:
    """The books and the way to be rid of them; no address where nobody answers any more."""
    _, stdout, _ = await run_command("demo", "--once", env={"TMPDIR": str(tmp_path)}, within_s=BILL_WITHIN_S)
    said = ways_on(stdout)
    assert list(said) == ["totals", "configuration", "clean-up"]
    assert stdout.count("http") == 2  # both in the ready line
    assert "alice" in await shell(said["totals"])
    (directory,) = tmp_path.iterdir()
    assert "the directory stays" in said["clean-up"]
    await shell(said["clean-up"])
    assert not directory.exists()


async def test_what_the_demo_points_to_works(tmp_path: Path) -> None:
    """While it serves: the curl command, the metrics, the usage command. Ctrl-C ends it and all it started."""
    demo = Command(["demo"], env={"TMPDIR": str(tmp_path)})
    try:
        await demo.printed(re.compile("Serving until Ctrl-C"), within_s=BILL_WITHIN_S)
        said = ways_on(demo.stdout)
        assert "data: [DONE]" in await shell(said["try"])
        with urllib.request.urlopen(said["metrics"], timeout=5) as answer:
            assert b"meter_proxy_requests_total{" in answer.read()
        assert "alice" in await shell(said["totals"])
        assert Path(said["configuration"]).is_file()
        family = descendants(demo.pid)
        assert len(family) >= 3  # the proxy's parent, its workers, the store
        demo.send_signal(signal.SIGINT)
        assert await demo.ended(within_s=20) == 0
        assert not any(map(is_running, family))
        assert "alice" in await shell(said["totals"])  # the books stay
    finally:
        await demo.close()


async def test_demo_makes_way_for_who_has_the_usual_ports(tmp_path: Path) -> None:
    """8080 taken by somebody else: the demo takes free ports and says which."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # somebody else has it already, which is as good
            stack.enter_context(socket.create_server(("127.0.0.1", 8080)))
        code, stdout, _ = await run_command("demo", "--once", env={"TMPDIR": str(tmp_path)}, within_s=BILL_WITHIN_S)
    assert code == 0
    found = re.match(r"meter-proxy: serving (http://127\.0\.0\.1:(\d+)) ", stdout)
    assert found is not None
    assert found[2] != "8080"


def ways_on(stdout: str) -> dict[str, str]:
    """What stands below the bill: name -> what to copy."""
    _, _, below = stdout.partition("\ntotal ")
    return dict(line.split(maxsplit=1) for line in below.splitlines()[2:] if line and not line.startswith("Serving"))


async def shell(command: str) -> str:
    """Run a line that the demo printed, as one pastes it; its output."""
    process = await asyncio.create_subprocess_exec(
        *shlex.split(command, comments=True),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, output
    return output.decode()


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]
