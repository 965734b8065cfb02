"""What refusals say."""

from typing import Any

import pytest

from meter_proxy.quota.charge import Unit, expires_at
from meter_proxy.quota.decision import denied, described
from meter_proxy.quota.rules import Rule
from meter_proxy.quota.statement import dollars
from meter_proxy.quota.windows import Window

WINDOW = Window("20260131", 1_769_817_600, 1_769_904_000)
NOW = 1_769_904_000 - 90.25


def rule(unit: Unit = Unit.TOKENS, limit: int = 200_000, per: str | None = "day", **members: Any) -> Rule:
    whole = {
        "id": "r", "holder": "k", "owner": "alice", "zone": "UTC", "hard": False, "warn_from": None,
        "when_exhausted": "stop", "when_down": "bounded", **members,
    }  # fmt: skip
    return Rule(unit=unit, limit=limit, per=per, **whole)


@pytest.mark.parametrize(
    ("unit", "per", "type", "code"),
    [
        (Unit.REQUESTS, "minute", "requests", "rate_limit_exceeded"),
        (Unit.CONCURRENT, None, "requests", "rate_limit_exceeded"),
        (Unit.TOKENS, "second", "tokens", "rate_limit_exceeded"),
        (Unit.REQUESTS, "hour", "insufficient_quota", "insufficient_quota"),
        (Unit.TOKENS, "day", "insufficient_quota", "insufficient_quota"),
        (Unit.COST_USD, "total", "insufficient_quota", "insufficient_quota"),
        (Unit.COST_USD, "minute", "insufficient_quota", "insufficient_quota"),
    ],
)
def test_pace_is_told_from_budget(unit: Unit, per: str | None, type: str, code: str) -> None:
    refusal = denied(rule(unit, per=per), WINDOW, NOW)
    assert (refusal.type, refusal.code) == (type, code)


def test_headers_tell_when_it_helps_to_try_again() -> None:
    """A rate rule to the millisecond; a budget that clients must not retry by themselves; `total` never resets."""
    assert dict(denied(rule(per="minute"), WINDOW, NOW).headers) == {"retry-after": "91", "retry-after-ms": "90250"}
    assert dict(denied(rule(), WINDOW, NOW).headers) == {"x-should-retry": "false", "retry-after": "91"}
    assert dict(denied(rule(per="total"), Window("total", 0, 0), NOW).headers) == {"x-should-retry": "false"}
    assert dict(denied(rule(Unit.CONCURRENT, per=None), Window("live", 0, 0), NOW).headers) == {
        "retry-after": "1",
        "retry-after-ms": "1000",
    }


def test_the_message_names_limit_rule_and_reset() -> None:
    message = denied(rule(), WINDOW, NOW).message
    assert "200,000 tokens per day" in message
    assert "Rule: r." in message
    assert "2026-02-01T00:00:00Z" in message


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (rule(Unit.REQUESTS, 1, "minute"), "1 request per minute"),
        (rule(Unit.COST_USD, 20_500_000_000, "month"), "20.5 USD per month"),
        (rule(Unit.COST_USD, 1, "day"), "0.000000001 USD per day"),
        (rule(Unit.OUTPUT_TOKENS, 5, "total"), "5 output tokens in total"),
    ],
)
def test_limits_are_told_in_words(of: Rule, words: str) -> None:
    assert described(of) == words


def test_counters_outlive_their_window_but_not_for_ever() -> None:
    assert expires_at("20260131", 1000) == 1000 + 7 * 86_400
    assert expires_at("20260131140507", 1000) == 1060
    assert expires_at("total", 0) == 0


def test_money_is_exact() -> None:
    assert [dollars(amount) for amount in (0, 1, 2_500_000, 3_000_000_000)] == ["0", "0.000000001", "0.0025", "3"]
