"""StreamMeter: what it counts and bills, beyond the corpus."""

import itertools
from typing import Any

import pytest

from meter_proxy.metering import stream as stream_module
from meter_proxy.metering import template as template_module
from meter_proxy.metering.dialects import Path
from meter_proxy.metering.dialects.wire import Answer, read_answer
from meter_proxy.metering.template import Shape, kinds_of, shape_of
from meter_proxy.usage import Basis, Usage
from tests.unit.metering.corpus import EVERYTHING, run
from tests.unit.metering.wire import DONE, billed, chunk, event, meter, text, usage


def test_nothing_seen_is_nothing_billed() -> None:
    """Before the first token the basis is none."""
    fresh = meter()
    fresh.feed(chunk({"role": "assistant", "content": ""}))
    assert fresh.usage_so_far().basis is Basis.NONE
    assert fresh.response_model == "m"


def test_a_running_count_older_than_the_text_goes_on_by_one_per_event() -> None:
    """The reading never falls below what the wire shows."""
    running = meter()
    for read in (text("a", usage=usage(9, 5)), text("b"), text("c")):
        running.feed(read)
    assert billed(running) == (9, 7, Basis.RUNNING)
    running.feed(DONE)
    assert billed(running) == (9, 7, Basis.RUNNING)


def test_a_running_count_that_stays_zero_is_not_believed() -> None:
    """Some servers know the input from the start and count the output at the end only."""
    running = meter()
    for read in (text("a", usage=usage(9, 0)), text("b", usage=usage(9, 0))):
        running.feed(read)
    assert billed(running) == (9, 2, Basis.COUNTED)
    assert running.usage_so_far().input_basis is Basis.RUNNING


def test_a_usage_event_in_mid_stream_is_a_running_count() -> None:
    """Text after it shows that it was not the last word."""
    running = meter()
    running.feed(text("a") + event({"choices": [], "usage": usage(9, 4)}))
    assert billed(running) == (9, 4, Basis.REPORTED)
    running.feed(text("b"))
    assert billed(running) == (9, 5, Basis.RUNNING)


@pytest.mark.parametrize("turns", [[0, 1] * 4, [0] * 4 + [1] * 4, [0, 0, 1, 1, 0, 1, 1, 0]])
def test_running_counts_of_each_choice_are_summed(turns: list[int]) -> None:
    """vLLM, SGLang and llama.cpp count each choice by itself; the input is theirs in common."""
    running = meter(choices=2)
    counts = [0, 0]
    for index in turns:
        counts[index] += 1
        running.feed(text("x", index=index, usage=usage(9, counts[index])))
    assert billed(running) == (9, 8, Basis.RUNNING)
    running.feed(chunk({}, "stop", 0) + chunk({}, "stop", 1) + event({"choices": [], "usage": usage(9, 8)}))
    assert billed(running) == (9, 8, Basis.REPORTED)


def test_a_running_count_of_all_choices_is_not_summed() -> None:
    """It grows with every text of any choice."""
    running = meter(choices=2)
    for count, index in enumerate([0, 1, 0, 1, 1], start=1):
        running.feed(text("x", index=index, usage=usage(9, count)))
    assert billed(running) == (9, 5, Basis.RUNNING)


def test_running_counts_of_several_prompts_add_their_inputs() -> None:
    """Choices of one prompt share it: index = prompt x n + i."""
    running = meter(choices=4, prompts=2)
    for index, prompt_tokens in ((0, 5), (1, 5), (2, 7), (3, 7)):
        choice = {"index": index, "text": "x", "finish_reason": None}
        running.feed(event({"choices": [choice], "usage": usage(prompt_tokens, 1)}))
    assert billed(running) == (12, 4, Basis.RUNNING)


def test_a_server_that_ignores_n_is_billed_its_one_answer() -> None:
    """Two choices asked, one given: the stream's end makes its usage final."""
    one = meter(choices=2)
    one.feed(text("a") + chunk({}, "stop") + event({"choices": [], "usage": usage(9, 4)}))
    assert billed(one) == (9, 1, Basis.COUNTED)
    one.feed(DONE)
    assert billed(one) == (9, 4, Basis.REPORTED)


def test_a_finish_reason_of_every_choice_makes_it_finished() -> None:
    """The first of two is not the end."""
    two = meter(choices=2)
    seen = []
    for index in (0, 1):
        two.feed(chunk({}, "stop", index))
        seen.append((two.finished, two.done))
    assert seen == [(False, False), (True, False)]


@pytest.mark.parametrize(
    "read",
    [
        event({"error": {"message": "x"}}),
        event({"error": "x"}),
        b"event: error\ndata: overloaded\n\n",
        chunk({}, "error"),
        event({"choices": None, "base_resp": {"status_code": 1004}}),
    ],
)
def test_an_error_in_the_stream_is_seen_and_its_text_not_billed(read: bytes) -> None:
    """In each of the shapes that servers give it."""
    broken = meter()
    broken.feed(text("a") + read)
    assert broken.failed
    assert billed(broken)[1:] == (1, Basis.COUNTED)


def test_text_that_looks_like_an_end_or_a_usage_is_text() -> None:
    """Within content, whether the event is parsed or known by its bytes."""
    stream = meter(hidden=EVERYTHING)
    tricks = [
        "data: [DONE]",
        "[DONE]",
        '"},"finish_reason":"stop"}],"usage":{"completion_tokens":99}}',
        '\n\ndata: {"choices":[],"usage":{}}\n\n',
    ]
    reads = [text(trick) for trick in ["a", "b", "c", *tricks]]
    assert run(stream, reads) == b"".join(reads)
    assert not stream.done and not stream.finished
    assert billed(stream) == (None, len(reads), Basis.COUNTED)


def test_an_event_with_two_choices_counts_once() -> None:
    """As in the corpus: events are counted, not choices."""
    both = meter(choices=2)
    both.feed(event({"choices": [{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "b"}}]}))
    assert both.content_events == 1


@pytest.mark.parametrize(
    ("delta", "counts"),
    [
        ({"content": "x"}, 1),
        ({"content": " "}, 1),
        ({"content": ""}, 0),
        ({"content": None}, 0),
        ({"content": [{"type": "thinking", "thinking": "x"}]}, 1),
        ({"content": []}, 0),
        ({"content": {"odd": 1}}, 0),
        ({"reasoning_content": "x"}, 1),
        ({"reasoning": "x"}, 1),
        ({"tool_calls": [{"function": {"name": "f"}}]}, 1),
        ({"tool_calls": [{"function": {"arguments": "{"}}]}, 1),
        ({"tool_calls": [{"custom": {"input": "x"}}]}, 1),
        ({"tool_calls": [{"index": 0, "id": "c", "function": {"arguments": ""}}]}, 0),
        ({"tool_calls": [None, 1, {"function": 3}]}, 0),
        ({"tool_calls": {}}, 0),
        ({"audio": {"data": "UklG"}}, 1),
        ({"audio": {"id": "a"}}, 0),
        ({"refusal": "no"}, 0),
        ({"function_call": {"name": "f"}}, 0),
        ({}, 0),
        (None, 0),
        ([], 0),
    ],
)
def test_what_counts_as_content(delta: Any, counts: int) -> None:
    """Text, reasoning, tool calls and audio, not empty; odd shapes count nothing and break nothing."""
    stream = meter()
    stream.feed(chunk(delta))
    assert stream.content_events == counts


def test_token_ids_are_a_running_count() -> None:
    """vLLM's return_token_ids tells how many tokens each event holds."""
    stream = meter()
    for ids in ([1, 2, 3], [], [4, 5]):
        stream.feed(event({"choices": [{"index": 0, "delta": {"content": "x"}, "token_ids": ids}]}))
    assert billed(stream) == (None, 5, Basis.RUNNING)
    stream.feed(DONE)
    assert billed(stream) == (None, 5, Basis.RUNNING)


def test_known_events_are_metered_as_parsed_ones() -> None:
    """A long stream in which kinds of events take turns: one read each, all in one, or byte by byte."""
    reads = [chunk({"role": "assistant", "content": ""})]
    for number in range(1, 40):
        reads.append(chunk({"reasoning_content": f"r{number}"}))
        if number % 7 == 0:
            reads.append(b": ping\n\n")
    for number in range(1, 60):
        reads.append(text('quote " back \\ \n' * (number % 3) + "x", usage=usage(9, 39 + number)))
        if number % 10 == 0:
            reads.append(chunk({"content": ""}, usage=usage(9, 39 + number)))
    reads += [chunk({}, "stop"), event({"choices": [], "usage": usage(9, 98)}), DONE]
    readings = []
    for cutting in (reads, [b"".join(reads)], [bytes([byte]) for byte in b"".join(reads)]):
        seen = []
        stream = meter()
        for read in cutting:
            stream.feed(read)
            seen.append((stream.content_events, billed(stream)))
        readings.append(seen)
    assert readings[0][-1] == readings[1][-1] == readings[2][-1] == (98, (9, 98, Basis.REPORTED))
    ends = list(itertools.accumulate(map(len, reads)))
    assert [readings[2][end - 1] for end in ends] == readings[0]
    running = [reading for _, reading in readings[0] if reading[2] is Basis.RUNNING]
    assert running == sorted(running) and running[0] == (9, 40, Basis.RUNNING)


def test_the_last_running_usage_is_read_with_its_details() -> None:
    """Known by its bytes or parsed: cached input is part of the reading."""
    stream = meter()
    for number in range(1, 9):
        stream.feed(text("x", usage=usage(9, number, prompt_tokens_details={"cached_tokens": 8})))
    assert stream.usage_so_far().usage == Usage(9, 8, 8, None)


def test_odd_usage_is_flagged_once_at_the_end() -> None:
    """A complete answer with text but no usage that counts is a reason, not a silent 0."""
    for last, reason in (
        (b"", "missing"),
        (event({"choices": [], "usage": usage(0, 0)}), "placeholder"),
        (event({"choices": [], "usage": {}}), "no_counts"),
        (event({"choices": [], "usage": usage(9, 0)}), "zero_output"),
        (event({"choices": [], "usage": usage(-1, 2)}), "negative"),
        (event({"choices": [], "usage": usage(9, 2, prompt_tokens_details={"cached_tokens": "x"})}), "bad_detail"),
    ):
        stream = meter()
        run(stream, [text("a"), last, last, DONE])
        assert stream.bad_usage == [reason]


def test_a_stream_that_is_cut_off_is_not_flagged() -> None:
    """A usage that could not come yet is not missing."""
    stream = meter()
    run(stream, [text("a")])
    assert stream.bad_usage == []


@pytest.mark.parametrize(
    "reads",
    [
        chunk({}, "stop") + event({"choices": [], "usage": usage(0, 0)}) + DONE,
        event({"choices": [], "usage": usage(0, 0)}) + DONE,
        chunk({}, "stop", usage=usage(0, 0)),
    ],
)
def test_an_explicit_zero_of_an_empty_answer_is_reported(reads: bytes) -> None:
    """Zero is a value."""
    stream = meter()
    stream.feed(reads)
    assert billed(stream) == (0, 0, Basis.REPORTED)


def test_a_zero_is_believed_though_a_reading_was_asked_for_before_it() -> None:
    stream = meter()
    assert billed(stream)[2] is Basis.NONE
    stream.feed(event({"choices": [], "usage": usage(0, 0)}))
    assert billed(stream) == (0, 0, Basis.REPORTED)


def test_a_zero_before_anything_was_generated_is_no_report() -> None:
    """Ollama and MiniMax put placeholders on every event, the first included."""
    stream = meter()
    stream.feed(chunk({"role": "assistant"}, usage=usage(0, 0)))
    assert billed(stream)[2] is Basis.NONE


def test_a_whole_message_at_the_end_is_not_counted_again() -> None:
    """MiniMax repeats it; alone it is the answer."""
    whole = event({"choices": [{"index": 0, "message": {"content": "ab"}, "finish_reason": "stop"}]})
    for reads, counted in ((text("a") + text("b") + whole, 2), (whole, 1)):
        stream = meter()
        stream.feed(reads)
        assert stream.content_events == counted


def test_a_stream_that_never_repeats_itself_is_rarely_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning costs as much as parsing ten events: it is given up, and tried again now and then."""
    tried: list[int] = []

    def counted(raw: bytes, text_bytes: int, spoken_at: tuple[Path, ...], usage_name: str | None) -> Shape | None:
        tried.append(text_bytes)
        return shape_of(raw, text_bytes, spoken_at, usage_name)

    monkeypatch.setattr(template_module, "shape_of", counted)
    for streams, events in ((1, 3000), (1000, 3)):
        tried.clear()
        kinds_of.cache_clear()
        for stream in range(streams):
            changing = meter()
            for number in range(events):
                changing.feed(text("x", seed=[stream, number]))
            assert changing.content_events == events
        assert 0 < len(tried) < 60


@pytest.mark.parametrize("in_one_read", [False, True])
def test_the_content_of_a_stream_like_an_earlier_one_is_not_parsed(
    monkeypatch: pytest.MonkeyPatch, in_one_read: bool
) -> None:
    """Nor is its first event; and the meter says all that it says of the one that was parsed."""
    parsed: list[bytes] = []

    def reading(payload: bytes) -> Answer | None:
        parsed.append(payload)
        return read_answer(payload)

    monkeypatch.setattr(stream_module, "read_answer", reading)
    kinds_of.cache_clear()
    seen = []
    for number in range(4):
        frame: dict[str, Any] = {"id": f"chatcmpl-{number}", "created": 1_700_000_000 + number}
        first, *rest = [text(content, **frame) for content in ("a", '"b"', "c")]
        end = [chunk({}, "stop", **frame), event({"choices": [], "usage": usage(9, 7), **frame}), DONE]
        parsed.clear()
        stream = meter()
        stream.feed(first)
        at_first = (stream.sample == first[6:-2], stream.response_model, stream.content_events)
        run(stream, [b"".join(rest + end)] if in_one_read else rest + end)
        seen.append((at_first, billed(stream), stream.finished, stream.done, stream.bad_usage))
    assert len(parsed) == 2  # how it finished, and the usage
    assert all(each == seen[0] for each in seen)
    assert seen[0] == ((True, "m", 1), (9, 7, Basis.REPORTED), True, True, [])


def test_a_running_usage_of_several_choices_is_parsed_though_it_is_known_of_one() -> None:
    """Counts of each choice must be told apart: their bytes are no common kind."""
    kinds_of.cache_clear()
    one = meter()
    for number in range(1, 9):
        one.feed(text("x", usage=usage(9, number)))
    two = meter(choices=2)
    for index, count in ((0, 1), (1, 1), (0, 2), (1, 2), (0, 3)):
        two.feed(text("x", index=index, usage=usage(9, count)))
    assert billed(one) == (9, 8, Basis.RUNNING)
    assert billed(two) == (9, 5, Basis.RUNNING)


@pytest.mark.parametrize("done", [DONE, b"data:[DONE]\n\n", b"event: error\ndata: [DONE]\n\n"])
@pytest.mark.parametrize("in_one_read", [False, True])
def test_nothing_after_the_end_is_billed_or_taken_out(done: bytes, in_one_read: bool) -> None:
    """Also what is known by its bytes, an error, and a usage to be hidden; and the end itself is no error."""
    reads = [text("a", usage=usage(9, number)) for number in range(1, 6)]
    late = [text("a", usage=usage(9, 6)), event({"error": "x"}), event({"choices": [], "usage": usage(9, 7)})]
    stream = meter(hidden=EVERYTHING)
    run(stream, reads)
    sent = run(stream, [b"".join([done, *late])] if in_one_read else [done, *late])
    assert sent == b"".join([done, *late])
    assert (stream.content_events, stream.done, stream.failed) == (5, True, False)
    assert billed(stream)[:2] == (9, 5)


def test_it_shows_at_once_that_counts_have_been_seen() -> None:
    """Parsed or known by their bytes: whoever looks after each read need not ask for the usage."""
    stream = meter()
    seen = []
    for read in (text("a"), event({"choices": [], "usage": usage(9, 0)})):
        stream.feed(read)
        seen.append(stream.has_usage)
    assert seen == [False, True]
    kinds_of.cache_clear()
    for number in range(1, 6):
        meter().feed(text("a", usage=usage(9, number)))
    stream = meter()
    stream.feed(text("a", usage=usage(9, 1)))
    assert stream.has_usage


def test_a_second_usage_at_the_end_is_read_though_the_first_was_asked_for() -> None:
    """The last one wins, whenever somebody looked."""
    stream = meter()
    stream.feed(text("a") + chunk({}, "stop"))
    for count in (4, 5):
        stream.feed(event({"choices": [], "usage": usage(9, count)}))
        assert billed(stream) == (9, count, Basis.REPORTED)


def test_a_bom_in_mid_stream_is_none() -> None:
    """Only the first bytes of a stream may be one: also where the events before it needed no framing."""
    for bom in (b"\xef\xbb\xbf", b"\n\xef\xbb\xbf"):
        for before in (text("a"), text("a") + text("a")):
            stream = meter()
            for read in (before, bom + text("b"), text("c")):
                stream.feed(read)
            assert stream.content_events == before.count(b"data:") + 1
    stream = meter()
    stream.feed(b"\xef\xbb\xbf" + text("a"))
    assert stream.content_events == 1


def test_an_event_over_the_bound_counts_once_however_it_comes() -> None:
    """Known by its bytes or not, in a read by itself or among others."""
    small = [text("x") for _ in range(6)]
    large = text("x" * 300)
    for reads in (
        [*small, large, small[0]],
        [b"".join([*small, large, small[0]])],
        [b"".join(small), large + small[0]],
    ):
        stream = meter(max_event_bytes=250)
        for read in reads:
            stream.feed(read)
        assert stream.content_events == 8
        assert stream.bad_usage == ["event_too_big"]


def test_the_output_of_a_running_usage_is_told_where_nothing_else_has_changed() -> None:
    """So that it need not be read at each event; the input is as it was read before."""
    kinds_of.cache_clear()
    stream = meter()
    told = []
    for count in range(1, 9):
        stream.feed(text("a", usage={**usage(9, count), "total_tokens": 9 + count}))
        told.append(stream.told_output if stream.told_at == stream.content_events else None)
        if told[-1] is None:
            assert billed(stream) == (9, count, Basis.RUNNING)
    assert told[-4:] == [5, 6, 7, 8]
    assert billed(stream) == (9, 8, Basis.RUNNING)
    stream.feed(text("a", usage={**usage(12, 9), "total_tokens": 21}))
    assert stream.told_at != stream.content_events
    assert billed(stream) == (12, 9, Basis.RUNNING)


def test_a_running_count_with_a_total_that_it_does_not_explain_is_not_told() -> None:
    """It is not believed (Gemini's running totals jump): what shows is counted."""
    kinds_of.cache_clear()
    stream = meter()
    for count in range(1, 9):
        stream.feed(text("a", usage={**usage(9, 2 * count), "total_tokens": 39 + 2 * count}))
        assert billed(stream) == (9, count, Basis.COUNTED)
        assert stream.told_at != stream.content_events


def test_a_count_that_nobody_asked_for_is_not_what_the_next_one_differs_from() -> None:
    """In between the reading was one of another kind."""

    def timed(count: int) -> bytes:
        return text("a", timings={"prompt_n": 9, "cache_n": 3, "predicted_n": count})

    kinds_of.cache_clear()
    for counts in ([0] * 4, [1, 2, 3, 4]):  # both kinds are known from other streams
        run(meter(), [timed(count) for count in counts])
    stream = meter()
    for count in (1, 2, 3):
        stream.feed(timed(count))
        stream.usage_so_far()
    stream.feed(timed(0) + chunk({"role": "assistant"}))
    assert billed(stream) == (12, 4, Basis.COUNTED)
    stream.feed(timed(5))
    assert stream.told_at != stream.content_events
    assert billed(stream) == (12, 5, Basis.RUNNING)


def test_a_cached_input_that_one_event_tells_is_not_lost_in_a_read_of_several() -> None:
    """TensorRT-LLM says it once; and of several usages that are known by their bytes only the last is read."""
    first = text("a", usage=usage(9, 1, prompt_tokens_details={"cached_tokens": 4}))
    others = [text("a", usage=usage(9, count)) for count in (2, 3, 4, 5)]
    kinds_of.cache_clear()
    for events in ([first] * 4, others, others):  # both kinds are known from other streams
        run(meter(), events)
    stream = meter()
    stream.feed(first + b"".join(others))
    assert stream.usage_so_far().usage == Usage(9, 5, 4)
