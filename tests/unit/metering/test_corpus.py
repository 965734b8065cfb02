"""Every wire case of the operations that are built: usage, counts at each cut-off, and the forwarded bytes."""

from typing import Any

import pytest

from meter_proxy.metering.injection import NOTHING_HIDDEN, Hidden
from meter_proxy.metering.meter import Meter
from meter_proxy.usage import Basis
from tests.unit.metering.corpus import CORPUS, EVERYTHING, Case, cases, event_ends, run, without_hidden

CASES = cases()
STREAMS = [case for case in CASES if case.is_plain_stream]
HIDDEN_BY_HAND = sorted(path.stem for path in (CORPUS / "hidden").glob("*.sse"))
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_stream = pytest.mark.parametrize("case", STREAMS, ids=lambda case: case.name)

# Cut-offs at which the corpus has no count because it is not a running one: the final usage is already on the wire.
FINAL_ALREADY = {
    ("060_moonshot_choice_and_top_usage", 3),
    ("065_groq_usage_three_times", 3),
    ("102_data_after_done", 6),
    ("127_usage_duplicate_keys", 1),
    ("144_usage_then_null_again", 2),
    ("144_usage_then_null_again", 3),
    ("145_usage_final_zero_after_real", 3),
}


def counts(meter: Meter) -> dict[str, Any]:
    """All that a meter says, for comparing."""
    return {
        "reading": meter.usage_so_far(),
        "content_events": meter.content_events,
        "finished": meter.finished,
        "done": meter.done,
        "failed": meter.failed,
        "response_model": meter.response_model,
        "bad_usage": list(meter.bad_usage),
    }


def test_the_corpus_is_whole() -> None:
    """No case of the operations that are built is left out unnoticed."""
    assert len(CASES) == 116


@every_case
def test_usage_is_what_the_corpus_says_and_bytes_pass_however_cut(case: Case) -> None:
    """Whole, byte by byte, at random cuts and the listed ones: same usage, same counts, untouched bytes."""
    expected = case.expected
    seen = []
    for reads in case.cuttings():
        meter = case.meter()
        assert all(meter.feed(read) is read for read in reads)
        assert meter.finish() == b""
        seen.append(counts(meter))
    assert all(each == seen[0] for each in seen)
    usage, basis = seen[0]["reading"].usage, seen[0]["reading"].basis
    assert usage.input_tokens == expected["prompt_tokens"]
    assert usage.cached_input_tokens == expected["cached_tokens"]
    assert usage.reasoning_tokens == expected["reasoning_tokens"]
    if expected["completion_tokens"] is None:
        assert basis in (Basis.COUNTED, Basis.NONE)
        assert (usage.output_tokens or 0) == seen[0]["content_events"]
    else:
        assert basis is Basis.REPORTED
        assert usage.output_tokens == expected["completion_tokens"]
        assert seen[0]["reading"].input_basis is Basis.REPORTED
    if "invalid_usage" in expected:
        assert seen[0]["bad_usage"]


@every_stream
def test_the_count_at_each_cut_off_is_what_the_corpus_says(case: Case) -> None:
    """A stream that ends here is billed the running count if the wire has one, else one per content event."""
    for cut_off in case.expected["cutoffs"]:
        offset = cut_off["byte_offset"]
        for reads in ([case.data[:offset]], [case.data[at : at + 1] for at in range(offset)]):
            meter = case.meter()
            for read in reads:
                meter.feed(read)
            reading = meter.usage_so_far()
            assert meter.content_events == cut_off["content_chunks"]
            if (case.name, cut_off["after_event"]) == ("036_llamacpp_timings_per_token", 1):
                assert reading.basis is Basis.NONE  # the corpus infers a 0: neither text nor timings came yet
            elif cut_off["completion_tokens"] is not None:
                assert reading.basis in (Basis.RUNNING, Basis.REPORTED)
                assert reading.usage.output_tokens == cut_off["completion_tokens"]
            elif (case.name, cut_off["after_event"]) in FINAL_ALREADY:
                assert reading.basis is Basis.REPORTED
                assert reading.usage.output_tokens == case.expected["completion_tokens"]
            else:
                assert reading.basis is (Basis.COUNTED if cut_off["content_chunks"] else Basis.NONE)
                assert reading.usage.output_tokens in (cut_off["content_chunks"], None)


@every_stream
@pytest.mark.parametrize(
    "hidden", [Hidden(usage_event=True), Hidden(running_usage=True), EVERYTHING], ids=["event", "running", "both"]
)
def test_what_is_hidden_is_taken_out_and_nothing_else_however_cut(case: Case, hidden: Hidden) -> None:
    """The client's bytes are those of the reference, the counts those of a meter that hides nothing."""
    plain = case.meter()
    run(plain, [case.data])
    expected = without_hidden(case.data, hidden)
    for reads in case.cuttings():
        meter = case.meter(hidden)
        assert run(meter, reads) == expected
        assert counts(meter) == counts(plain)


@pytest.mark.parametrize("name", HIDDEN_BY_HAND)
def test_hidden_usage_leaves_the_bytes_that_were_written_by_hand(name: str) -> None:
    """The reference is not the only judge: what the client gets was also written down by hand."""
    case = next(case for case in CASES if case.name == name)
    expected = (CORPUS / "hidden" / f"{name}.sse").read_bytes()
    assert all(run(case.meter(EVERYTHING), reads) == expected for reads in case.cuttings())
    assert without_hidden(case.data, EVERYTHING) == expected


def test_there_are_enough_written_by_hand() -> None:
    """An empty folder would pass every test above."""
    assert len(HIDDEN_BY_HAND) >= 20


@every_stream
def test_no_complete_event_is_held_back(case: Case) -> None:
    """At the end of each event the client has everything but what is taken out, whatever was hidden before."""
    start, held = 0, case.meter(EVERYTHING)
    sent = b""
    for end in event_ends(case.data):
        sent += held.feed(case.data[start:end])
        assert sent == without_hidden(case.data[:end], EVERYTHING)
        start = end


@every_case
def test_with_nothing_to_hide_every_feed_returns_the_same_object(case: Case) -> None:
    """Not a copy, also in the middle of an event and when the bytes are compressed or no stream."""
    meter = case.meter(NOTHING_HIDDEN)
    reads = case.cuttings()[-1]
    assert all(meter.feed(read) is read for read in reads)
