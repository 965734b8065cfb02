"""Upstreams that refuse our request for usage: remembered for ten minutes, and not without bound."""

from meter_proxy.gateway.refusals import MAX_REMEMBERED, REMEMBERED_FOR_S, InjectionRefusals


def test_a_refusal_is_known_for_ten_minutes_for_this_model_only() -> None:
    """Per (upstream, model): another model of the same server may run another engine."""
    now = 1000.0
    refusals = InjectionRefusals(lambda: now)
    refusals.remember("up", "m")
    assert refusals.is_known("up", "m")
    assert not refusals.is_known("up", "n")
    assert not refusals.is_known("other", "m")
    now += REMEMBERED_FOR_S - 1
    assert refusals.is_known("up", "m")
    now += 1
    assert not refusals.is_known("up", "m")


def test_names_that_callers_make_up_do_not_fill_the_memory() -> None:
    """The oldest goes; the newest are known."""
    refusals = InjectionRefusals(lambda: 0.0)
    for number in range(MAX_REMEMBERED + 1):
        refusals.remember("up", f"m{number}")
    assert not refusals.is_known("up", "m0")
    assert refusals.is_known("up", "m1")
    assert refusals.is_known("up", f"m{MAX_REMEMBERED}")
