"""What an exchange needs to begin, in exactly the contract's words."""

from typing import Any

import pytest

from meter_proxy.metering.request import Asked
from meter_proxy.quota.charge import Charge, Unit
from meter_proxy.quota.reservation import FREE, PLAIN_TOKENS, SLICE_TOKENS, Rates, Terms, Want
from meter_proxy.quota.rules import Rule
from meter_proxy.quota.windows import Window

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z


def rule(unit: Unit, *, hard: bool = False, per: str | None = "day", zone: str = "UTC") -> Rule:
    return Rule(
        id=unit.value, holder="k", owner="alice", unit=unit, limit=1000, per=per, zone=zone, hard=hard,
        warn_from=None, when_exhausted="stop", when_down="bounded",
    )  # fmt: skip


def want(*rules: Unit | Rule, hard: bool = False, rates: Rates = FREE, **asked: Any) -> Want:
    """By rules of these units."""
    made = [one if isinstance(one, Rule) else rule(one, hard=hard) for one in rules]
    model_max, has_output = asked.pop("model_max_output_tokens", None), asked.pop("has_output", True)
    members: dict[str, Any] = {"model": "m", "stream": True, "input_text_bytes": 400, "texts": 2, **asked}
    return Terms(made, rates, model_max, NOW).want(Asked(**members), has_output=has_output)


def claims(found: Want) -> list[tuple[int, int]]:
    """What is asked of each counter: up front, and per output token."""
    return list(zip(found.amounts_for(0), found.eaches, strict=True))


UPPER = 400 + 2 * 16 + 32  # a byte is at most a token; templates


def test_a_stream_reserves_its_input_and_a_slice() -> None:
    found = want(Unit.TOKENS, Unit.INPUT_TOKENS, Unit.OUTPUT_TOKENS, Unit.REQUESTS, Unit.CONCURRENT)
    assert claims(found) == [(100, 1), (100, 0), (0, 1), (1, 0), (1, 0)]
    assert (found.least, found.most, found.renews, found.input_tokens) == (1, SLICE_TOKENS, True, 100)


@pytest.mark.parametrize(("asked", "most", "bound"), [(100, 100, 200), (1000, 512, 2000), (0, 0, 0)])
def test_a_slice_is_no_larger_than_what_can_come(asked: int, most: int, bound: int) -> None:
    found = want(Unit.TOKENS, max_output_tokens=asked, choices=2)
    assert (found.most, found.bound) == (min(512, bound), bound)


def test_hard_reserves_all_of_it_up_front() -> None:
    """Output n x max_tokens, input an upper bound, tokens both."""
    found = want(Unit.TOKENS, Unit.OUTPUT_TOKENS, Unit.INPUT_TOKENS, hard=True, max_output_tokens=50, choices=3)
    assert claims(found) == [(UPPER + 150, 0), (150, 0), (UPPER, 0)]
    assert (found.least, found.most, found.renews, found.send_max_tokens) == (0, 0, False, None)


def test_hard_takes_the_models_bound_where_the_client_gave_none_and_sends_it() -> None:
    found = want(Unit.OUTPUT_TOKENS, hard=True, model_max_output_tokens=70, choices=2)
    assert claims(found) == [(140, 0)]
    assert found.send_max_tokens == 70


def test_a_plain_call_always_reserves_hard() -> None:
    found = want(Unit.TOKENS, stream=False, max_output_tokens=50)
    assert claims(found) == [(UPPER + 50, 0)]
    assert not found.renews


def test_a_plain_call_that_nobody_bounds_takes_what_is_left_up_to_a_sane_amount() -> None:
    found = want(Unit.TOKENS, stream=False, choices=2)
    assert claims(found) == [(UPPER, 1)]
    assert (found.least, found.most, found.renews) == (1, 2 * PLAIN_TOKENS, False)


def test_cost_is_priced_at_rates_that_are_never_too_low() -> None:
    assert claims(want(Unit.COST_USD, rates=Rates(3, 10))) == [(300, 10)]
    found = want(Unit.COST_USD, hard=True, rates=Rates(3, 10), max_output_tokens=5)
    assert claims(found) == [(UPPER * 3 + 50, 0)]


def test_embeddings_have_no_output() -> None:
    found = want(Unit.TOKENS, Unit.OUTPUT_TOKENS, stream=False, has_output=False)
    assert claims(found) == [(UPPER, 0), (0, 0)]
    assert (found.least, found.most) == (0, 0)


def test_a_rule_without_tokens_needs_no_slice() -> None:
    found = want(Unit.REQUESTS)
    assert (found.least, found.most, found.renews) == (0, 0, False)


def test_what_fits_is_asked_for_up_front_and_per_token() -> None:
    found = want(Unit.TOKENS, Unit.REQUESTS)
    assert found.amounts == found.amounts_for(SLICE_TOKENS) == [100 + SLICE_TOKENS, 1]
    assert found.amounts_for(7) == [107, 1]


def test_of_a_stream_hard_rules_reserve_all_and_others_a_slice() -> None:
    soft, hard = rule(Unit.TOKENS), rule(Unit.OUTPUT_TOKENS, hard=True)
    found = want(soft, hard, model_max_output_tokens=2000)
    assert claims(found) == [(100, 1), (2000, 0)]
    assert (found.most, found.renews, found.send_max_tokens) == (SLICE_TOKENS, True, 2000)


def test_a_hard_rule_over_a_stream_that_nobody_bounds_is_granted_by_slice() -> None:
    found = want(Unit.TOKENS, hard=True)
    assert claims(found) == [(UPPER, 1)]
    assert (found.most, found.renews, found.send_max_tokens) == (SLICE_TOKENS, True, None)


def test_terms_hold_until_the_first_of_their_windows_ends() -> None:
    """And not before the last of them began."""
    rules = [rule(Unit.TOKENS), rule(Unit.REQUESTS, per="minute"), rule(Unit.CONCURRENT, per=None)]
    terms = Terms(rules, FREE, None, NOW + 90)
    assert (terms.began_at, terms.ends_at) == (NOW + 60, NOW + 120)
    assert Terms(rules[2:], FREE, None, NOW).ends_at == float("inf")


def test_charges_name_rule_and_window() -> None:
    terms = Terms([rule(Unit.TOKENS, zone="Asia/Shanghai"), rule(Unit.CONCURRENT, per=None)], FREE, None, NOW)
    assert terms.windows[0] == Window("20270115", 1_799_942_400, 1_800_028_800)
    assert terms.charges == (
        Charge("k", "tokens", "20270115", Unit.TOKENS, 1_800_028_800),
        Charge("k", "concurrent", "live", Unit.CONCURRENT, 0),
    )
