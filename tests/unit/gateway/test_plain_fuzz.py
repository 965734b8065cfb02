"""The same bytes, the same verdict: whatever the front takes, aiohttp's parser takes, and reads it the same way."""

import asyncio
import random

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage

from meter_proxy.gateway.inbound import Inbound
from meter_proxy.gateway.plain import PlainHeads
from tests.unit.gateway.plain_requests import CONFIG, LINES, head

CASES = 10_000
BODY = b'{"model":"m"}'
# Parts that parsers have stumbled over, and parts of plain requests in other places.
PARTS = (
    *LINES,
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"\x7f", b"\x80", b",", b";", b"0", b"2", b"chunked", b"close",
    b"Content-Length: 13", b"Content-Length:13", b"content-length: 013", b"Content-Length: 13 ",
    b"Content-Length: 13,13", b"Transfer-Encoding: chunked", b"Connection: keep-alive", b"connection:close",
    b"Connection: keep-alive, close",
    b"Host: y", b"Host:", b"Upgrade: websocket", b"Expect: 100-continue", b"X-Request-Id: 1", b"HTTP/1.0", b"HTTP/1.1",
    b"Content-Encoding: gzip", b"Content-Type: application/json; charset=utf-8", b"X-A: b", b" folded",
    b"POST ", b"/v1",
)  # fmt: skip


def mutated(rng: random.Random) -> bytes:
    """A plain head with something done to it."""
    block = bytearray(head(length=len(BODY)))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(block) + 1)
        match rng.randrange(6):
            case 0:
                block[at:at] = rng.choice(PARTS)
            case 1:
                block[at : at + rng.randrange(1, 4)] = b""
            case 2:
                block[at : at + 1] = bytes([rng.randrange(256)])
            case 3:
                lines = bytes(block).split(b"\r\n")
                lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(PARTS))
                block = bytearray(b"\r\n".join(lines))
            case 4:
                lines = bytes(block).split(b"\r\n")
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
                block = bytearray(b"\r\n".join(lines))
            case _:
                lines = bytes(block).split(b"\r\n")
                del lines[rng.randrange(len(lines))]
                block = bytearray(b"\r\n".join(lines))
    return bytes(block)


async def aiohttp_reads(data: bytes) -> tuple[RawRequestMessage, bytes] | None:
    """What aiohttp's server would serve as its first request, with the body; None: it would refuse, or wait."""
    loop = asyncio.get_running_loop()
    parser = HttpRequestParser(BaseProtocol(loop), loop, 2**16, auto_decompress=False)
    try:
        messages, _, _ = parser.feed_data(data)
    except Exception:
        return None
    if not messages:
        return None
    message, payload = messages[0]
    return message, await asyncio.wait_for(payload.read(), 1) if payload.is_eof() else b"not whole"


@pytest.mark.parametrize("seed", range(4))
async def test_what_the_front_takes_aiohttp_reads_the_same(seed: int) -> None:
    """Method, target, version, each header, the body, and where the next request begins."""
    rng = random.Random(seed)
    heads = PlainHeads(Inbound(CONFIG), CONFIG)
    taken = 0
    for _ in range(CASES):
        block = mutated(rng)
        end = (block + b"\r\n\r\n").find(b"\r\n\r\n")
        plain = heads.read(block[:end], 0.0)
        if plain is None:
            continue
        taken += 1
        if end != len(block):
            continue  # a blank line came into it: the rest would be a body
        body = BODY.ljust(plain.length)[: plain.length]
        read = await aiohttp_reads(block + b"\r\n\r\n" + body)
        assert read is not None, block
        message, its_body = read
        assert (message.method, tuple(message.version)) == ("POST", (1, 1)), block
        assert message.path.startswith("/v1"), block
        assert message.path.endswith(plain.route.path), block
        assert not (message.should_close or message.upgrade or message.chunked or message.compression), block
        assert its_body == body, block
        known = {line.partition(b":")[0].strip().lower() for line in block.split(b"\r\n")[1:]}
        assert {name.lower() for name, _ in message.raw_headers} == known, block
        for line in plain.forwarded.lines.split(b"\r\n")[:-1]:
            name, _, value = line.partition(b": ")
            assert (name.lower(), value) in [(n.lower(), v) for n, v in message.raw_headers], block
    assert taken > CASES / 20  # else this test would look at nothing
