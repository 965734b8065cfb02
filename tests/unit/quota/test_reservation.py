"""What an exchange needs to begin, in exactly the contract's words."""

from typing import Any

import pytest

from meter_proxy.quota.charge import Unit
from meter_proxy.quota.reservation import FREE, PLAIN_TOKENS, SLICE_TOKENS, Asked, Rates, Want, want_for
from meter_proxy.quota.rules import Rule

NOW = 1_800_000_000.0


def rule(unit: Unit, *, hard: bool = False) -> Rule:
    return Rule(
        id=unit.value, holder="k", owner="alice", unit=unit, limit=1000, per="day", zone="UTC", hard=hard,
        warn_from=None, when_exhausted="stop", when_down="bounded",
    )  # fmt: skip


def want(*units: Unit, hard: bool = False, rates: Rates = FREE, **asked: Any) -> Want:
    members: dict[str, Any] = {
        "stream": True, "choices": 1, "max_output_tokens": None, "model_max_output_tokens": None,
        "has_output": True, "input_text_bytes": 400, "texts": 2, **asked,
    }  # fmt: skip
    return want_for([rule(unit, hard=hard) for unit in units], Asked(**members), rates, NOW)


def claims(found: Want) -> list[tuple[int, int]]:
    return [(claim.base, claim.each) for claim in found.claims]


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
