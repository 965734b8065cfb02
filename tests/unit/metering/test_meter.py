"""meter_for: what came decides, not what was asked; and answers that come compressed."""

import gzip
import json
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from meter_proxy.metering import coded
from meter_proxy.metering.body import BodyMeter
from meter_proxy.metering.injection import NOTHING_HIDDEN, Hidden
from meter_proxy.metering.meter import Meter, meter_for
from meter_proxy.metering.request import Asked
from meter_proxy.metering.stream import StreamMeter
from meter_proxy.usage import Basis, Operation
from tests.unit.metering.corpus import EVERYTHING, run

STREAM = (
    b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}\n\n'
    b"data: [DONE]\n\n"
)
BODY = json.dumps(
    {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}
).encode()


def meter(
    content_type: str = "text/event-stream",
    coding: str = "",
    status: int = 200,
    hidden: Hidden = NOTHING_HIDDEN,
    max_event_bytes: int = 1_048_576,
) -> Meter:
    return meter_for(
        Operation.CHAT,
        status=status,
        content_type=content_type,
        content_encoding=coding,
        asked=Asked(model="m", stream=True),
        hidden=hidden,
        max_event_bytes=max_event_bytes,
    )


def is_metered(metering: Meter) -> bool:
    """The usage in STREAM or BODY was found."""
    reading = metering.usage_so_far()
    return (reading.usage.input_tokens, reading.usage.output_tokens, reading.basis) == (9, 4, Basis.REPORTED)


@pytest.mark.parametrize(
    "content_type", ["text/event-stream", "Text/Event-Stream;charset=UTF-8", "", "application/json", "text/plain"]
)
@pytest.mark.parametrize("lead", [b"", b"\n\n", b": hi\n\n", b"event: x\n", b"\xef\xbb\xbf", b"id: 1\n", b"retry: 1\n"])
@pytest.mark.parametrize("hidden", [NOTHING_HIDDEN, EVERYTHING])
def test_a_stream_is_metered_whatever_it_is_called(content_type: str, lead: bytes, hidden: Hidden) -> None:
    """Its first byte tells, wherever it was cut; nothing is held for that."""
    for reads in ([lead + STREAM], [bytes([byte]) for byte in lead + STREAM]):
        metering = meter(content_type, hidden=hidden)
        sent = run(metering, reads)
        assert is_metered(metering)
        assert metering.done and metering.finished and metering.content_events == 2
        assert sent == lead + (
            STREAM if hidden == NOTHING_HIDDEN else STREAM.replace(STREAM.split(b"\n\n")[2] + b"\n\n", b"")
        )


@pytest.mark.parametrize("content_type", ["application/json", "", "text/html"])
@pytest.mark.parametrize("lead", [b"", b"\n\n \n", b"\xef\xbb\xbf"])
def test_a_body_is_metered_whatever_it_is_called(content_type: str, lead: bytes) -> None:
    """Blank lines that keep the connection alive pass at once."""
    for reads in ([lead + BODY], [bytes([byte]) for byte in lead + BODY]):
        metering = meter(content_type, hidden=EVERYTHING)
        assert all(metering.feed(read) is read for read in reads)
        assert metering.finish() == b""
        assert is_metered(metering) and metering.done


@pytest.mark.parametrize(
    "reads", [STREAM, BODY, b"\n" + STREAM, STREAM[: STREAM.index(b"\n\n")], STREAM.replace(b":9", b":-9")]
)
def test_what_a_sniffing_meter_says_is_what_the_right_one_says(reads: bytes) -> None:
    """After each byte and at the end; and only a body is read at its end."""
    sniffing = meter("application/json")
    inner = meter() if b"data:" in reads else BodyMeter(Operation.CHAT, asked=Asked(model="m", stream=True))
    names = ("content_events", "finished", "done", "failed", "has_usage", "response_model", "bad_usage")
    for byte in reads:
        sniffing.feed(bytes([byte]))
        inner.feed(bytes([byte]))
        assert [getattr(sniffing, name) for name in names] == [getattr(inner, name) for name in names]
        assert sniffing.reads_at_end is (reads is BODY)
    assert sniffing.finish() == inner.finish()
    assert [getattr(sniffing, name) for name in names] == [getattr(inner, name) for name in names]
    assert sniffing.usage_so_far() == inner.usage_so_far()


@pytest.mark.parametrize("status", [301, 400, 401, 429, 500, 502])
def test_an_error_status_bills_nothing(status: int) -> None:
    """Even if a usage stands in it."""
    metering = meter(status=status)
    assert run(metering, [STREAM]) == STREAM
    assert metering.usage_so_far().basis is Basis.NONE


def raw_deflate(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush()


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:100]) + gzip.compress(data[100:])


def two_frames(data: bytes) -> bytes:
    return zstandard.compress(data[:100]) + zstandard.compress(data[100:])


CODINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("X-GZIP", gzip.compress),
    ("gzip", two_members),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("br", brotli.compress),
    ("zstd", zstandard.compress),
    ("zstd", two_frames),
    (" identity ", bytes),
]


@pytest.mark.parametrize(("coding", "encode"), CODINGS)
@pytest.mark.parametrize(
    ("content_type", "plain"), [("text/event-stream", STREAM), ("application/json", BODY), ("", STREAM)]
)
def test_a_compressed_answer_is_metered_and_passes_untouched(
    coding: str, encode: Callable[[bytes], bytes], content_type: str, plain: bytes
) -> None:
    """However it was cut; nothing is taken out of it."""
    data = encode(plain)
    for reads in ([data], [bytes([byte]) for byte in data]):
        metering = meter(content_type, coding, hidden=NOTHING_HIDDEN if "identity" in coding else EVERYTHING)
        assert all(metering.feed(read) is read for read in reads)
        assert metering.finish() == b""
        assert is_metered(metering)
        assert metering.bad_usage == []


def test_each_flush_of_a_compressed_stream_is_metered_at_once() -> None:
    """A hang-up is billed what was decoded by then."""
    deflate = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    metering = meter(coding="gzip")
    for number, event in enumerate(STREAM.split(b"\n\n")[:2], start=1):
        metering.feed(deflate.compress(event + b"\n\n") + deflate.flush(zlib.Z_SYNC_FLUSH))
        assert metering.content_events == number


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "compress", "gzip, br"])
def test_a_broken_or_unknown_coding_is_flagged_and_passes(coding: str) -> None:
    """It never raises, and never stops the answer."""
    metering = meter(coding=coding)
    for _ in range(3):
        assert metering.feed(b"\xff\x00garbage" * 20) == b"\xff\x00garbage" * 20
    assert metering.finish() == b""
    assert "bad_coding" in metering.bad_usage


@pytest.mark.parametrize(("coding", "encode"), CODINGS[:-1])
def test_a_compressed_answer_that_is_cut_short_is_flagged(coding: str, encode: Callable[[bytes], bytes]) -> None:
    """What was decoded before counts."""
    metering = meter(coding=coding)
    metering.feed(encode(STREAM)[:-9])
    metering.finish()
    assert "bad_coding" in metering.bad_usage


def test_what_was_decoded_before_the_damage_counts() -> None:
    """Two events came through whole."""
    deflate = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    good = deflate.compress(b"\n\n".join(STREAM.split(b"\n\n")[:2]) + b"\n\n") + deflate.flush(zlib.Z_SYNC_FLUSH)
    metering = meter(coding="gzip")
    for read in (good, b"\xff" * 50, b"more"):
        assert metering.feed(read) is read
    assert metering.content_events == 2
    assert metering.usage_so_far().basis is Basis.COUNTED


@pytest.mark.parametrize(("coding", "encode"), [*CODINGS[:1], *CODINGS[3:4], *CODINGS[5:7]])
def test_a_bomb_is_given_up_at_a_bound(
    coding: str, encode: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No decoded piece is large, and one read decodes only so much."""
    pieces: list[bytes] = []
    monkeypatch.setattr(StreamMeter, "feed", lambda _, data: pieces.append(data))
    monkeypatch.setattr(coded, "MAX_DECODED_BYTES_PER_FEED", 2_000_000)
    bomb = encode(b"data: " + b"\0" * 20_000_000)
    metering = meter(coding=coding, max_event_bytes=10_000)
    assert metering.feed(bomb) is bomb
    metering.finish()
    assert "bad_coding" in metering.bad_usage
    assert max(map(len, pieces)) <= 9 * 128 * 1024
    assert sum(map(len, pieces)) <= 2_000_000 + 9 * 128 * 1024


def test_a_window_beyond_what_the_coding_allows_is_refused() -> None:
    """A zstd frame may ask for gigabytes of memory before its first byte."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=0)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    metering = meter(coding="zstd")
    metering.feed(frame.compress(STREAM) + frame.flush())
    assert metering.bad_usage == ["bad_coding"]
