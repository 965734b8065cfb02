"""From what the meter saw to the bill: which tokens, on which basis, at what cost.

The table of the README ("what is billed when") is this file. Pure but for the exchange it reads.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from meter_proxy.metering.meter import Reading
from meter_proxy.metering.pricing import TokenPrice, cost_nano_usd
from meter_proxy.usage import NO_USAGE, Basis, Outcome, Usage, UsageRecord

if TYPE_CHECKING:
    from meter_proxy.gateway.exchange import Exchange

BYTES_PER_TOKEN = 4  # of text, where nobody reported the input; printed as `estimated`
NOTHING_SEEN = Reading(usage=NO_USAGE, basis=Basis.NONE, input_basis=None)


class Bill(NamedTuple):
    """The billed counts of one exchange (no None where it counts), and how we know them."""

    usage: Usage
    input_basis: Basis
    basis: Basis


NOTHING = Bill(Usage(input_tokens=0, output_tokens=0), Basis.NONE, Basis.NONE)


def bill(reading: Reading, outcome: Outcome, *, input_text_bytes: int, prompt_always: bool) -> Bill:
    """What is billed for an exchange that reached an upstream and ended with `outcome`.

    `prompt_always`: `bill_prompt: always`, the input is billed though no token was generated.
    """
    seen = reading.usage
    output_tokens = seen.output_tokens or 0
    interrupted_before_first_token = not output_tokens and outcome is not Outcome.COMPLETED
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


def make_record(exchange: "Exchange", *, now: float) -> UsageRecord:
    """The record of `exchange` as if it ended at `now` (`time.perf_counter`, seconds)."""
    call, relay, outcome = exchange.call, exchange.relay, exchange.outcome
    meter, price = relay.meter, call.model.price
    billed = NOTHING
    if exchange.reached_upstream:
        billed = bill(
            meter.usage_so_far() if meter is not None else NOTHING_SEEN,
            outcome,
            input_text_bytes=call.asked.input_text_bytes,
            prompt_always=exchange.bills_prompt_always,
        )
    usage = billed.usage
    return UsageRecord(
        id=exchange.id,
        time=rfc3339(exchange.admitted_at),
        key=call.caller.key_id,
        account=call.caller.account,
        model=call.asked.model,
        upstream_model=call.model.upstream_model,
        response_model=meter.response_model if meter is not None else None,
        upstream=exchange.upstream,
        operation=call.operation,
        stream=call.asked.stream,
        input_tokens=usage.input_tokens or 0,
        cached_input_tokens=usage.cached_input_tokens,
        output_tokens=usage.output_tokens or 0,
        reasoning_tokens=usage.reasoning_tokens,
        cost_nano_usd=cost_nano_usd(usage, TokenPrice(price.input, price.output, price.cached_input)) if price else 0,
        input_basis=billed.input_basis,
        basis=billed.basis,
        outcome=outcome,
        status=exchange.status,
        ttft_ms=_ms(exchange.began_at, relay.first_token_at),
        duration_ms=round((now - exchange.began_at) * 1e3, 3),
        client_request_id=call.client_request_id,
    )


def _ms(since: float, at: float | None) -> float | None:
    return None if at is None else round((at - since) * 1e3, 3)


def rfc3339(at: float) -> str:
    """Unix time in seconds as RFC 3339, UTC, with milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
