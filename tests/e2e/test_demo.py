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

from tests.support.proc import Command, is_running, run_command

BILL_WITHIN_S = 60.0


def rows_of(stdout: str) -> list[list[str]]:
    """The bill's rows, its heading first."""
    lines = stdout.splitlines()
    heading = next(i for i, line in enumerate(lines) if line.split()[:2] == ["key", "model"])
    return [line.split() for line in lines[heading : heading + 8]]


async def test_demo_once_prints_the_bill_of_six_requests(tmp_path: Path) -> None:
    """Exit 0, the contract's columns, one hang-up billed by running usage, one refusal, a total that adds up."""
    code, stdout, stderr = await run_command("demo", "--once", env={"TMPDIR": str(tmp_path)}, within_s=BILL_WITHIN_S)
    assert (code, stderr) == (0, "")
    heading, *rows, total = rows_of(stdout)
    assert heading == ["key", "model", "input", "output", "cost", "basis", "outcome"]
    assert [row[0] for row in rows] == ["alice", "alice", "bob", "unknown", "ci", "bob"]
    hung_up, refused = rows[1], rows[3]
    assert hung_up[5:] == ["running", "client_disconnected"]
    assert 9 <= int(hung_up[3]) < 500
    assert refused[2:] == ["0", "0", "$0.0000", "none", "denied"]
    assert all(row[5:] == ["reported", "completed"] for row in rows if row not in (hung_up, refused))
    assert [int(number) for number in total[1:3]] == [sum(int(row[column]) for row in rows) for column in (2, 3)]


async def test_what_the_demo_points_to_works(tmp_path: Path) -> None:
    """While it serves: the curl command, the metrics, the usage command. Ctrl-C ends it and all it started."""
    demo = Command(["demo"], env={"TMPDIR": str(tmp_path)})
    try:
        await demo.printed(re.compile("Serving until Ctrl-C"), within_s=BILL_WITHIN_S)
        said = dict(line.split(maxsplit=1) for line in demo.stdout.splitlines() if line.count(" ") > 1)
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
    assert f"curl -N {found[1]}/v1/chat/completions" in stdout


async def shell(command: str) -> str:
    """Run a line that the demo printed, as one pastes it; its output."""
    process = await asyncio.create_subprocess_exec(
        *shlex.split(command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=os.environ
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
