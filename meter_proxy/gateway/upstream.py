"""The way to one upstream: a pool of keep-alive connections, each our own `asyncio.Protocol`.

Bytes of an answer reach the sink in the same call in which they arrived: no stream reader, no
queue, no task wake-up per chunk (measured: that layer costs more than everything else together).

Invariants: a connection serves one exchange at a time; unsolicited bytes on an idle one drop it;
it goes back into the pool only after a whole answer, with nothing left to send and nothing left over.
"""

import asyncio
import contextlib
import os
import ssl
from collections import deque
from typing import Protocol, cast
from urllib.parse import urlsplit

from meter_proxy.config.schema import Upstream
from meter_proxy.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from meter_proxy.gateway.http1 import (
    MAX_HEAD_BYTES,
    SIZES,
    BadResponse,
    ChunkedReader,
    Framing,
    Heads,
    ResponseHead,
)
from meter_proxy.gateway.watch import Times

_CHUNKED = Framing.CHUNKED  # an attribute of an enum costs 0.1 us
MAX_IDLE_CONNECTIONS = 256  # kept open per upstream and worker


class ResponseSink(Protocol):
    """Who takes one answer. Calls come in this order: head, body*, then end or broken, exactly once."""

    def on_head(self, head: ResponseHead) -> None: ...

    def on_body(self, payload: bytes, framed: bytes | None) -> None:
        """`framed`: the same payload in whole plain HTTP chunks as it came, or None."""

    def on_end(self) -> None: ...

    def on_broken(self, error: UpstreamError, *, untouched: bool) -> None:
        """The connection ended before the answer did. `untouched`: not one byte of an answer had come."""


class UpstreamConnection(asyncio.Protocol):
    """One connection. `send` a request, and the answer goes to its sink."""

    __slots__ = (
        "_body",
        "_buffer",
        "_framing",
        "_half_closed",
        "_head",
        "_need",
        "_sink",
        "_touched",
        "pool",
        "transport",
    )

    def __init__(self, pool: "UpstreamPool") -> None:
        self.pool = pool
        self._sink: ResponseSink | None = None
        self._head: ResponseHead | None = None
        self._framing = Framing.NONE
        self._body = ChunkedReader()
        self._need = 0
        self._buffer = b""
        self._half_closed = False
        self._touched = False  # a byte of an answer has come, be it a bad one
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)

    def __repr__(self) -> str:
        state = "idle" if self._sink is None else f"{self._framing.value} body" if self._head else "awaiting head"
        return f"<UpstreamConnection {self.pool.name} {state}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, sink: ResponseSink) -> None:
        """Write a whole request; the answer may begin before all of it has left."""
        self._sink = sink
        self._head = None
        self._buffer = b""
        self._touched = False
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._framing is _CHUNKED:
            # The normal case of a stream: the read is one whole plain chunk. (ChunkedReader does the same
            # and everything else at four times the cost.)
            if self._body.at_boundary:
                end = data.find(b"\r\n", 1, 10)
                if end > 0 and end + SIZES[data[:end]] + 4 == len(data) and data.endswith(b"\r\n"):
                    payload = data[end + 2 : -2]
                    if payload:
                        self._sink.on_body(payload, data)  # type: ignore[union-attr]
                        return
            self._chunked(data)
        elif self._head is not None:
            self._plain(data)
        elif self._sink is not None:
            self._await_head(data)
        else:
            self.close()  # unsolicited bytes on an idle connection

    def _await_head(self, data: bytes) -> None:
        self._touched = True
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            if len(data) > MAX_HEAD_BYTES:
                self._break("sent a response head that is too long")
            return
        self._buffer = b""
        rest = data[end + 4 :]
        try:
            head = self.pool.heads.read(data[:end])
        except BadResponse as exc:
            self._break(f"sent {exc}")
            return
        if head.status < 200:  # 100 Continue, 103 Early Hints: not the answer
            if head.status == 101:
                self._break("switched protocols unasked")
            elif rest:
                self._await_head(rest)
            return
        self._head, self._framing, self._need = head, head.framing, head.length
        if head.framing is Framing.CHUNKED:
            self._body = ChunkedReader()
        sink = self._sink
        assert sink is not None
        sink.on_head(head)
        if self._sink is not sink:
            return  # it gave the answer up
        if head.framing is Framing.NONE:
            self._complete(surplus=bool(rest))
        elif rest:
            self.data_received(rest)

    def _chunked(self, data: bytes) -> None:
        sink = self._sink
        assert sink is not None
        try:
            payload, framed = self._body.feed(data)
        except BadResponse as exc:
            self._break(f"sent {exc}")
            return
        if payload:
            sink.on_body(payload, framed)
        if self._body.ended and self._sink is sink:
            self._complete(surplus=self._body.surplus > 0)

    def _plain(self, data: bytes) -> None:
        sink = self._sink
        assert sink is not None
        if self._framing is Framing.CLOSE:
            sink.on_body(data, None)
            return
        surplus = len(data) > self._need
        if surplus:
            data = data[: self._need]
        self._need -= len(data)
        sink.on_body(data, None)
        if not self._need and self._sink is sink:
            self._complete(surplus=surplus)

    def _complete(self, *, surplus: bool) -> None:
        sink, head = self._sink, self._head
        assert sink is not None and head is not None
        self._sink = self._head = None
        self._framing = Framing.NONE
        if surplus or not head.keep_alive or self._half_closed or self.transport.get_write_buffer_size():
            self.transport.abort()  # close() would wait for a request that nobody reads any more
        else:
            self.transport.resume_reading()  # a slow client may have paused it in this very read
            self.pool.give_back(self)
        sink.on_end()

    def _break(self, what: str) -> None:
        """Give the answer up; whatever the connection still holds is of no more use."""
        self._lose(UpstreamUnavailable(f"upstream {self.pool.name} {what}"))
        self.transport.abort()

    def _lose(self, error: UpstreamError) -> None:
        sink, untouched = self._sink, not self._touched
        self._sink = self._head = None
        self._framing = Framing.NONE
        if sink is not None:
            sink.on_broken(error, untouched=untouched)

    def eof_received(self) -> bool:
        return False  # close our side as well; connection_lost decides what it means

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.forget(self)
        if self._framing is Framing.CLOSE and exc is None:
            sink = self._sink
            self._sink = self._head = None
            self._framing = Framing.NONE
            if sink is not None:
                sink.on_end()
        else:
            self._lose(
                UpstreamUnavailable(f"upstream {self.pool.name} closed the connection before its answer was whole")
            )

    def half_close(self) -> float:
        """Tell the upstream that nobody is listening any more, and go on reading what it has already sent.

        -> for how many seconds that is worth it. Closing at once would make the kernel throw away bytes that
        the upstream generated before it could know. TLS of asyncio cannot half-close: it gets less time.
        """
        self._half_closed = True
        if self.transport.is_closing():
            return 0.0
        self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            return 0.250
        return 0.050

    def close(self) -> None:
        """End the connection now; a sink that still waits is not called any more."""
        self._sink = self._head = None
        self._framing = Framing.NONE
        if not self.transport.is_closing():
            self.transport.abort()


class UpstreamPool:
    """Connections to one upstream. LIFO, so that those in excess grow old and are closed by the upstream."""

    def __init__(self, name: str, upstream: Upstream) -> None:
        url = urlsplit(upstream.base_url)
        self.name = name
        self.config = upstream
        self.base_path = url.path
        self.host = url.hostname or ""
        self.port = url.port or (443 if url.scheme == "https" else 80)
        self.host_header = url.netloc
        self.api_key = upstream.api_key.get_secret_value() if upstream.api_key else None
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self.heads = Heads()
        timeouts = upstream.timeouts
        self.times = Times(first_byte_s=timeouts.first_byte_s, idle_s=timeouts.idle_s, total_s=timeouts.total_s)
        self.request_heads: dict[str, bytes] = {}  # path below `base_url` -> how each request to it begins
        self._idle: deque[UpstreamConnection] = deque()
        self._closed = False

    def take_idle(self) -> UpstreamConnection | None:
        """A connection that is open as far as we know, or None."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def connect(self) -> UpstreamConnection:
        """A new connection. Raises UpstreamUnavailable or UpstreamTimeout."""
        loop = asyncio.get_running_loop()
        timeout_s = self.config.timeouts.connect_s
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self), self.host, self.port, ssl=self._tls
                )
        except TimeoutError as exc:
            raise UpstreamTimeout(f"upstream {self.name} did not accept a connection within {timeout_s:g} s") from exc
        except (OSError, UnicodeError) as exc:  # UnicodeError: a host that is no name for DNS
            raise UpstreamUnavailable(f"upstream {self.name} cannot be reached: {_reason(exc)}") from exc
        return connection

    def give_back(self, connection: UpstreamConnection) -> None:
        if self._closed or len(self._idle) >= MAX_IDLE_CONNECTIONS:
            connection.transport.close()
        else:
            self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    def close(self) -> None:
        """Close what is idle; connections in use end with their exchanges."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


def _reason(exc: OSError | UnicodeError) -> str:
    """Why a connection could not be made, in the system's words if it has some."""
    number = exc.errno if isinstance(exc, OSError) else None
    return os.strerror(number) if number is not None and number > 0 else str(exc)
