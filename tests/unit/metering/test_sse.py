"""Framing of Server-Sent Events: where events end, whatever the line ends are and wherever the stream was cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_proxy.metering import sse

LINE_ENDS = [b"\n", b"\r\n", b"\r"]


def events(reads: list[bytes], max_event_bytes: int = 1000) -> list[bytes]:
    """The texts of all events, oversized ones as TOO_BIG."""
    framer = sse.Framer(max_event_bytes)
    return [text for read in reads for _, text in framer.push(read) if text is not None]


def one_by_one(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize("blank", LINE_ENDS)
@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_an_event_ends_at_a_blank_line_of_any_kind(line_end: bytes, blank: bytes) -> None:
    """LF, CRLF and a lone CR all end lines, also mixed within one event."""
    if line_end + blank == b"\r\n":
        blank = b"\r"  # a CR and an LF side by side are one line end
    data = b"data: 1" + line_end + blank + b"data: 2" + line_end + b"data: 3" + line_end + blank
    expected = [b"data: 1", b"data: 2" + line_end + b"data: 3"]
    assert events([data]) == expected
    assert events(one_by_one(data)) == expected


def test_an_event_is_complete_at_a_cr_that_may_be_half_a_crlf() -> None:
    """It is not held until the next byte shows whether an LF belongs to it."""
    framer = sse.Framer(1000)
    assert framer.push(b"data: 1\r\n\r") == [(b"data: 1\r\n\r", b"data: 1")]
    assert framer.push(b"\ndata: 2\r\n\r\n") == [(b"\n", None), (b"data: 2\r\n\r\n", b"data: 2")]


def test_the_lf_of_a_cr_that_was_taken_out_is_not_handed_out() -> None:
    """Whoever drops an event drops its line end whole."""
    framer = sse.Framer(1000)
    framer.push(b"data: 1\r\n\r")
    framer.drop_rest_of_line_end()
    assert framer.push(b"\ndata: 2\n\n") == [(b"data: 2\n\n", b"data: 2")]


def test_blank_lines_in_front_are_handed_out_at_once_and_heartbeats_with_their_blank_line() -> None:
    """A comment line belongs to the event that it stands in front of, so it waits for what follows it."""
    framer = sse.Framer(1000)
    assert framer.push(b"\n\n: ping\n") == [(b"\n", None), (b"\n", None)]
    assert framer.push(b"\n: pi") == [(b": ping\n\n", b": ping")]
    assert framer.push(b"ng\ndata: 1\n\n") == [(b": ping\ndata: 1\n\n", b": ping\ndata: 1")]


def test_a_comment_within_an_event_belongs_to_it() -> None:
    """And does not end it."""
    assert events([b"data: 1\n: data: 2\n\n"]) == [b"data: 1\n: data: 2"]


def test_a_bom_may_stand_first_and_only_there() -> None:
    """Cut within it, too."""
    for reads in ([b"\xef\xbb\xbfdata: 1\n\n"], one_by_one(b"\xef\xbb\xbfdata: 1\n\n")):
        assert events(reads) == [b"data: 1"]
    assert events([b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n"]) == [b"data: 1", b"\xef\xbb\xbfdata: 2"]


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_an_event_over_the_bound_passes_and_the_next_is_found(line_end: bytes) -> None:
    """The bound is on the event's text; what follows its blank line is framed as ever, however it was cut."""
    blank = line_end * 2
    fits, too_big = b"data: " + b"x" * 14, b"data: " + b"y" * 15
    data = fits + blank + too_big + blank + b"data: 3" + blank
    expected = [fits, sse.TOO_BIG, b"data: 3"]
    assert events([data], max_event_bytes=20) == expected
    for size in range(1, 12):
        reads = [data[at : at + size] for at in range(0, len(data), size)]
        assert events(reads, max_event_bytes=20) == expected


def test_what_is_held_is_bounded() -> None:
    """An endless event costs no more memory than the bound and a blank line."""
    framer = sse.Framer(100)
    framer.push(b"data: ")
    for _ in range(1000):
        framer.push(b"x" * 50)
        assert len(framer.rest()) <= 103


pieces_of_streams = st.lists(
    st.sampled_from(
        [
            b"data: 1",
            b"data",
            b":c",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"x" * 30,
            b"\xef\xbb\xbf",
            b"\xef",
            b"event: e",
            b" ",
        ]
    ),
    max_size=30,
).map(b"".join)


@given(pieces_of_streams, st.lists(st.integers(0, 400), max_size=20))
def test_any_cutting_gives_the_same_events_and_no_byte_is_lost(data: bytes, offsets: list[int]) -> None:
    """Joined pieces and the rest are the stream, and events do not depend on reads."""
    edges = sorted({0, len(data), *(offset for offset in offsets if offset < len(data))})
    for reads in ([data], one_by_one(data), [data[a:b] for a, b in itertools.pairwise(edges)]):
        framer = sse.Framer(40)
        pieces = [piece for read in reads for piece in framer.push(read)]
        assert b"".join(raw for raw, _ in pieces) + framer.rest() == data
        assert [text for _, text in pieces if text is not None] == events([data], max_event_bytes=40)


@pytest.mark.parametrize(
    ("text", "name", "data"),
    [
        (b"data: x", b"", b"x"),
        (b"data:x", b"", b"x"),
        (b"data:  x ", b"", b" x "),
        (b"data", b"", b""),
        (b"data: a\r\ndata: b\rdata:c", b"", b"a\nb\nc"),
        (b"event: error\ndata: x", b"error", b"x"),
        (b"event:error\nid: 1\n: data: y\ndata: x", b"error", b"x"),
        (b"database: x", b"", b""),
        (b"event: ping", b"ping", b""),
    ],
)
def test_fields_are_read_as_the_standard_says(text: bytes, name: bytes, data: bytes) -> None:
    """One space after the colon is not part of a value; several data lines are one value."""
    assert sse.parse(text) == (name, data)
