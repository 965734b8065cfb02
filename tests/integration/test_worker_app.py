"""The worker as it is served: heads that never end, and how it stops."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meter_proxy.app import serve_worker
from meter_proxy.config.load import load_config
from meter_proxy.ledger.reading import iter_records
from tests.support import answers
from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
from tests.support.harms import Streams
from tests.support.httpraw import RawClient, request_bytes
from tests.support.upstream import ScriptedUpstream

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [], "stream": True}


@contextlib.asynccontextmanager
async def worker(directory: Path, store_url: str, upstream_url: str) -> AsyncIterator[str]:
    """`serve_worker` on a free port, with a short header_timeout; its URL."""
    path = write_config(directory, basic_config(upstream_url, directory, limits={"header_timeout": "300ms"}))
    sock = socket.create_server(("127.0.0.1", 0))
    ready, stop = asyncio.Event(), asyncio.Event()
    config = load_config(path, ENVIRONMENT)
    serving = asyncio.create_task(
        serve_worker(config, index=0, sock=sock, store_url=store_url, ready=lambda reload: ready.set(), stop=stop)
    )
    await ready.wait()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        stop.set()
        await serving


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat/comp", b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_a_head_that_never_ends_is_given_up(tmp_path: Path, shared_store: str, sent: bytes) -> None:
    """aiohttp alone would wait for ever."""
    async with worker(tmp_path, shared_store, "http://127.0.0.1:1") as url, await RawClient.connect(url) as client:
        await client.send(sent)
        async with asyncio.timeout(5):
            assert await client.ended()


async def test_a_head_in_pieces_is_served_and_bodies_have_their_own_time(tmp_path: Path, shared_store: str) -> None:
    """The deadline is the first head's alone; the connection is kept."""
    async with (
        ScriptedUpstream(Streams(answers.chat_stream("a"))) as upstream,
        worker(tmp_path, shared_store, upstream.url) as url,
        await RawClient.connect(url) as client,
    ):
        whole = request_bytes("POST", CHAT, ASK, key=KEY)
        head_ends = whole.index(b"\r\n\r\n") + 4
        for piece in (whole[:10], whole[10 : head_ends - 1], whole[head_ends - 1 : head_ends]):
            await client.send(piece)
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.4)  # longer than header_timeout
        await client.send(whole[head_ends:])
        assert (await (await client.response()).read()).endswith(answers.DONE)
        await asyncio.sleep(0.4)
        assert (await client.request("GET", "/healthz")).status == 200
    assert [record.outcome for record in iter_records(tmp_path / "state")] == ["completed"]


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_told_so_without_versions_or_echo(
    tmp_path: Path, shared_store: str, sent: bytes
) -> None:
    """OpenAI's shape, and the connection is closed."""
    async with worker(tmp_path, shared_store, "http://127.0.0.1:1") as url, await RawClient.connect(url) as client:
        await client.send(sent)
        answer = await client.read_to_end()
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert b'"code":"invalid_request"' in answer
    for told in (b"aiohttp", b"Python", b"GARBAGE", b"bad header"):
        assert told not in answer


async def test_a_coded_body_is_refused_without_being_decoded(
    tmp_path: Path, shared_store: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even looked at: no traceback for what is not gzip."""
    async with worker(tmp_path, shared_store, "http://127.0.0.1:1") as url, await RawClient.connect(url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY, headers=[("Content-Encoding", "gzip")])
        assert response.status == 415
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
