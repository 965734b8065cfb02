"""An exchange becomes an admission when it begins, and a record when it ends. What is billed: metering/billing.py."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from meter_proxy.gateway.inbound import Call
from meter_proxy.ledger.admission import Admission
from meter_proxy.metering.pricing import TokenPrice
from meter_proxy.metering.tally import NOTHING as NOTHING_SEEN
from meter_proxy.quota.charge import Charge
from meter_proxy.usage import UsageRecord

if TYPE_CHECKING:
    from meter_proxy.gateway.exchange import Exchange


def make_admission(
    call: Call,
    request_id: str,
    *,
    admitted_at: float,
    upstream: str,
    prompt_always: bool,
    charges: tuple[Charge, ...] = (),
) -> Admission:
    """What the books are told before anything is sent upstream. `admitted_at` is Unix seconds."""
    price = call.model.price
    return Admission(
        id=request_id,
        time=rfc3339(admitted_at),
        key=call.caller.key_id,
        account=call.caller.account,
        model=call.asked.model,
        upstream_model=call.model.upstream_model,
        upstream=upstream,
        operation=call.operation,
        stream=call.asked.stream,
        input_text_bytes=call.asked.input_text_bytes,
        prompt_always=prompt_always,
        price=TokenPrice(price.input, price.output, price.cached_input) if price is not None else None,
        client_request_id=call.client_request_id,
        charges=charges,
    )


def make_record(exchange: "Exchange", *, now: float) -> UsageRecord:
    """The record of `exchange` as if it ended at `now` (`time.perf_counter`, seconds)."""
    admission, relay, outcome = exchange.admission, exchange.relay, exchange.outcome
    meter, first_token_at = relay.meter, relay.first_token_at
    reading = meter.usage_so_far() if meter is not None else NOTHING_SEEN
    return admission.record(
        admission.bill(reading, outcome, reached_upstream=exchange.reached_upstream),
        outcome=outcome,
        status=exchange.status,
        response_model=meter.response_model if meter is not None else None,
        ttft_ms=None if first_token_at is None else round((first_token_at - exchange.began_at) * 1e3, 3),
        duration_ms=round((now - exchange.began_at) * 1e3, 3),
    )


def rfc3339(at: float) -> str:
    """Unix time in seconds as RFC 3339, UTC, with milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
