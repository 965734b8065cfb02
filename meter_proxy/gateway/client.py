"""The client's side of one exchange, whichever lane its request came by.

`Client` is what an exchange needs of it. Two things are one: `front.Front`, the raw lane of our own server, and
`AiohttpClient`, for requests that aiohttp has read (all of a host application's, and what the front hands over).

There aiohttp reads the request and writes the head of the reply; the body is written to the transport directly, in
the call in which it arrived from the upstream. For that time a shim stands between the transport and aiohttp's
protocol (`Transport.set_protocol`, plain asyncio). It passes everything on and tells the exchange, at once and
whatever the application's `handler_cancellation` is, that the client has hung up or has stopped reading.
"""

import asyncio
import socket
import struct
from typing import NamedTuple, Protocol, cast

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from meter_proxy.gateway.headers import ReplyFields
from meter_proxy.gateway.http1 import chunk
from meter_proxy.gateway.replies import Answer, Headers, cors_headers, response

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, for 0 s


class ClientGone(Exception):
    """The client has closed its connection, or stopped reading for too long."""


class ClientListener(Protocol):
    """What an exchange wants to know of its client."""

    def on_client_lost(self) -> None: ...

    def on_client_slow(self) -> None: ...

    def on_client_ready(self) -> None: ...


class ReplyHead(NamedTuple):
    """The head of a reply that an upstream answers."""

    status: int
    reason: str
    upstream: ReplyFields
    own: Headers  # ours, behind the upstream's
    length: int | None  # of the body, where it is known before it has passed


class Client(Protocol):
    """One client, for the time of one exchange."""

    @property
    def transport(self) -> asyncio.Transport: ...

    def attach(self, listener: ClientListener) -> None:
        """Tell `listener` of this client from now on. Raises ClientGone if there is none any more."""

    async def begin(self, head: ReplyHead) -> None:
        """Send the head of the reply; `write` may follow."""

    def write(self, payload: bytes, framed: bytes | None) -> None:
        """Send a piece of the body (not empty). `framed`: the same as whole HTTP chunks, if it came so."""

    async def end(self) -> None:
        """The reply is whole. Idempotent."""

    def break_off(self, *, linger_s: float) -> None:
        """End the reply so that the client cannot take it for whole: no last chunk, no missing byte made up.

        What is written still leaves, if the client takes it within `linger_s`.
        """

    def answer(self, answer: Answer) -> None:
        """Nothing was begun: answer this."""

    def unsent_bytes(self) -> int:
        """What was written and has not left."""

    def detach(self) -> None:
        """The exchange is over."""


class PlainClient(Client, Protocol):
    """One that waits for nothing to take what it is given."""

    def begin_now(self, head: ReplyHead) -> None:
        """`begin`."""

    def end_now(self) -> None:
        """`end`."""

    def cork(self) -> bool:
        """Gather what is written, to send it as one at `uncork`; False where that is so already."""

    def uncork(self) -> None:
        """Send what was gathered, and what comes from now on at once. Idempotent."""


class AiohttpClient(asyncio.Protocol):
    """A client whose request aiohttp has read; `response` is what aiohttp is to finish."""

    __slots__ = (
        "_answer",
        "_chunked",
        "_ends_with_connection",
        "_inner",
        "_listener",
        "_reply",
        "_request",
        "transport",
    )

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self._inner: asyncio.Protocol | None = None
        self._listener: ClientListener
        self._reply: web.StreamResponse | None = None
        self._answer: web.Response | None = None
        self._chunked = False
        self._ends_with_connection = False
        self.transport: asyncio.Transport = cast(asyncio.Transport, request.transport)

    @property
    def response(self) -> web.StreamResponse:
        """What a handler returns; of a client that is gone nobody reads it, but the host's access log does."""
        return self._reply or self._answer or web.Response(status=499)

    def attach(self, listener: ClientListener) -> None:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ClientGone
        self._listener = listener
        self._inner = cast(asyncio.Protocol, transport.get_protocol())
        self.transport = transport
        transport.set_protocol(self)

    def detach(self) -> None:
        if self._inner is not None and self.transport.get_protocol() is self:
            self.transport.set_protocol(self._inner)

    async def begin(self, head: ReplyHead) -> None:
        headers = CIMultiDict(head.upstream.fields)
        headers.extend(head.own)
        headers.extend(cors_headers(self._request))
        if head.length is not None:
            headers["Content-Length"] = str(head.length)
        self._reply = reply = web.StreamResponse(status=head.status, reason=head.reason, headers=headers)
        if self._request.version < HttpVersion11 and head.length is None:
            reply.force_close()  # aiohttp would keep alive what only its end can end
        await reply.prepare(self._request)
        self._chunked = "chunked" in reply.headers.get("Transfer-Encoding", "")
        self._ends_with_connection = not self._chunked and "Content-Length" not in reply.headers

    def write(self, payload: bytes, framed: bytes | None) -> None:
        if not self.transport.is_closing():  # a closed one of uvloop raises, before we are told of the loss
            self.transport.write((framed or chunk(payload)) if self._chunked else payload)

    async def end(self) -> None:
        if self._reply is not None:
            await self._reply.write_eof()

    def break_off(self, *, linger_s: float) -> None:
        if self._ends_with_connection:
            # Only the end of the connection ends the reply (HTTP/1.0): a FIN would say that it is whole.
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.transport.abort()
            return
        close_within(self.transport, linger_s)

    def answer(self, answer: Answer) -> None:
        self._answer = response(self._request, answer)

    def unsent_bytes(self) -> int:
        return 0 if self.transport.is_closing() else self.transport.get_write_buffer_size()

    # What the transport says, passed on to aiohttp first.

    @property
    def _aiohttp(self) -> asyncio.Protocol:
        assert self._inner is not None  # the transport knows us since `attach` only
        return self._inner

    def data_received(self, data: bytes) -> None:
        self._aiohttp.data_received(data)

    def eof_received(self) -> bool | None:
        return self._aiohttp.eof_received()

    def pause_writing(self) -> None:
        self._aiohttp.pause_writing()
        self._listener.on_client_slow()

    def resume_writing(self) -> None:
        self._aiohttp.resume_writing()
        self._listener.on_client_ready()

    def connection_lost(self, exc: Exception | None) -> None:
        self._aiohttp.connection_lost(exc)
        self._listener.on_client_lost()


def close_within(transport: asyncio.Transport, linger_s: float) -> None:
    """Close, and abort where what is written has not left within `linger_s`."""
    if not transport.is_closing() and transport.get_write_buffer_size():
        asyncio.get_running_loop().call_later(linger_s, transport.abort)
    transport.close()
