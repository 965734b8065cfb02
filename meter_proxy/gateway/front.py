"""The raw front: connections of our own server, and the lane for requests of the plain case (`plain.py`).

A connection begins here. As long as its requests are plain, they are served here, without a task and without aiohttp.
The first one that is not is handed over with all its bytes, and the connection with it, to aiohttp's own handler, for
good: so there is one strict parser for everything unusual, and this one may be narrow.

`Front` is one connection, and the `Client` of the exchange that it carries at the moment.
"""

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from time import time
from typing import TYPE_CHECKING, cast

from meter_proxy.errors import ClientError
from meter_proxy.gateway.client import ClientGone, ClientListener, ReplyHead, close_within
from meter_proxy.gateway.headers import header_lines
from meter_proxy.gateway.http1 import chunk
from meter_proxy.gateway.plain import PlainHead
from meter_proxy.gateway.replies import Answer
from meter_proxy.gateway.watch import Deadlines

if TYPE_CHECKING:
    from meter_proxy.gateway.gateway import Gateway, Waiting

HIGH_WATER_BYTES = 65_536  # of later requests, while one is served
MOST_CORKED_BYTES = 32_768  # gathered and unsent; less than what makes a transport say that its client is slow
LAST_CHUNK = b"0\r\n\r\n"


class FrontDoor:
    """All connections of one worker."""

    def __init__(
        self,
        gateway: Callable[[], "Gateway"],
        hand_over: Callable[[], asyncio.Protocol],
        *,
        header_timeout_s: float,
        keep_alive_s: float,
    ) -> None:
        """`hand_over` makes the protocol for what is not plain. Times are in seconds."""
        self.gateway = gateway
        self.hand_over = hand_over
        self.heads: Deadlines[Front] = Deadlines(header_timeout_s, lambda front: front.transport.abort())
        self.idle: Deadlines[Front] = Deadlines(keep_alive_s, lambda front: front.transport.close())
        self._open: set[Front] = set()
        self._date = b""
        self._date_at = 0

    def __call__(self) -> "Front":
        return Front(self)

    def opened(self, front: "Front") -> None:
        """A connection is there, and owes a request."""
        self._open.add(front)
        self.heads.add(front)

    def closed(self, front: "Front") -> None:
        """A connection is gone, or somebody else's."""
        self._open.discard(front)
        self.heads.discard(front)
        self.idle.discard(front)

    @property
    def date(self) -> bytes:
        """The `Date` of a reply, as a line."""
        now = int(time())
        if now != self._date_at:
            self._date_at = now
            self._date = f"Date: {formatdate(now, usegmt=True)}\r\n".encode()
        return self._date

    def close(self) -> None:
        """Nothing is in flight any more: close what is open."""
        for front in list(self._open):
            front.transport.close()

    def __repr__(self) -> str:
        return f"<FrontDoor {len(self._open)} connections>"


class Front(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_buffer",
        "_chunked",
        "_corked",
        "_corked_bytes",
        "_door",
        "_head",
        "_is_busy",
        "_is_over",
        "_is_slow",
        "_late",
        "_listener",
        "_missing",
        "_parts",
        "_taken",
        "transport",
    )

    def __init__(self, door: FrontDoor) -> None:
        self._door = door
        self._buffer = b""  # of a head that is not whole, or of requests behind the one that is served
        self._head: PlainHead | None = None  # while its body arrives
        self._parts: list[bytes] = []
        self._missing = 0
        self._late: Deadlines[Waiting] | None = None  # ... and who watches over it
        self._is_busy = False  # a request is served
        self._is_over = False  # ... and its reply is whole
        self._chunked = False
        self._listener: ClientListener | None = None
        self._corked: list[bytes] | None = None  # what is gathered, to be sent as one
        self._corked_bytes = 0
        self._is_slow = False  # it has not taken yet what was written
        self._taken: asyncio.Future[None] | None = None
        self.transport = cast(asyncio.Transport, None)

    def __repr__(self) -> str:
        return f"<Front {'busy' if self._is_busy else 'reading' if self._head or self._buffer else 'idle'}>"

    # From bytes to a request.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._door.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._is_busy:
            self._buffer += data
            if len(self._buffer) > HIGH_WATER_BYTES:
                self.transport.pause_reading()
        elif self._head is not None:
            self._body(self._head, data)
        else:
            self._request(self._buffer + data if self._buffer else data)

    def _request(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n")
        gateway = self._door.gateway()
        if end < 0:
            if not gateway.may_be_plain(data):
                self._hand_over(data)
                return
            if not self._buffer:
                self._door.idle.discard(self)
                self._door.heads.add(self)
            self._buffer = data
            return
        head = gateway.plain_head(data[:end])
        if head is None:
            self._hand_over(data)
            return
        self._buffer = b""
        self._door.heads.discard(self)
        self._door.idle.discard(self)
        start = end + 4
        stop = start + head.length
        if len(data) >= stop:
            self._buffer = data[stop:]
            self._serve(head, data[start:stop])
        else:
            self._head, self._missing, self._late = head, head.length, gateway.late_bodies
            self._body(head, data[start:])

    def _body(self, head: PlainHead, data: bytes) -> None:
        if len(data) < self._missing:
            self._parts.append(data)
            self._missing -= len(data)
            assert self._late is not None
            self._late.add(self)
            return
        self._parts.append(data[: self._missing])
        self._buffer = data[self._missing :]
        body = b"".join(self._parts)
        self._head, self._parts, self._missing = None, [], 0
        self._stop_waiting()
        self._serve(head, body)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.discard(self)
            self._late = None

    def body_is_late(self) -> None:
        """The rest of a body did not come in time."""
        head = self._head
        if head is None:
            return
        late = ClientError(408, "request_timeout", "The request body did not arrive in time.")
        self._head, self._parts = None, []
        self._is_busy, self._is_over = True, False
        self._door.gateway().refuse(self, late, head.caller.key_id, "", head.route.operation)
        self.transport.close()

    def _hand_over(self, data: bytes) -> None:
        """Somebody else's connection, from this request on."""
        self._door.closed(self)
        protocol = self._door.hand_over()
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        protocol.data_received(data)

    def _serve(self, head: PlainHead, body: bytes) -> None:
        self._is_busy, self._is_over = True, False
        self._door.gateway().serve_plain(head, body, self)

    # The client of an exchange.

    def attach(self, listener: ClientListener) -> None:
        if self.transport.is_closing():
            raise ClientGone
        self._listener = listener
        if self._is_slow:  # it has not taken all of the last reply
            listener.on_client_slow()

    def begin_now(self, head: ReplyHead) -> None:
        """Send the head of the reply, without waiting."""
        self._chunked = False
        if head.length is not None:
            framing = b"Content-Length: %d\r\n" % head.length
        elif head.status in (204, 304):
            framing = b""
        else:
            self._chunked = True
            framing = b"Transfer-Encoding: chunked\r\n"
        self._send(
            b"HTTP/1.1 %d %b\r\n%b%b%b%b\r\n"
            % (
                head.status,
                head.reason.encode("utf-8", "surrogateescape"),
                head.upstream.lines,
                header_lines(head.own),
                framing,
                self._door.date,
            )
        )

    async def begin(self, head: ReplyHead) -> None:
        self.begin_now(head)

    def write(self, payload: bytes, framed: bytes | None) -> None:
        data = (framed or chunk(payload)) if self._chunked else payload
        if self._corked is not None:
            self._send(data)
            return
        transport = self.transport
        if not transport.is_closing():  # see _send
            transport.write(data)

    def cork(self) -> bool:
        if self._corked is not None:
            return False
        self._corked = []
        return True

    def uncork(self) -> None:
        corked, self._corked, self._corked_bytes = self._corked, None, 0
        if corked:
            self._send(corked[0] if len(corked) == 1 else b"".join(corked))

    def _send(self, data: bytes) -> None:
        if self._corked is not None:
            self._corked.append(data)
            self._corked_bytes += len(data)
            if self._corked_bytes + self.unsent_bytes() < MOST_CORKED_BYTES:
                return
            # So much may be more than the client takes: that has to be noticed here, not when its reply is over.
            data = b"".join(self._corked)
            self._corked, self._corked_bytes = [], 0
        # A connection may be closed, and we not told yet: a closed transport of uvloop takes nothing, and says so.
        if not self.transport.is_closing():
            self.transport.write(data)

    def end_now(self) -> None:
        """The reply is whole."""
        if not self._is_over:
            self._is_over = True
            if self._chunked:
                self._send(LAST_CHUNK)

    async def end(self) -> None:
        self.end_now()
        if self._is_slow:
            self._taken = asyncio.get_running_loop().create_future()
            await self._taken
        if self.transport.is_closing():
            raise ClientGone

    def break_off(self, *, linger_s: float) -> None:
        self.uncork()
        close_within(self.transport, linger_s)

    def answer(self, answer: Answer) -> None:
        self._is_over = True
        self._send(
            b"HTTP/1.1 %d %b\r\n%bContent-Length: %d\r\n%b\r\n%b"
            % (
                answer.status,
                REASONS.get(answer.status, b"Error"),
                header_lines(answer.headers),
                len(answer.body),
                self._door.date,
                answer.body,
            )
        )

    def unsent_bytes(self) -> int:
        return 0 if self.transport.is_closing() else self.transport.get_write_buffer_size()

    def detach(self) -> None:
        """The exchange is over: go on with the next request."""
        self._listener = self._taken = None
        if self.transport.is_closing():
            return
        if not self._is_over:
            self.transport.abort()  # a mistake of ours: nobody shall take the reply for whole
            return
        self._is_busy = False
        self._door.idle.add(self)
        if self._buffer:
            # Not from here: a long row of requests would be a deep stack.
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        data, self._buffer = self._buffer, b""
        if data and not self._is_busy and not self.transport.is_closing():
            self.transport.resume_reading()
            self._request(data)

    # What the transport says.

    def pause_writing(self) -> None:
        self._is_slow = True
        if self._listener is not None:
            self._listener.on_client_slow()

    def resume_writing(self) -> None:
        self._is_slow = False
        self._has_taken()
        if self._listener is not None:
            self._listener.on_client_ready()

    def _has_taken(self) -> None:
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)

    def eof_received(self) -> bool:
        return False  # nobody is there any more; connection_lost comes next

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.closed(self)
        self._buffer, self._parts = b"", []
        self._stop_waiting()
        self._has_taken()
        if self._listener is not None:
            self._listener.on_client_lost()


REASONS = {
    400: b"Bad Request", 401: b"Unauthorized", 404: b"Not Found", 408: b"Request Timeout", 413: b"Content Too Large",
    415: b"Unsupported Media Type", 429: b"Too Many Requests", 500: b"Internal Server Error", 502: b"Bad Gateway",
    503: b"Service Unavailable", 504: b"Gateway Timeout",
}  # fmt: skip
