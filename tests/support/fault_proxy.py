"""A network that goes wrong: a TCP proxy that delays, splits, resets, stalls, half-closes and swallows, by seed.

async with FaultProxy("127.0.0.1", port, chance) as network:
    network.url; network.trouble = 0.1     # the share of connections that something happens to
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

from meter_proxy.tasks import spawn

BLOCK_BYTES = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

FAULTS = ("delay", "split", "reset", "stall", "half-close", "blackhole", "refuse")


class FaultProxy:
    """Passes bytes on, between one listener and one target; `trouble` is the share of connections with a fault."""

    def __init__(self, host: str, port: int, chance: random.Random, *, trouble: float = 0.0) -> None:
        self.trouble = trouble
        self.happened: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self._target = (host, port)
        self._chance = chance
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)

    @property
    def url(self) -> str:
        """Where to connect instead."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = spawn(self._serve(reader, writer), name="a connection")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self._chance.choice(FAULTS) if self._chance.random() < self.trouble else None
        if fault is not None:
            self.happened[fault] += 1
        if fault == "refuse":
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        after = self._chance.randrange(1, 4_000)  # bytes of the answer, before it happens
        there = spawn(self._pump(reader, far_writer, None, 0, _nothing), name="there")

        def reset() -> None:
            _reset(writer)
            _reset(far_writer)

        try:
            await self._pump(far_reader, writer, fault, after, reset)
        finally:
            there.cancel()
            for one in (writer, far_writer):
                with contextlib.suppress(OSError):
                    one.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fault: str | None,
        after: int,
        reset: Callable[[], None],
    ) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(BLOCK_BYTES):
                passed += len(data)
                if fault is not None and passed > after:
                    if await self._happens(fault, data, writer, reset):
                        return
                else:
                    writer.write(data)
                await writer.drain()
            if not writer.is_closing() and writer.can_write_eof():
                writer.write_eof()

    async def _happens(self, fault: str, data: bytes, writer: asyncio.StreamWriter, reset: Callable[[], None]) -> bool:
        """True where nothing passes any more."""
        match fault:
            case "delay":
                await asyncio.sleep(self._chance.uniform(0, 0.05))
                writer.write(data)
            case "split":
                await _bit_by_bit(writer, data, self._chance)
            case "reset":
                reset()
                return True
            case "stall":
                await asyncio.sleep(0.5)
                writer.write(data)
            case "half-close":
                writer.write(data)
                writer.write_eof()
                return True
            case "blackhole":
                await asyncio.sleep(1.0)
                reset()
                return True
        return False


async def _bit_by_bit(writer: asyncio.StreamWriter, data: bytes, chance: random.Random) -> None:
    start = 0
    while start < len(data):
        end = start + chance.randrange(1, 40)
        writer.write(data[start:end])
        await writer.drain()
        await asyncio.sleep(0)
        start = end


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


def _nothing() -> None:
    return
