"""What is billed when: from what the meter saw and how the exchange ended to billed counts.

The table of the README is this file. It is asked twice: by the gateway when an exchange settles, and by the
ledger when it finds an exchange whose process was killed.
"""

from typing import NamedTuple

from meter_proxy.metering.tally import Reading
from meter_proxy.usage import Basis, Outcome, Usage

BYTES_PER_TOKEN = 4  # of text, where nobody reported the input; printed as `estimated`

# By name, not looked up in their classes: that takes 0.2 us each, and a bill is made for every exchange.
_COMPLETED, _CLIENT_ERROR = Outcome.COMPLETED, Outcome.CLIENT_ERROR
_REPORTED, _ESTIMATED, _NONE = Basis.REPORTED, Basis.ESTIMATED, Basis.NONE


class Bill(NamedTuple):
    """The billed counts of one exchange (input and output are never None), and how we know them."""

    usage: Usage
    input_basis: Basis
    basis: Basis


NOTHING = Bill(Usage(input_tokens=0, output_tokens=0), _NONE, _NONE)


def outcome_of_status(status: int | None) -> Outcome | None:
    """What the status of the head says by itself: a failure, or None. A redirect is no answer: it is not followed."""
    if status is None or status < 300:
        return None
    return Outcome.CLIENT_ERROR if 400 <= status < 500 else Outcome.UPSTREAM_FAILED


def bill(reading: Reading, outcome: Outcome, *, input_text_bytes: int, prompt_always: bool) -> Bill:
    """What is billed for an exchange that reached an upstream and ended with `outcome`.

    `prompt_always`: `bill_prompt: always`, the input is billed though no token was generated.
    """
    seen, basis = reading.usage, reading.basis
    output_tokens = seen.output_tokens or 0
    answered = outcome is _COMPLETED or basis is _REPORTED
    interrupted_before_first_token = not output_tokens and not answered
    if outcome is _CLIENT_ERROR or (interrupted_before_first_token and not prompt_always):
        return NOTHING
    if seen.input_tokens is not None and reading.input_basis is not None:
        if seen.output_tokens is not None and not interrupted_before_first_token:
            return Bill(seen, reading.input_basis, basis)
        input_tokens, input_basis = seen.input_tokens, reading.input_basis
    else:
        input_tokens, input_basis = -(-input_text_bytes // BYTES_PER_TOKEN), _ESTIMATED
    usage = Usage(input_tokens, output_tokens, seen.cached_input_tokens, seen.reasoning_tokens)
    return Bill(usage, input_basis, _NONE if interrupted_before_first_token else basis)
