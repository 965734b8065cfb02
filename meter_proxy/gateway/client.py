"""The client's side of one exchange: a way past aiohttp, straight to the client's transport.

aiohttp reads the request and writes the head of the reply; the body is written to the transport
directly, in the call in which it arrived from the upstream. For that time a shim stands between the
transport and aiohttp's protocol (`Transport.set_protocol`, plain asyncio). It passes everything on and
tells the exchange, at once and whatever the application's `handler_cancellation` is, that the client
has hung up or has stopped reading.
"""

import asyncio
import socket
import struct
from collections.abc import Mapping
from typing import Protocol, cast

from aiohttp import web

from meter_proxy.gateway.http1 import chunk

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, for 0 s


class ClientGone(Exception):
    """The client has closed its connection, or stopped reading for too long."""


class ClientListener(Protocol):
    """What an exchange wants to know of its client."""

    def on_client_lost(self) -> None: ...

    def on_client_slow(self) -> None: ...

    def on_client_ready(self) -> None: ...


class ClientConnection(asyncio.Protocol):
    """One client's transport, for the time of one exchange."""

    __slots__ = ("_chunked", "_ends_with_connection", "_inner", "_listener", "transport")

    def __init__(self, request: web.BaseRequest, listener: ClientListener) -> None:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ClientGone
        self._inner = cast(asyncio.Protocol, transport.get_protocol())
        self._listener = listener
        self._chunked = False
        self._ends_with_connection = False
        self.transport: asyncio.Transport = transport
        transport.set_protocol(self)

    def detach(self) -> None:
        """Give the connection back to aiohttp."""
        if self.transport.get_protocol() is self:
            self.transport.set_protocol(self._inner)

    def begin_body(self, headers: Mapping[str, str]) -> None:
        """The head of the reply is written; its `headers` tell how the body is framed."""
        self._chunked = "chunked" in headers.get("Transfer-Encoding", "")
        self._ends_with_connection = not self._chunked and "Content-Length" not in headers

    def write(self, payload: bytes, framed: bytes | None) -> None:
        """Send a piece of the body (not empty). `framed`: the same as whole HTTP chunks, if it came so."""
        if not self._chunked:
            self.transport.write(payload)
        elif framed is not None:
            self.transport.write(framed)
        else:
            self.transport.write(chunk(payload))

    def break_off(self, *, linger_s: float) -> None:
        """End the reply so that the client cannot take it for whole: no last chunk, no missing byte made up.

        What is written still leaves, if the client takes it within `linger_s`. Where only the end of the
        connection ends the reply (HTTP/1.0), a FIN would say that it is whole: such a client gets a reset.
        """
        if self._ends_with_connection:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.transport.abort()
            return
        if self.unsent_bytes():
            asyncio.get_running_loop().call_later(linger_s, self.transport.abort)
        self.transport.close()

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
