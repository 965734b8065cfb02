"""Small GETs of our own to an upstream: its identity endpoints, its list of models. Never billed."""

import asyncio

from meter_proxy.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from meter_proxy.gateway.http1 import ResponseHead
from meter_proxy.gateway.upstream import UpstreamConnection, UpstreamPool

MAX_ANSWER_BYTES = 8_388_608  # a list of all models of a large aggregator is ~1 MB


async def fetch(pool: UpstreamPool, path: str, *, timeout_s: float) -> tuple[int, bytes]:
    """GET `path` (absolute) with the operator's credential; -> status, body. Raises UpstreamError."""
    credential = f"Authorization: Bearer {pool.api_key}\r\n" if pool.api_key else ""
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {pool.host_header}\r\nAccept: application/json\r\n"
        f"Accept-Encoding: identity\r\n{credential}\r\n"
    ).encode()
    connection = await pool.connect()
    answer = _Collected(connection)
    try:
        async with asyncio.timeout(timeout_s):
            connection.send(request, answer)
            return await answer.whole
    except TimeoutError as exc:
        raise UpstreamTimeout(f"upstream {pool.name} did not answer GET {path} within {timeout_s:g} s") from exc
    finally:
        if not answer.whole.done() or answer.whole.cancelled() or answer.whole.exception() is not None:
            connection.close()


class _Collected:
    """A ResponseSink that keeps the whole answer."""

    def __init__(self, connection: UpstreamConnection) -> None:
        self.whole: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._connection = connection
        self._status = 0
        self._body = bytearray()

    def cork(self) -> bool:
        return False

    def uncork(self) -> None:
        return

    def on_head(self, head: ResponseHead) -> None:
        self._status = head.status

    def on_body(self, payload: bytes, framed: bytes | None) -> None:
        self._body += payload
        if len(self._body) > MAX_ANSWER_BYTES and not self.whole.done():
            self.whole.set_exception(UpstreamUnavailable("an answer that is too long"))
            self._connection.close()

    def on_end(self) -> None:
        if not self.whole.done():
            self.whole.set_result((self._status, bytes(self._body)))

    def on_broken(self, error: UpstreamError, *, untouched: bool) -> None:
        if not self.whole.done():
            self.whole.set_exception(error)
