"""An exchange in the words of its record. What is billed: tests/unit/metering/test_billing.py."""

from decimal import Decimal

import pytest

from meter_proxy.config.lookup import ResolvedModel
from meter_proxy.config.schema import Price
from meter_proxy.gateway.headers import Forwarded
from meter_proxy.gateway.inbound import Call, Caller
from meter_proxy.gateway.settlement import make_admission, rfc3339
from meter_proxy.metering.pricing import TokenPrice
from meter_proxy.metering.request import parse_body
from meter_proxy.usage import Operation


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000.123_9, "2023-11-14T22:13:20.123Z"),
        (1_700_000_000.0, "2023-11-14T22:13:20.000Z"),
    ],
)
def test_times_are_utc_with_milliseconds_always(at: float, text: str) -> None:
    """One width, so that records sort as text."""
    assert rfc3339(at) == text


def test_an_admission_says_by_value_all_that_its_record_needs() -> None:
    """Nothing in it points into a configuration that may change."""
    body = b'{"model":"auto","stream":true,"messages":[{"role":"user","content":"12345678"}]}'
    price = Price(input=Decimal("2.5"), output=Decimal(10), cached_input=Decimal("1.25"))
    model = ResolvedModel("auto", "auto", ("a", "b"), "qwen", price, None)
    call = Call(
        Caller(None, "alice", "team"),
        Operation.CHAT,
        "/chat/completions",
        parse_body(body, Operation.CHAT),
        model,
        Forwarded(b"Authorization: Bearer sk-secret\r\n", False),
        "mine",
    )
    admission = make_admission(call, "req_1", admitted_at=0.0, upstream="b", prompt_always=True)
    assert (admission.key, admission.account, admission.model, admission.upstream_model) == (
        "alice",
        "team",
        "auto",
        "qwen",
    )
    assert (admission.upstream, admission.stream, admission.input_text_bytes) == ("b", True, 8)
    assert admission.price == TokenPrice(Decimal("2.5"), Decimal(10), Decimal("1.25"))
    assert "sk-secret" not in repr(admission)
