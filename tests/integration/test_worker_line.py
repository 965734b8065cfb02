"""The parent's end of the line to a worker."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from meter_proxy.workers.line import Line

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


async def test_a_worker_that_does_not_read_holds_up_nobody(ends: Ends) -> None:
    """What is sent waits here, and comes whole and in order."""
    ours, theirs = ends
    line = Line(ours, asyncio.get_running_loop())
    parts = [bytes([number]) * 1_000_000 for number in range(3)]
    for part in parts:
        line.send(part)
    theirs.setblocking(False)
    received = b""
    async with asyncio.timeout(5):
        while len(received) < 3_000_000:
            received += await asyncio.get_running_loop().sock_recv(theirs, 1 << 20)
    assert received == b"".join(parts)
    line.close()


async def test_lines_that_come_in_pieces_are_put_together(ends: Ends) -> None:
    ours, theirs = ends
    line = Line(ours, asyncio.get_running_loop())
    assert line.receive() == []
    theirs.send(b"ready\nprep")
    assert line.receive() == [b"ready"]
    theirs.send(b"ared 1\n")
    assert line.receive() == [b"prepared 1"]
    theirs.close()
    assert line.receive() is None
    line.close()


async def test_a_closed_line_takes_nothing_and_asks_for_nothing(ends: Ends) -> None:
    """Its worker has died with a message on the way."""
    ours, theirs = ends
    loop = asyncio.get_running_loop()
    line = Line(ours, loop)
    line.send(b"x" * 5_000_000)
    theirs.close()
    await asyncio.sleep(0.05)
    line.send(b"more")
    line.close()
    line.close()
    line.send(b"even more")
    assert ours.fileno() == -1
