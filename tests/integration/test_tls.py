"""An upstream behind TLS: the same streams and bills; only half-closing is not possible."""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from meter_proxy.usage import Basis, Outcome
from tests.integration.conftest import StartProxy
from tests.support import answers
from tests.support.config import KEY
from tests.support.harms import NeverAnswers
from tests.support.httpraw import RawClient
from tests.support.wire import LAST_CHUNK, chunk

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "12345678"}], "stream": True}
EVENTS = answers.chat_stream("a", "b", "c", "d", output_tokens=9)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody signed but itself, and its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    key = path.with_suffix(".key")
    subprocess.run([*made, "-keyout", str(key), "-out", str(path)], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


class TlsUpstream:
    """Answers each request on a TLS connection by `answer`; counts what it saw."""

    def __init__(self, answer: Answer) -> None:
        self.url = ""
        self.connections = 0
        self.requests = 0
        self.hung_up = asyncio.Event()
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                self.requests += 1
                await self._answer(reader, writer)
        self.hung_up.set()
        writer.close()


@contextlib.asynccontextmanager
async def tls_upstream(certificate: Path, answer: Answer) -> AsyncIterator[TlsUpstream]:
    """Listen on a free loopback port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    upstream = TlsUpstream(answer)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=context)
    upstream.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield upstream
    finally:
        server.close()


async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A whole stream; the connection stays."""
    writer.write(HEAD + b"".join(chunk(event) for event in EVENTS) + LAST_CHUNK)
    await writer.drain()


async def stalls_after_three(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Three events, then nothing until the proxy goes."""
    writer.write(HEAD + b"".join(chunk(event) for event in EVENTS[:3]))
    await reader.readuntil(b"\r\n\r\n")


async def test_streams_over_tls_are_metered_on_kept_connections(
    start: StartProxy, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trust comes from the system's store, here SSL_CERT_FILE."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with tls_upstream(certificate, streams) as upstream:
        proxy, _ = await start(NeverAnswers(), upstream={"base_url": upstream.url})
        async with await RawClient.connect(proxy.url) as client:
            for count in (1, 2):
                response = await client.request("POST", CHAT, ASK, key=KEY)
                assert await response.read() == b"".join(EVENTS[:-2] + EVENTS[-1:])
                record = await proxy.record(count)
                assert (record.outcome, record.basis, record.output_tokens) == (
                    Outcome.COMPLETED,
                    Basis.REPORTED,
                    9,
                )
        assert upstream.connections == 1


async def test_a_hang_up_over_tls_is_drained_for_50_ms_and_closed(
    start: StartProxy, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio's TLS cannot half-close; the bill is the same."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with tls_upstream(certificate, stalls_after_three) as upstream:
        proxy, _ = await start(NeverAnswers(), upstream={"base_url": upstream.url})
        async with await RawClient.connect(proxy.url) as client:
            response = await client.request("POST", CHAT, ASK, key=KEY)
            for _ in range(3):
                await response.next_event()
            client.close_fin()
            record = await proxy.record()
        assert (record.outcome, record.basis, record.output_tokens) == (
            Outcome.CLIENT_DISCONNECTED,
            Basis.COUNTED,
            2,
        )
        async with asyncio.timeout(5):
            await upstream.hung_up.wait()


async def test_an_upstream_that_nobody_vouches_for_gets_no_request(start: StartProxy, certificate: Path) -> None:
    """502, nothing billed: not a byte of the request has left."""
    async with tls_upstream(certificate, streams) as upstream:
        proxy, _ = await start(NeverAnswers(), upstream={"base_url": upstream.url, "bill_prompt": "always"})
        async with await RawClient.connect(proxy.url) as client:
            assert (await client.request("POST", CHAT, ASK, key=KEY)).status == 502
        record = await proxy.record()
        assert (record.outcome, record.input_tokens) == (Outcome.UPSTREAM_FAILED, 0)
        assert upstream.requests == 0
