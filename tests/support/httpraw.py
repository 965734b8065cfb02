"""RawClient: an HTTP/1.1 client that misbehaves exactly as told.

It works on a bare non-blocking socket, without a transport that reads ahead: it reads only when a test
asks for something. A client that "ceases to read" is therefore one that is asked for nothing more;
`receive_buffer_bytes` bounds what the kernel takes in for it meanwhile.
"""

import asyncio
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from multidict import CIMultiDict

from tests.support.waiting import PATIENCE_S
from tests.support.wire import BrokenOff, Head, MessageReader, end_of_first_event, head_bytes

__all__ = ["BrokenOff", "RawClient", "RawResponse", "request_bytes"]

_STATUS_LINE = re.compile(r"HTTP/1\.[01] (\d{3}) ?(.*)")
_READ_BYTES = 65536


class RawResponse:
    """One response, read only as far as a test asks. Payload bytes are exact; framing is taken off."""

    def __init__(self, head: Head, pieces: AsyncIterator[bytes], timeout_s: float) -> None:
        match = _STATUS_LINE.fullmatch(head.start_line)
        if match is None:
            raise AssertionError(f"not a status line: {head.start_line!r}")
        self.status = int(match[1])
        self.reason = match[2]
        self.headers = head.headers
        self.raw_head = head.raw
        self.received = bytearray()  # all payload read so far, also when the answer then broke off
        self._pieces = pieces
        self._timeout_s = timeout_s
        self._handed_out = 0  # payload bytes that next_piece() and next_event() have returned

    async def next_piece(self) -> bytes | None:
        """The next payload as it was framed: one HTTP chunk when chunked. None at the body's end.

        Raises BrokenOff if the connection ended first, TimeoutError if nothing came.
        """
        piece = await self._pull()
        self._handed_out = len(self.received)
        return piece

    async def next_event(self) -> bytes | None:
        """The next SSE event with its blank line. None at the body's end; a tail without blank line is dropped.

        Raises as next_piece().
        """
        while True:
            pending = self.received[self._handed_out :]
            if (end := end_of_first_event(pending)) is not None:
                self._handed_out += end
                return bytes(pending[:end])
            if await self._pull() is None:
                return None

    async def read(self) -> bytes:
        """The whole payload from its first byte. Raises as next_piece(); `received` then holds what came."""
        while await self._pull() is not None:
            pass
        return bytes(self.received)

    async def json(self) -> Any:
        """The whole payload, parsed."""
        return json.loads(await self.read())

    async def _pull(self) -> bytes | None:
        async with asyncio.timeout(self._timeout_s):
            piece = await anext(self._pieces, None)
        if piece is not None:
            self.received += piece
        return piece


class RawClient:
    """One connection. Requests one after another on it are keep-alive."""

    def __init__(self, sock: socket.socket, host: str, timeout_s: float) -> None:
        self._sock = sock
        self._host = host
        self._timeout_s = timeout_s
        self._reader = MessageReader(self._receive)

    @classmethod
    async def connect(
        cls, url: str, *, receive_buffer_bytes: int | None = None, timeout_s: float = PATIENCE_S
    ) -> "RawClient":
        """Connect to the host and port of `url`; its path is ignored. `timeout_s` bounds every later wait."""
        parts = urlsplit(url)
        if parts.hostname is None or parts.port is None:
            raise AssertionError(f"a URL with host and port is needed: {url!r}")
        sock = socket.socket(socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET)
        sock.setblocking(False)
        if receive_buffer_bytes is not None:  # before connect: it sets the window that is offered
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
        except BaseException:
            sock.close()
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(sock, parts.netloc, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sock.close()

    @property
    def local_port(self) -> int:
        """Our side's port: tells a server's log lines, or its connections, apart."""
        port: int = self._sock.getsockname()[1]
        return port

    async def send(self, data: bytes) -> None:
        """Send exactly these bytes."""
        async with asyncio.timeout(self._timeout_s):
            await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def request(
        self,
        method: str,
        target: str,
        body: bytes | Mapping[str, Any] | None = None,
        *,
        headers: Iterable[tuple[str, str]] = (),
        key: str | None = None,
    ) -> RawResponse:
        """Send a whole request and read the head of its answer. A mapping is sent as JSON."""
        await self.send(request_bytes(method, target, body, host=self._host, headers=headers, key=key))
        return await self.response(to_method=method)

    async def response(self, *, to_method: str = "POST") -> RawResponse:
        """Read the head of the next answer; 1xx answers are passed over. Raises BrokenOff, TimeoutError."""
        async with asyncio.timeout(self._timeout_s):
            while True:
                head = await self._reader.head()
                if head is None:
                    raise BrokenOff("before an answer", was_reset=False)
                if not head.start_line.startswith(("HTTP/1.1 1", "HTTP/1.0 1")):
                    break
        status = head.start_line[9:12]
        has_body = to_method != "HEAD" and status not in ("204", "304")
        headers = head.headers if has_body else CIMultiDict({"content-length": "0"})
        return RawResponse(head, self._reader.body(headers, ends_with_connection=True), self._timeout_s)

    async def read_to_end(self) -> bytes:
        """Every byte up to the peer's FIN, framing included. Raises ConnectionError if it resets instead."""
        received = b""
        while data := await self._receive_bounded():
            received += data
        return received

    async def ended(self) -> bool:
        """Wait for the peer's FIN or RST; True when it came with nothing before it."""
        try:
            return await self._receive_bounded() == b""
        except ConnectionError:
            return True

    def half_close(self) -> None:
        """Send a FIN, and stay able to read what still comes."""
        self._sock.shutdown(socket.SHUT_WR)

    def close_fin(self) -> None:
        """Hang up as a client that read all it got: FIN, and whatever comes later is answered with RST.

        Linux sends RST instead of FIN when unread bytes lie in the socket, so these are read off first.
        """
        try:
            while self._sock.recv(_READ_BYTES):
                pass
        except (BlockingIOError, ConnectionError):
            pass
        self._sock.close()

    def close_rst(self) -> None:
        """Hang up at once with RST, as a killed process or a lost interface does."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    async def _receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._sock, _READ_BYTES)

    async def _receive_bounded(self) -> bytes:
        async with asyncio.timeout(self._timeout_s):
            return await self._receive()


def request_bytes(
    method: str,
    target: str,
    body: bytes | Mapping[str, Any] | None = None,
    *,
    host: str = "127.0.0.1",
    headers: Iterable[tuple[str, str]] = (),
    key: str | None = None,
) -> bytes:
    """A whole request as bytes, to be sent in parts or as one. `key` becomes `Authorization: Bearer`.

    Content-Type and Content-Length are added for a body, unless `headers` has them (or a transfer encoding).
    """
    given = list(headers)
    names = {name.lower() for name, _ in given}
    lines = [] if "host" in names else [("Host", host)]
    if key is not None:
        lines.append(("Authorization", f"Bearer {key}"))
    payload = json.dumps(body).encode() if isinstance(body, Mapping) else body or b""
    if body is not None:
        if "content-type" not in names:
            lines.append(("Content-Type", "application/json"))
        if not names & {"content-length", "transfer-encoding"}:
            lines.append(("Content-Length", str(len(payload))))
    return head_bytes(f"{method} {target} HTTP/1.1", [*lines, *given]) + payload
