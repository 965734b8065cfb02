"""The client's side of one exchange: a way past aiohttp, straight to the client's transport.

aiohttp reads the request and writes the head of the reply; the body is written to the transport
directly, in the call in which it arrived from the upstream. For that time a shim stands between the
transport and aiohttp's protocol (`Transport.set_protocol`, plain asyncio). It passes everything on and
tells the exchange, at once and whatever the application's `handler_cancellation` is, that the client
has hung up or has stopped reading.
"""

import asyncio
from typing import Protocol, cast

from aiohttp import web


class ClientGone(Exception):
    """The client has closed its connection, or stopped reading for too long."""


class ClientListener(Protocol):
    """What an exchange wants to know of its client."""

    def on_client_lost(self) -> None: ...

    def on_client_slow(self) -> None: ...

    def on_client_ready(self) -> None: ...


class ClientConnection(asyncio.Protocol):
    """One client's transport, for the time of one exchange."""

    __slots__ = ("_chunked", "_inner", "_listener", "transport")

    def __init__(self, request: web.BaseRequest, listener: ClientListener) -> None:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ClientGone
        self._inner = cast(asyncio.Protocol, transport.get_protocol())
        self._listener = listener
        self._chunked = False
        self.transport: asyncio.Transport = transport
        transport.set_protocol(self)

    def detach(self) -> None:
        """Give the connection back to aiohttp."""
        if self.transport.get_protocol() is self:
            self.transport.set_protocol(self._inner)

    def begin_body(self, *, chunked: bool) -> None:
        """The head of the reply is written; `chunked` tells how the body is framed."""
        self._chunked = chunked

    def write(self, payload: bytes, framed: bytes | None) -> None:
        """Send a piece of the body (not empty). `framed`: the same as whole HTTP chunks, if it came so."""
        if not self._chunked:
            self.transport.write(payload)
        elif framed is not None:
            self.transport.write(framed)
        else:
            self.transport.write(b"%x\r\n%b\r\n" % (len(payload), payload))

    def break_off(self) -> None:
        """End the reply so that the client cannot take it for whole: no last chunk, no missing byte made up."""
        if self._chunked:
            self.transport.close()  # what is written still leaves; the last chunk never comes
        else:
            self.transport.abort()

    def unsent_bytes(self) -> int:
        return 0 if self.transport.is_closing() else self.transport.get_write_buffer_size()

    # What the transport says, passed on to aiohttp first.

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()
        self._listener.on_client_slow()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
        self._listener.on_client_ready()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)
        self._listener.on_client_lost()
