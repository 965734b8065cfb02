"""HTTP/1.1 framing for both ends of the rig: pull what was received, byte exact.

Not a strict parser, and on purpose not the product's: it reads what well-formed peers send and
raises `BrokenOff` where a message ends before its framing says so.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass

from multidict import CIMultiDict

_END_OF_EVENT = re.compile(rb"\r?\n\r?\n")


class BrokenOff(Exception):
    """The connection ended inside a message. `was_reset`: by RST, else by FIN."""

    def __init__(self, where: str, *, was_reset: bool) -> None:
        super().__init__(f"the peer {'reset' if was_reset else 'closed'} the connection {where}")
        self.was_reset = was_reset


@dataclass(frozen=True)
class Head:
    """The start line and headers of a message. `raw` is every byte of it, up to and with the blank line."""

    start_line: str
    headers: CIMultiDict[str]
    raw: bytes


class MessageReader:
    """Pulls heads and bodies out of a byte source.

    `receive` returns at least one byte, or b"" at the end, or raises ConnectionError when the peer reset.
    """

    def __init__(self, receive: Callable[[], Awaitable[bytes]]) -> None:
        self._receive = receive
        self._buffer = bytearray()

    async def head(self) -> Head | None:
        """The next head; None when the peer closed cleanly between two messages."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if not await self._more("inside a head" if self._buffer else None):
                return None
        raw = self._take(end + 4)
        start_line, *lines = raw[:-4].decode("latin-1").split("\r\n")
        headers: CIMultiDict[str] = CIMultiDict()
        for line in lines:
            name, _, value = line.partition(":")
            headers.add(name, value.strip())
        return Head(start_line, headers, raw)

    async def body(self, headers: CIMultiDict[str], *, ends_with_connection: bool) -> AsyncIterator[bytes]:
        """The payload in the pieces it came in: one piece per HTTP chunk when chunked, else per read.

        `ends_with_connection`: what a body without length means; true for responses.
        """
        if "chunked" in headers.get("transfer-encoding", "").lower():
            async for piece in self._chunks():
                yield piece
        elif (length := headers.get("content-length")) is not None:
            async for piece in self._counted(int(length)):
                yield piece
        elif ends_with_connection:
            while self._buffer or await self._more(None):
                yield self._take(len(self._buffer))

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int((await self._line()).split(b";")[0], 16):
            while len(self._buffer) < size + 2:
                await self._more("inside a chunk")
            yield self._take(size + 2)[:-2]
        while await self._line():
            pass  # trailers

    async def _counted(self, length: int) -> AsyncIterator[bytes]:
        while length:
            if not self._buffer:
                await self._more(f"with {length} bytes of the body missing")
            piece = self._take(min(length, len(self._buffer)))
            length -= len(piece)
            yield piece

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            await self._more("inside chunked framing")
        return self._take(end + 2)[:-2]

    async def _more(self, where: str | None) -> bool:
        """Receive once. At the end: False if `where` is None (a good place to end), else BrokenOff."""
        try:
            data = await self._receive()
        except ConnectionError as exc:
            raise BrokenOff(where or "between two messages", was_reset=True) from exc
        if data:
            self._buffer += data
        elif where is not None:
            raise BrokenOff(where, was_reset=False)
        return bool(data)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


def head_bytes(start_line: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """A head, with its blank line. No header is added."""
    lines = [start_line, *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def chunk(payload: bytes) -> bytes:
    """One HTTP chunk. An empty payload would be the last chunk, so it gives nothing."""
    return b"%x\r\n%s\r\n" % (len(payload), payload) if payload else b""


LAST_CHUNK = b"0\r\n\r\n"


def split_events(payload: bytes) -> list[bytes]:
    """The SSE events of a payload, each with its blank line; bytes after the last blank line are the last item.

    Ends by LF LF or CRLF CRLF only; a stream of lone CRs is one item.
    """
    events = []
    start = 0
    for end in _END_OF_EVENT.finditer(payload):
        events.append(payload[start : end.end()])
        start = end.end()
    return [*events, payload[start:]] if start < len(payload) else events


def end_of_first_event(payload: bytes | bytearray) -> int | None:
    """Offset just behind the first whole event, or None if there is none yet."""
    found = _END_OF_EVENT.search(payload)
    return found.end() if found else None
