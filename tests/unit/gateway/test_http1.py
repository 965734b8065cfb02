"""Responses are read in one way or refused, wherever their bytes are cut."""

import random

import pytest

from meter_proxy.gateway.http1 import BadResponse, ChunkedReader, Framing, chunk, parse_head

PIECES = [bytes([65 + n % 26]) * (1 + n * 7 % 40) for n in range(50)]
BODY = b"".join(PIECES)
CHUNKED = b"".join(chunk(piece) for piece in PIECES)


def read(raw: bytes, cuts: list[int]) -> tuple[bytes, ChunkedReader]:
    """Feed `raw` cut at `cuts`; every `framed` that comes out must itself hold exactly its payload."""
    reader, out, start = ChunkedReader(), b"", 0
    for end in [*cuts, len(raw)]:
        if end > start:
            payload, framed = reader.feed(raw[start:end])
            if framed is not None:
                again = ChunkedReader()
                assert again.feed(framed) == (payload, framed)
                assert again.at_boundary
            out += payload
        start = end
    return out, reader


def test_chunked_body_is_the_same_however_it_is_cut() -> None:
    """Whole, byte by byte, and at random cuts: same payload, same end."""
    raw = CHUNKED + b"0;last=1\r\nX-Trailer: 1\r\n\r\n"
    rng = random.Random(1)
    ways = [[], list(range(1, len(raw)))]
    ways += [sorted(rng.sample(range(1, len(raw)), rng.randint(1, 40))) for _ in range(200)]
    for cuts in ways:
        out, reader = read(raw, cuts)
        assert out == BODY
        assert reader.ended
        assert reader.surplus == 0


def test_bytes_behind_the_end_are_counted_as_surplus() -> None:
    """Whatever follows the last chunk belongs to no response."""
    out, reader = read(CHUNKED + b"0\r\n\r\nHTTP/1.1 200", [])
    assert (out, reader.ended, reader.surplus) == (BODY, True, len(b"HTTP/1.1 200"))


def test_whole_plain_chunks_may_go_on_as_they_came() -> None:
    """The last chunk is not part of what goes on: the end is ours to send."""
    assert ChunkedReader().feed(chunk(b"a") + chunk(b"b")) == (b"ab", chunk(b"a") + chunk(b"b"))
    assert ChunkedReader().feed(chunk(b"a") + b"0\r\n\r\n") == (b"a", chunk(b"a"))


def test_a_trailer_that_looks_like_a_chunk_is_none() -> None:
    """Behind the last chunk nothing is content."""
    out, reader = read(chunk(b"a") + b"0\r\n" + b"1\r\nb\r\n" + b"\r\n", [])
    assert (out, reader.ended, reader.surplus) == (b"a", True, 0)


@pytest.mark.parametrize("raw", [b"1;x=1\r\na\r\n", b"5\r\nab"], ids=["extension", "part of a chunk"])
def test_anything_but_whole_plain_chunks_is_framed_anew(raw: bytes) -> None:
    """Extensions are dropped, and our framing never depends on bytes that have yet to come."""
    _, framed = ChunkedReader().feed(raw)
    assert framed is None


@pytest.mark.parametrize(
    "raw",
    [
        b"+5\r\nhello\r\n",
        b"1_0\r\n",
        b"5 \r\nhello\r\n",
        b" 5\r\n",
        b"0x5\r\n",
        b"\r\n",
        b"5\r\nhelloXX",
        b"g\r\n",
        b"5" * 2000,
    ],
)
def test_a_chunk_that_is_not_strict_is_refused(raw: bytes) -> None:
    """int(x, 16) alone would take several of these."""
    with pytest.raises(BadResponse):
        ChunkedReader().feed(raw)


@pytest.mark.parametrize(
    ("block", "framing", "length", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", Framing.LENGTH, 5, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0", Framing.NONE, 0, True),
        (b"HTTP/1.1 200\r\nTransfer-Encoding: Chunked", Framing.CHUNKED, 0, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5", Framing.LENGTH, 5, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close", Framing.LENGTH, 5, False),
        (b"HTTP/1.1 200 OK\r\nServer: x", Framing.CLOSE, 0, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5", Framing.LENGTH, 5, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive", Framing.LENGTH, 5, True),
        (b"HTTP/1.1 204 No Content", Framing.NONE, 0, True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9", Framing.NONE, 9, True),
    ],
)
def test_the_end_of_a_body_is_known_from_its_head(
    block: bytes, framing: Framing, length: int, keep_alive: bool
) -> None:
    """RFC 9112 §6.3, for answers to POST and GET."""
    head = parse_head(block)
    assert (head.framing, head.length, head.keep_alive) == (framing, length, keep_alive)


@pytest.mark.parametrize(
    "block",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded",
        b"HTTP/1.1 200 OK\r\nA : b",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d",
        b"HTTP/1.1 200 OK\r\nA: \0",
        b"HTTP/2 200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 099 OK",
        b"ICY 200 OK",
    ],
)
def test_a_head_with_two_readings_is_refused(block: bytes) -> None:
    """Smuggling needs two readings: there is never a repair."""
    with pytest.raises(BadResponse):
        parse_head(block)
