"""Random streams: no cutting, no template and no oddity may change what is counted, billed or forwarded."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter_proxy.metering.injection import NOTHING_HIDDEN, Hidden
from meter_proxy.metering.request import Asked
from meter_proxy.metering.stream import StreamMeter
from meter_proxy.metering.template import Kinds, kinds_of
from meter_proxy.usage import Operation
from tests.unit.metering.corpus import EVERYTHING, cut, run, without_hidden

texts = st.sampled_from(
    ["a", "", "b c", '"', "\\", "\n", '\\"', "春", '"},"finish_reason":"stop"}],"usage":{', "data: [DONE]", "[DONE]"]
)
counts = st.sampled_from([0, 1, 2, 5, 17, 2**40, 1.0, 2.5, "3", None, -1, True])
usages = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": counts,
        "completion_tokens": counts,
        "total_tokens": counts,
        "prompt_tokens_details": st.fixed_dictionaries({"cached_tokens": counts}),
        "usage": st.just({"completion_tokens": 9}),
    },
)
deltas = st.fixed_dictionaries({}, optional={"content": texts, "reasoning_content": texts, "usage": usages}) | st.none()
choices = st.fixed_dictionaries(
    {"delta": deltas},
    optional={"index": st.sampled_from([0, 1]), "finish_reason": st.sampled_from([None, "", "stop"]), "usage": usages},
)
plain = st.builds(
    lambda text, number: {
        "id": f"x{number}",
        "created": 17 + number,
        "choices": [{"index": 0, "delta": {"content": text}}],
        "usage": None,
    },
    texts,
    st.integers(0, 1),
)
running = st.builds(
    lambda text, count: {
        "choices": [{"index": 0, "delta": {"content": text}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": 9 + count},
    },
    texts,
    st.integers(0, 40),
)
answers = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(choices, max_size=2) | st.none(),
        "usage": usages | st.just([1]),
        "obfuscation": texts,
        "error": st.sampled_from([None, "x"]),
        "timings": st.fixed_dictionaries({"prompt_n": counts, "predicted_n": counts}),
        "x_groq": st.fixed_dictionaries({"usage": usages}),
    },
)
printed = st.builds(
    lambda wire, separators, ascii_only: json.dumps(wire, separators=separators, ensure_ascii=ascii_only).encode(),
    plain | plain | running | running | answers,
    st.sampled_from([(",", ":"), (", ", ": ")]),
    st.booleans(),
)
data_lines = st.builds(lambda field, payload: field + payload, st.sampled_from([b"data: ", b"data:"]), printed)
other_lines = st.sampled_from(
    [
        b"data: [DONE]",
        b": ping",
        b"event: error",
        b"data",
        b"data: {",
        b"id: 1",
        b"data: \xff",
        b"\xef\xbb\xbfdata: 1",
        b"data: " + b"x" * 600,
    ]
)
ends = st.sampled_from([b"\n\n"] * 6 + [b"\r\n\r\n", b"\r\r", b"\n", b"\r\n", b"\n\r\n", b""])
streams = st.lists(st.tuples(data_lines | data_lines | other_lines, ends), max_size=14).map(
    lambda parts: b"".join(line + end for line, end in parts)
)
hiding = st.sampled_from([NOTHING_HIDDEN, Hidden(usage_event=True), Hidden(running_usage=True), EVERYTHING])


# One server's running usages, in one style; now and then another input, a part of it cached, tokens that were thought.
odd_usages = st.fixed_dictionaries(
    {"prompt_tokens": st.sampled_from([9, 9, 9, 12])},
    optional={
        "prompt_tokens_details": st.fixed_dictionaries({"cached_tokens": st.sampled_from([0, 4, 11])}),
        "cached_tokens": st.sampled_from([1, 2]),
        "reasoning_tokens": st.sampled_from([0, 1, 30]),
        "output_tokens": st.sampled_from([1, 7]),
        "usage": st.just({"completion_tokens": 9}),
    },
)
counting = st.builds(
    lambda text, count, odd, hidden: {
        "choices": [{"index": 0, "delta": {"content": text}}],
        "usage": {**odd, "completion_tokens": count, "total_tokens": odd["prompt_tokens"] + count + hidden},
    },
    st.sampled_from(["a", "b", "b", ""]),
    st.integers(0, 40),
    st.just({"prompt_tokens": 9}) | odd_usages,
    st.sampled_from([0] * 9 + [30]),
)
timed = st.builds(
    lambda count, fresh: {
        "choices": [{"index": 0, "delta": {"content": "a"}}],
        "timings": {"prompt_n": fresh, "cache_n": 3, "predicted_n": count, "predicted_ms": count + 0.5},
    },
    st.integers(0, 40),
    st.sampled_from([9, 9, 9, 2]),
)
ending = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 41, "total_tokens": 50}}
finishing = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": ending["usage"]}
counting_streams = st.lists(
    counting | counting | timed | plain | st.sampled_from([ending, finishing]), max_size=14
).map(lambda wires: [b"data: " + json.dumps(wire, separators=(",", ":")).encode() + b"\n\n" for wire in wires])


def metered(
    reads: list[bytes], choices_asked: int, hidden: Hidden, max_event_bytes: int = 500
) -> tuple[bytes, dict[str, Any]]:
    """What the client got, and all that the meter says."""
    asked = Asked(model="m", stream=True, choices=choices_asked)
    meter = StreamMeter(Operation.CHAT, asked=asked, hidden=hidden, max_event_bytes=max_event_bytes)
    sent = run(meter, reads)
    names = ("content_events", "finished", "done", "failed", "response_model", "bad_usage")
    return sent, {"reading": meter.usage_so_far(), **{name: getattr(meter, name) for name in names}}


@settings(max_examples=400)
@given(streams, st.lists(st.integers(0, 3000), max_size=20), hiding, st.sampled_from([1, 2]))
def test_any_cutting_gives_the_same_bytes_and_counts(
    data: bytes, offsets: list[int], hidden: Hidden, asked: int
) -> None:
    """Whole, byte by byte, and at random; hidden or not, the counts are the same."""
    sent, said = metered([data], asked, hidden)
    assert metered([data[at : at + 1] for at in range(len(data))], asked, hidden) == (sent, said)
    assert metered(cut(data, [offset for offset in offsets if offset < len(data)]), asked, hidden) == (sent, said)
    passed, unhidden = metered([data], asked, NOTHING_HIDDEN)
    assert passed == data
    assert unhidden == said


@settings(max_examples=300)
@given(streams, hiding)
def test_only_what_is_hidden_is_missing(data: bytes, hidden: Hidden) -> None:
    """As the reference sees it, which knows neither reads nor templates, nor a bound, nor an event without its end."""
    if data.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")):
        assert metered([data], 1, hidden, max_event_bytes=1_000_000)[0] == without_hidden(data, hidden)


@settings(max_examples=400)
@given(streams, st.sampled_from([1, 2]))
def test_events_known_by_their_bytes_count_as_parsed_ones(data: bytes, asked: int) -> None:
    """A meter that never learns a template says the same, and so does one that other streams have taught."""
    taught = metered([data], asked, EVERYTHING)
    kinds_of.cache_clear()
    assert metered([data], asked, EVERYTHING) == taught
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kinds, "learn", lambda *_, **__: None)
        kinds_of.cache_clear()
        assert metered([data], asked, EVERYTHING) == taught


@settings(max_examples=600)
@given(counting_streams, st.lists(st.integers(1, 4), min_size=14, max_size=14), hiding)
def test_what_is_told_is_what_would_be_read(events: list[bytes], in_a_read: list[int], hidden: Hidden) -> None:
    """Who takes the output as it is told, where nothing else has changed, knows what one knows who asks each time."""
    asked = Asked(model="told", stream=True)
    telling, asking = (StreamMeter(Operation.CHAT, asked=asked, hidden=hidden, max_event_bytes=500) for _ in range(2))
    known = telling.usage_so_far()
    while events:
        read, events = b"".join(events[: in_a_read[0]]), events[in_a_read.pop(0) :]
        assert telling.feed(read) == asking.feed(read)
        if telling.told_at == telling.content_events and not (telling.finished or telling.done):
            usage = msgspec.structs.replace(known.usage, output_tokens=telling.told_output)
            known = msgspec.structs.replace(known, usage=usage)
        else:
            known = telling.usage_so_far()
        assert known == asking.usage_so_far()
