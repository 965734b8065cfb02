"""ScriptedUpstream: an upstream on a real socket that does what a test's script says.

    async def script(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await exchange.send_event(answers.chat_event("Hello"))
        await exchange.hung_up()              # wait until the proxy hangs up

    async with ScriptedUpstream(script) as upstream:
        ...                                   # upstream.url, upstream.requests, upstream.exchanges

A script runs once per request; what it raises fails the test when the upstream is left (PeerGone, raised
by sends to a peer that is gone, merely ends the script). Connections are kept alive as long as scripts let them.
"""

import asyncio
import contextlib
import json
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from multidict import CIMultiDict

from tests.support import wire
from tests.support.waiting import PATIENCE_S, until

_READ_BYTES = 65536


class PeerGone(Exception):
    """The proxy closed or reset the connection that a script wanted to use."""


@dataclass
class ReceivedRequest:
    """What the upstream got: byte exact. `connection` numbers the TCP connections from 0."""

    method: str
    target: str
    headers: CIMultiDict[str]
    raw_head: bytes
    connection: int
    body: bytes = b""  # without framing; filled when it was read

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class UpstreamExchange:
    """One request and what a script answers to it."""

    def __init__(self, connection: "_Connection", request: ReceivedRequest) -> None:
        self.request = request
        self.sent_bytes = 0  # framing included; grows as the kernel takes the bytes
        self._connection = connection
        self._is_chunked = False

    # -- asking

    @property
    def peer_hung_up(self) -> bool:
        """The proxy sent FIN or RST."""
        return self._connection.peer_hung_up.is_set()

    @property
    def peer_reset(self) -> bool:
        """The proxy sent RST, or answered ours or our late bytes so."""
        return self._connection.peer_reset

    @property
    def hung_up_at(self) -> float | None:
        """Loop time at which the proxy's FIN or RST was seen."""
        return self._connection.hung_up_at

    async def read_body(self) -> bytes:
        """The request's payload; for scripts of an upstream with `reads_body_first=False`."""
        pieces = self._connection.reader.body(self.request.headers, ends_with_connection=False)
        self.request.body += b"".join([piece async for piece in pieces])
        return self.request.body

    async def hung_up(self, *, within_s: float = PATIENCE_S) -> None:
        """Wait until the proxy hangs up. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            await self._connection.peer_hung_up.wait()

    # -- answering

    async def send(self, data: bytes) -> None:
        """Exactly these bytes, waiting while the peer does not read. Raises PeerGone."""
        view = memoryview(data)
        while view:
            taken = await self._connection.send_some(view)
            self.sent_bytes += taken
            view = view[taken:]

    async def start(self, status: int = 200, headers: Iterable[tuple[str, str]] = (), *, reason: str = "OK") -> None:
        """Send a head with exactly these headers."""
        await self.send(wire.head_bytes(f"HTTP/1.1 {status} {reason}", headers))

    async def start_stream(self, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send the head of a chunked event stream."""
        own = [("Content-Type", "text/event-stream; charset=utf-8"), ("Transfer-Encoding", "chunked")]
        await self.start(status, [*own, *headers])
        self._is_chunked = True

    async def send_event(self, *events: bytes) -> None:
        """Each event in its own HTTP chunk, all in one write. Without chunked framing: as they are."""
        await self.send(b"".join(wire.chunk(event) if self._is_chunked else event for event in events))

    async def end(self) -> None:
        """End a chunked body in good order; the connection stays open."""
        await self.send(wire.LAST_CHUNK)

    async def answer(self, body: bytes, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> None:
        """A whole answer with Content-Length in one write; JSON unless `headers` has a Content-Type."""
        lines = [("Content-Length", str(len(body))), *headers]
        if "content-type" not in {name.lower() for name, _ in lines}:
            lines.append(("Content-Type", "application/json"))
        await self.send(wire.head_bytes(f"HTTP/1.1 {status} Scripted", lines) + body)

    # -- leaving

    def half_close(self) -> None:
        """Send FIN; the proxy's bytes are still read."""
        self._connection.shut_down()

    def close(self) -> None:
        """Close the connection: FIN."""
        self._connection.close()

    def reset(self) -> None:
        """Break the connection: RST."""
        self._connection.close(with_reset=True)


Script = Callable[[UpstreamExchange], Awaitable[None]]


class ScriptedUpstream:
    """A listening upstream. `script` answers every POST that no `then()` was given for.

    GETs (a proxy's look at /version, /props, ...) run what `on_get()` was given, else get a 404; they
    stand in `requests` like all others, `posts` leaves them out.
    """

    def __init__(
        self, script: Script, *, reads_body_first: bool = True, send_buffer_bytes: int | None = None, port: int = 0
    ) -> None:
        self.script = script
        self.requests: list[ReceivedRequest] = []
        self.exchanges: list[UpstreamExchange] = []  # as `posts`
        self.connections = 0  # accepted so far
        self.url = ""  # with /v1
        self._port = port
        self._reads_body_first = reads_body_first
        self._send_buffer_bytes = send_buffer_bytes
        self._next_scripts: deque[Script] = deque()
        self._get_scripts: dict[str, Script] = {}
        self._failures: list[BaseException] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._open: set[_Connection] = set()

    def then(self, *scripts: Script) -> None:
        """Answer the next POSTs with these, one each, before `script` is used again."""
        self._next_scripts.extend(scripts)

    def on_get(self, target: str, script: Script) -> None:
        """Answer GETs of this target with `script`."""
        self._get_scripts[target] = script

    @property
    def posts(self) -> list[ReceivedRequest]:
        """The POSTs, in the order of their heads."""
        return [request for request in self.requests if request.method == "POST"]

    @property
    def open_connections(self) -> int:
        """Connections that neither we nor (as far as we were told) the proxy has ended."""
        return sum(not connection.peer_hung_up.is_set() for connection in self._open)

    async def exchange(self, index: int = -1) -> UpstreamExchange:
        """Wait for the exchange of a POST: the index-th from 0, or the newest (there must be one)."""
        wanted = index + 1 if index >= 0 else 1
        await until(lambda: len(self.exchanges) >= wanted, f"{wanted} POST requests at the upstream")
        return self.exchanges[index]

    async def __aenter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=1024)
        if self._send_buffer_bytes is not None:  # inherited by accepted sockets
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer_bytes)
        self._listener.setblocking(False)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._accepting = asyncio.create_task(self._accept(), name="scripted-upstream")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await _cancel(self._accepting)
        self._listener.close()
        for task in list(self._serving):
            await _cancel(task)
        if self._failures and exc is None:
            raise self._failures[0]

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(sock, self.connections)
            self.connections += 1
            self._open.add(connection)
            task = asyncio.create_task(self._serve(connection), name=f"scripted-upstream-{connection.number}")
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, connection: "_Connection") -> None:
        try:
            while (exchange := await self._next_exchange(connection)) is not None:
                await self._script_for(exchange.request)(exchange)
        except PeerGone:
            pass
        except wire.BrokenOff:
            pass  # the proxy gave up inside its request
        except Exception as exc:
            self._failures.append(exc)
        finally:
            await connection.stop()
            self._open.discard(connection)

    async def _next_exchange(self, connection: "_Connection") -> UpstreamExchange | None:
        """Read the next request, or None when the proxy, or our script, closed the connection."""
        if connection.is_closed or (head := await connection.reader.head()) is None:
            return None
        method, target, _ = head.start_line.split(" ")
        request = ReceivedRequest(method, target, head.headers, head.raw, connection.number)
        exchange = UpstreamExchange(connection, request)
        self.requests.append(request)
        if self._reads_body_first:
            await exchange.read_body()
        if method == "POST":
            self.exchanges.append(exchange)
        return exchange

    def _script_for(self, request: ReceivedRequest) -> Script:
        if request.method == "POST":
            return self._next_scripts.popleft() if self._next_scripts else self.script
        return self._get_scripts.get(request.target, _not_found)


class _Connection:
    """An accepted socket, read all the time, so that a FIN or RST is noticed whatever a script does."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.number = number
        self.is_closed = False
        self.peer_hung_up = asyncio.Event()
        self.peer_reset = False
        self.hung_up_at: float | None = None
        self.reader = wire.MessageReader(self._next_read)
        self._sock = sock
        self._sock.setblocking(False)
        self._reads: asyncio.Queue[bytes] = asyncio.Queue()  # b"" is the end
        self._pump = asyncio.create_task(self._read_on(), name=f"scripted-upstream-{number}-reads")

    async def send_some(self, data: memoryview) -> int:
        """Send at least one byte; how many. Raises PeerGone."""
        loop = asyncio.get_running_loop()
        while not self.is_closed:
            try:
                return self._sock.send(data)
            except BlockingIOError:
                writable = loop.create_future()
                loop.add_writer(self._sock.fileno(), _settle, writable)
                try:
                    await writable
                finally:
                    loop.remove_writer(self._sock.fileno())
            except ConnectionError as exc:
                self._peer_ended(was_reset=True)
                raise PeerGone from exc
        raise PeerGone

    def shut_down(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self, *, with_reset: bool = False) -> None:
        """Close now; a reader on the loop is taken off first, or it would watch a number that others reuse."""
        if self.is_closed:
            return
        self.is_closed = True
        self._pump.cancel()
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        if with_reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    async def stop(self) -> None:
        self.close()
        await _cancel(self._pump)

    async def _read_on(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self._sock, _READ_BYTES):
                self._reads.put_nowait(data)
            self._peer_ended(was_reset=False)
        except ConnectionError:
            self._peer_ended(was_reset=True)
        self._reads.put_nowait(b"")

    async def _next_read(self) -> bytes:
        data = await self._reads.get()
        if not data and self.peer_reset:
            raise ConnectionResetError
        return data

    def _peer_ended(self, *, was_reset: bool) -> None:
        self.peer_reset = self.peer_reset or was_reset
        if not self.peer_hung_up.is_set():
            self.hung_up_at = asyncio.get_running_loop().time()
            self.peer_hung_up.set()


async def _not_found(exchange: UpstreamExchange) -> None:
    await exchange.answer(b'{"error":{"message":"Not Found","type":"NotFoundError","code":404}}', 404)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
