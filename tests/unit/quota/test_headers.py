"""What answers tell of the quotas: the tightest rule, in OpenAI's words, true to the second."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_proxy.quota.charge import Unit
from meter_proxy.quota.headers import Headers, LimitHeaders, duration
from meter_proxy.quota.rules import Rule
from meter_proxy.quota.windows import Window

ENDS_AT = 1_769_904_000
WINDOW = Window("20260131", ENDS_AT - 86_400, ENDS_AT)
OPEN = Window("live", 0, 0)
NOW = ENDS_AT - 90.25
Left = tuple[Rule, Window, Any]


def left(remaining: int, unit: Unit, limit: int, window: Window = WINDOW, **members: Any) -> Left:
    """A rule of which so much is left."""
    whole = {
        "id": "r", "holder": "k", "owner": "alice", "zone": "UTC", "hard": False, "warn_from": None, "per": "day",
        "when_exhausted": "stop", "when_down": "bounded", **members,
    }  # fmt: skip
    return Rule(unit=unit, limit=limit, **whole), window, SimpleNamespace(remaining=remaining)


def headers(*rules: Left, now: float = NOW) -> Headers:
    return LimitHeaders(rules).at(now)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.12, "120ms"), (0, "1ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s"), (63_125, "17h32m5s"), (0.9999, "1000ms")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_of_several_rules_the_tightest_is_shown() -> None:
    """Per unit; tokens before output before input; cost and concurrent have no headers of OpenAI's."""
    assert dict(
        headers(
            left(50, Unit.REQUESTS, 100),
            left(3, Unit.REQUESTS, 10),
            left(1, Unit.OUTPUT_TOKENS, 10),
            left(900, Unit.TOKENS, 1000),
            left(1, Unit.COST_USD, 10),
            left(1, Unit.CONCURRENT, 2, OPEN),
        )
    ) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-requests": "1m31s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "900",
        "x-ratelimit-reset-tokens": "1m31s",
    }


def test_a_window_that_never_ends_is_never_reset() -> None:
    assert headers(left(3, Unit.TOKENS, 10, Window("total", 0, 0))) == (
        ("x-ratelimit-limit-tokens", "10"),
        ("x-ratelimit-remaining-tokens", "3"),
    )


def test_without_a_rule_that_openai_knows_nothing_is_said() -> None:
    assert headers(left(1, Unit.COST_USD, 10)) == ()


def test_a_warning_names_the_fullest_rule() -> None:
    calm = left(40_001, Unit.TOKENS, 200_000, id="calm", warn_from=160_000)
    full = left(10_000, Unit.TOKENS, 200_000, id="full", warn_from=160_000)
    fuller = left(5_000, Unit.TOKENS, 200_000, id="fuller", warn_from=160_000)
    assert ("x-meter-quota-warning", "fuller") in headers(calm, full, fuller)
    assert "x-meter-quota-warning" not in dict(headers(calm))


def test_each_answer_tells_what_is_left_then() -> None:
    """Of two rules, the other may have become the tightest."""
    one, other = left(5, Unit.REQUESTS, 10, id="one"), left(60, Unit.REQUESTS, 100, id="other")
    written = LimitHeaders([one, other])
    assert dict(written.at(NOW))["x-ratelimit-limit-requests"] == "10"
    other[2].remaining = 1
    assert dict(written.at(NOW))["x-ratelimit-limit-requests"] == "100"
    assert dict(written.at(NOW))["x-ratelimit-remaining-requests"] == "1"


@given(st.lists(st.floats(0, 4).map(lambda before: ENDS_AT - before), max_size=8))
def test_the_time_to_the_reset_is_never_an_old_one(instants: list[float]) -> None:
    """A text is kept for a second, but says at any instant, also if the clock is set back, what a new one would."""
    written = LimitHeaders([left(1, Unit.REQUESTS, 10)])
    for now in instants:
        assert dict(written.at(now))["x-ratelimit-reset-requests"] == duration(ENDS_AT - now)
