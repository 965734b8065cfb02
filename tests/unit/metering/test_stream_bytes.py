"""StreamMeter: what it hands out, holds back and takes out, beyond the corpus."""

import pytest

from meter_proxy.metering.injection import NOTHING_HIDDEN, Hidden
from meter_proxy.usage import Basis
from tests.unit.metering.corpus import EVERYTHING, run
from tests.unit.metering.wire import DONE, billed, event, meter, text, usage


def test_an_event_over_the_bound_is_one_content_event_and_passes() -> None:
    """Held back or not, it is not buffered beyond the bound, and the stream goes on after it."""
    big = text("x" * 2000)
    for hidden in (NOTHING_HIDDEN, EVERYTHING):
        for size in (1, 7, 500, 10_000):
            stream = meter(hidden=hidden, max_event_bytes=1000)
            sent = text("a") + big + text("b")
            reads = [sent[at : at + size] for at in range(0, len(sent), size)]
            assert run(stream, reads) == sent
            assert stream.content_events == 3
            assert stream.bad_usage == ["event_too_big"]


def test_what_is_held_back_is_bounded() -> None:
    """An upstream that never ends an event cannot fill our memory."""
    stream = meter(hidden=EVERYTHING, max_event_bytes=1000)
    sent = 0
    got = len(stream.feed(b'data: {"choices":[{"delta":{"content":"'))
    for _ in range(100):
        got += len(stream.feed(b"x" * 100))
        sent += 100
        assert sent + 40 - got <= 1003 + 40


def test_an_unfinished_event_counts_at_the_end_if_it_is_whole() -> None:
    """Some servers forget the last blank line; half an event is no evidence."""
    for tail, expected in (
        (b"\n", (9, 4, Basis.REPORTED)),
        (b"", (9, 4, Basis.REPORTED)),
        (b"x", (None, 1, Basis.COUNTED)),
    ):
        stream = meter()
        stream.feed(text("a") + event({"choices": [], "usage": usage(9, 4)})[:-2] + tail)
        assert billed(stream)[1:] == (1, Basis.COUNTED)
        stream.finish()
        assert billed(stream) == expected


def test_an_unfinished_event_goes_out_at_the_end_as_it_came() -> None:
    """Unless it is whole and must not be seen."""
    for rest in (b'data: {"choices":[],"usage":{"prompt', b": half a comm", b"data", text("b")[:-2], text("b")[:-1]):
        stream = meter(hidden=EVERYTHING)
        assert stream.feed(text("a") + rest) == text("a")
        assert stream.finish() == rest
        assert stream.finish() == b""
    stream = meter(hidden=EVERYTHING)
    stream.feed(event({"choices": [], "usage": usage(9, 4)})[:-1])
    assert stream.finish() == b""


def test_after_done_nothing_is_held_or_changed() -> None:
    """Not even an unfinished event, or one that would have been taken out."""
    after = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\ndata: {"ch'
    stream = meter(hidden=EVERYTHING)
    assert stream.feed(text("a") + DONE + after) == text("a") + DONE + after
    assert stream.feed(b"oices") == b"oices"
    assert stream.finish() == b""


def test_a_heartbeat_is_not_held_back() -> None:
    """A comment with its blank line goes out at once, also while something may have to be taken out."""
    stream = meter(hidden=EVERYTHING)
    stream.feed(text("a"))
    assert stream.feed(b": keep-alive\n\n") == b": keep-alive\n\n"
    assert not stream.bad_usage


def test_crlf_of_an_event_that_was_taken_out_is_taken_out_whole() -> None:
    """Also when the LF comes with the next read, or never."""
    hidden = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\r\n\r\n'
    data = b"data: a\r\n\r\n" + hidden + b"data: b\r\n\r\n"
    for first in range(len(data)):
        stream = meter(hidden=EVERYTHING)
        assert run(stream, [data[:first], data[first:]]) == b"data: a\r\n\r\ndata: b\r\n\r\n"


@pytest.mark.parametrize(
    ("payload", "left"),
    [
        ('{"choices":[{"delta":{}}],"usage":{"completion_tokens":1}}', '{"choices":[{"delta":{}}]}'),
        ('{"usage":{"completion_tokens":1},"choices":[{"delta":{}}]}', '{"choices":[{"delta":{}}]}'),
        ('{ "usage" : {"completion_tokens":1} , "choices":[{"delta":{}}]}', '{  "choices":[{"delta":{}}]}'),
        ('{"a":1, "usage": {"completion_tokens":1}, "choices":[{}]}', '{"a":1, "choices":[{}]}'),
        (
            '{"choices":[{"usage":{"completion_tokens":1}}],"usage":{"x":1}}',
            '{"choices":[{"usage":{"completion_tokens":1}}]}',
        ),
        ('{"choices":[{}],"us\\u0061ge":{"completion_tokens":1}}', '{"choices":[{}]}'),
        (
            '{"choices":[{"delta":{"content":"\\",\\"usage\\":{"}}],"usage":{"a":"}"}}',
            '{"choices":[{"delta":{"content":"\\",\\"usage\\":{"}}]}',
        ),
        (
            '{"choices":[{}],"x\\"usage":{"usage":{"a":1}},"usage":{"b":1}}',
            '{"choices":[{}],"x\\"usage":{"usage":{"a":1}}}',
        ),
        (
            '{"choices":[{}],"usage":{"b":1},"x":{"y":1,"usage":{"a":1}}}',
            '{"choices":[{}],"x":{"y":1,"usage":{"a":1}}}',
        ),
        ('{"choices":[{}],"usage":{"a":1},"usage":{"b":2}}', '{"choices":[{}]}'),
        ('{"choices":[{}],"usage":null}', '{"choices":[{}],"usage":null}'),
        ('{"choices":[{}],"usage":[1]}', '{"choices":[{}],"usage":[1]}'),
        (
            '{"choices":[{"delta":{"content":"\\ud83d"}}],"usage":{"a":1}}',
            '{"choices":[{"delta":{"content":"\\ud83d"}}]}',
        ),
    ],
)
def test_only_the_outermost_usage_is_cut_out(payload: str, left: str) -> None:
    """Wherever it stands, however it is written, and whatever else is called usage."""
    stream = meter(hidden=Hidden(running_usage=True))
    assert run(stream, [f"data: {payload}\n\n".encode()]) == f"data: {left}\n\n".encode()


@pytest.mark.parametrize("hidden", [Hidden(usage_event=True), EVERYTHING])
@pytest.mark.parametrize("choices", ['"choices":null,', "", '"choices":{},', '"choices":0,'])
def test_a_usage_without_an_empty_list_of_choices_is_not_taken_out(hidden: Hidden, choices: str) -> None:
    """Only the event that our injection causes is ours to take out."""
    raw = ("data: {" + choices + '"usage":{"prompt_tokens":9,"completion_tokens":4}}\n\n').encode()
    stream = meter(hidden=hidden)
    assert run(stream, [raw]) == raw
    assert billed(stream)[:2] == (9, 4)
