"""An exchange becomes an admission when it begins, and a record when it ends. What is billed: metering/billing.py."""

import time
from typing import TYPE_CHECKING

from meter_proxy.config.schema import Price
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
    caller, asked, model = call.caller, call.asked, call.model
    return Admission(  # in the order of its fields: naming them takes 1 us
        request_id,
        rfc3339(admitted_at),
        caller.key_id,
        caller.account,
        asked.model,
        model.upstream_model,
        upstream,
        call.operation,
        asked.stream,
        asked.input_text_bytes,
        prompt_always,
        _token_price(model.price) if model.price is not None else None,
        call.client_request_id,
        charges,
    )


_MAX_PRICES = 4_096  # more than a configuration has; each reload brings its own
_token_prices: dict[int, tuple[Price, TokenPrice]] = {}  # by the identity of the price, which is kept alive here


def _token_price(price: Price) -> TokenPrice:
    """The price as the ledger has it. The same object each time: it remembers its rates."""
    known = _token_prices.get(id(price))
    if known is None:
        if len(_token_prices) >= _MAX_PRICES:
            _token_prices.clear()
        known = _token_prices[id(price)] = price, TokenPrice(price.input, price.output, price.cached_input)
    return known[1]


def make_record(exchange: "Exchange", *, now: float) -> UsageRecord:
    """The record of `exchange` as if it ended at `now` (`time.perf_counter`, seconds)."""
    admission, relay, outcome = exchange.admission, exchange.relay, exchange.outcome
    meter, first_token_at = relay.meter, relay.first_token_at
    reading = meter.usage_so_far() if meter is not None else NOTHING_SEEN
    began_at = exchange.began_at
    return admission.record(
        admission.bill(reading, outcome, reached_upstream=exchange.reached_upstream),
        outcome=outcome,
        status=exchange.status,
        response_model=meter.response_model if meter is not None else None,
        ttft_ms=None if first_token_at is None else _ms(first_token_at - began_at),
        duration_ms=_ms(now - began_at),
    )


def _ms(seconds: float) -> float:
    """Milliseconds with three digits; `round` takes three times as long."""
    return int(seconds * 1e6 + 0.5) / 1e3


_MS = [f".{ms:03d}Z" for ms in range(1000)]
_second = -1  # the last one that was written out ...
_second_text = ""  # ... and how


def rfc3339(at: float) -> str:
    """Unix time in seconds as RFC 3339, UTC, with milliseconds."""
    global _second, _second_text
    second, us = divmod(int(at * 1e6 + 0.5), 1_000_000)
    if second != _second:  # formatting it takes ten times as long as the rest
        _second, _second_text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return _second_text + _MS[us // 1000]
