"""A new connection must send its first request head in time, or it is closed.

aiohttp waits for ever for the rest of a first head. This stands before its protocol until the head's blank
line has passed, and then gets out of the way: later heads are bounded by the keep-alive time-out.
"""

import asyncio
from typing import cast

_LONGEST_END = 3  # bytes of "\\r\\n\\r\\n" that an earlier read may hold


class HeadDeadline(asyncio.Protocol):
    """Passes everything on to `inner`; aborts the connection after `seconds` without a whole head."""

    def __init__(self, inner: asyncio.Protocol, seconds: float) -> None:
        self._inner = inner
        self._seconds = seconds
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        recent = self._tail + data
        if not self._tail:
            recent = recent.lstrip(b"\r\n")  # blank lines before a request are allowed, and no request
        if b"\n\r\n" in recent or b"\n\n" in recent:
            self._timer.cancel()
            self._transport.set_protocol(self._inner)
        else:
            self._tail = recent[-_LONGEST_END:]
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._inner.connection_lost(exc)
