"""What is billed when: from what the meter saw and how the exchange ended to billed counts.

The table of the README is this file. It is asked twice: by the gateway when an exchange settles, and by the
ledger when it finds an exchange whose process was killed.
"""

from typing import NamedTuple

from meter_proxy.metering.tally import Reading
from meter_proxy.usage import Basis, Outcome, Usage

BYTES_PER_TOKEN = 4  # of text, where nobody reported the input; printed as `estimated`


class Bill(NamedTuple):
    """The billed counts of one exchange (input and output are never None), and how we know them."""

    usage: Usage
    input_basis: Basis
    basis: Basis


NOTHING = Bill(Usage(input_tokens=0, output_tokens=0), Basis.NONE, Basis.NONE)


def outcome_of_status(status: int | None) -> Outcome | None:
    """What the status of the head says by itself: a failure, or None. A redirect is no answer: it is not followed."""
    if status is None or status < 300:
        return None
    return Outcome.CLIENT_ERROR if 400 <= status < 500 else Outcome.UPSTREAM_FAILED


def bill(reading: Reading, outcome: Outcome, *, input_text_bytes: int, prompt_always: bool) -> Bill:
    """What is billed for an exchange that reached an upstream and ended with `outcome`.

    `prompt_always`: `bill_prompt: always`, the input is billed though no token was generated.
    """
    seen = reading.usage
    output_tokens = seen.output_tokens or 0
    answered = outcome is Outcome.COMPLETED or reading.basis is Basis.REPORTED
    interrupted_before_first_token = not output_tokens and not answered
    if outcome is Outcome.CLIENT_ERROR or (interrupted_before_first_token and not prompt_always):
        return NOTHING
    if seen.input_tokens is not None and reading.input_basis is not None:
        input_tokens, input_basis = seen.input_tokens, reading.input_basis
    else:
        input_tokens, input_basis = -(-input_text_bytes // BYTES_PER_TOKEN), Basis.ESTIMATED
    usage = Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_input_tokens=seen.cached_input_tokens,
        reasoning_tokens=seen.reasoning_tokens,
    )
    return Bill(usage, input_basis, Basis.NONE if interrupted_before_first_token else reading.basis)
