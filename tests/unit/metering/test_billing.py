"""The table of the README, line by line."""

import pytest

from meter_proxy.metering.billing import NOTHING, bill
from meter_proxy.metering.tally import NOTHING as NOTHING_SEEN
from meter_proxy.metering.tally import Reading
from meter_proxy.usage import Basis, Outcome, Usage

REPORTED = Reading(Usage(9, 5, 4, 2), Basis.REPORTED, Basis.REPORTED)
RUNNING = Reading(Usage(9, 5), Basis.RUNNING, Basis.RUNNING)
COUNTED = Reading(Usage(output_tokens=5), Basis.COUNTED, None)
ZERO = Reading(Usage(9, 0), Basis.REPORTED, Basis.REPORTED)
ROLE_ONLY = Reading(Usage(9, 0), Basis.RUNNING, Basis.RUNNING)
HANG_UP, BROKEN, TIMEOUT = Outcome.CLIENT_DISCONNECTED, Outcome.UPSTREAM_FAILED, Outcome.UPSTREAM_TIMEOUT
CRASHED, DRAINED, COMPLETED = Outcome.CRASHED, Outcome.DRAINED, Outcome.COMPLETED


def billed(reading: Reading, outcome: Outcome, *, always: bool = False) -> tuple[int | None, Basis, int | None, Basis]:
    """Input, its basis, output, its basis; the request had 10 bytes of text."""
    usage, input_basis, basis = bill(reading, outcome, input_text_bytes=10, prompt_always=always)
    return usage.input_tokens, input_basis, usage.output_tokens, basis


@pytest.mark.parametrize("outcome", [COMPLETED, HANG_UP, BROKEN, TIMEOUT, CRASHED, DRAINED])
def test_reported_usage_is_the_bill_however_it_ended(outcome: Outcome) -> None:
    """Details go along."""
    assert bill(REPORTED, outcome, input_text_bytes=10, prompt_always=False).usage == REPORTED.usage
    assert billed(REPORTED, outcome) == (9, Basis.REPORTED, 5, Basis.REPORTED)


@pytest.mark.parametrize("outcome", [HANG_UP, BROKEN, TIMEOUT, CRASHED, DRAINED])
def test_interrupted_streams_bill_what_was_generated(outcome: Outcome) -> None:
    """Running counts as they are; counted events with an estimated input, rounded up."""
    assert billed(RUNNING, outcome) == (9, Basis.RUNNING, 5, Basis.RUNNING)
    assert billed(COUNTED, outcome) == (3, Basis.ESTIMATED, 5, Basis.COUNTED)


@pytest.mark.parametrize("outcome", [HANG_UP, BROKEN, TIMEOUT, CRASHED, DRAINED])
@pytest.mark.parametrize("reading", [NOTHING_SEEN, ROLE_ONLY])
def test_before_the_first_token_nothing_is_billed_unless_told_so(reading: Reading, outcome: Outcome) -> None:
    """`bill_prompt: always` bills the input as well as it is known."""
    assert bill(reading, outcome, input_text_bytes=10, prompt_always=False) == NOTHING
    known = (9, Basis.RUNNING) if reading is ROLE_ONLY else (3, Basis.ESTIMATED)
    assert billed(reading, outcome, always=True) == (*known, 0, Basis.NONE)


def test_an_explicit_zero_of_a_whole_answer_is_a_zero() -> None:
    """The input is billed, the output is reported as nothing."""
    assert billed(ZERO, COMPLETED) == (9, Basis.REPORTED, 0, Basis.REPORTED)


def test_a_reported_zero_is_billed_though_the_client_had_left() -> None:
    """Embeddings have no output: what the upstream still answers is the bill all the same."""
    assert billed(ZERO, HANG_UP) == (9, Basis.REPORTED, 0, Basis.REPORTED)


def test_a_whole_answer_without_usage_bills_an_estimated_input() -> None:
    """Never silently 0."""
    assert billed(NOTHING_SEEN, COMPLETED) == (3, Basis.ESTIMATED, 0, Basis.NONE)
    assert billed(COUNTED, COMPLETED) == (3, Basis.ESTIMATED, 5, Basis.COUNTED)


@pytest.mark.parametrize("always", [False, True])
def test_a_refused_request_bills_nothing(always: bool) -> None:
    """An upstream's 4xx costs nothing, whatever `bill_prompt` says."""
    assert bill(NOTHING_SEEN, Outcome.CLIENT_ERROR, input_text_bytes=10, prompt_always=always) == NOTHING
