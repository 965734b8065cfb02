"""How full quotas are, from what several workers say."""

from meter_proxy.quota.charge import Unit
from meter_proxy.telemetry.quota_gauges import MAX_SERIES, QuotaGauges, QuotaState

LABELS = ("alice", "daily", "tokens")


def state(used: int, *, window: str = "20260131", ends_at: int = 1000, reserved: int = 0, **more: object) -> QuotaState:
    members = {"key": "alice", "rule": "daily", "unit": Unit.TOKENS, "limit": 200, **more}
    return QuotaState(window=window, ends_at=ends_at, used=used, reserved=reserved, **members)  # type: ignore[arg-type]


def test_the_most_that_anybody_saw_is_used() -> None:
    """A worker that heard of it earlier takes nothing back."""
    gauges = QuotaGauges()
    gauges.absorb([state(50)])
    gauges.absorb([state(40)])
    assert gauges.used.values[LABELS] == 50
    assert gauges.ratio.values[LABELS] == 0.25
    assert gauges.limit.values[LABELS] == 200
    assert gauges.reset.values[LABELS] == 1000


def test_a_new_window_begins_anew_and_an_old_one_does_not_come_back() -> None:
    gauges = QuotaGauges()
    gauges.absorb([state(50)])
    gauges.absorb([state(3, window="20260201", ends_at=2000)])
    gauges.absorb([state(60)])
    assert gauges.used.values[LABELS] == 3


def test_a_window_that_is_over_holds_nothing() -> None:
    """Also when nobody asks any more: an alert must end."""
    gauges = QuotaGauges()
    gauges.absorb([state(50)])
    gauges.expire(999)
    assert gauges.used.values[LABELS] == 50
    gauges.expire(1000)
    assert gauges.used.values[LABELS] == 0


def test_concurrent_is_what_is_open_and_cost_is_in_dollars() -> None:
    gauges = QuotaGauges()
    gauges.absorb([state(0, window="live", ends_at=0, reserved=3, unit=Unit.CONCURRENT, limit=4)])
    gauges.absorb([state(2_500_000_000, unit=Unit.COST_USD, limit=10_000_000_000)])
    assert gauges.used.values["alice", "daily", "concurrent"] == 3
    assert gauges.used.values["alice", "daily", "cost_usd"] == 2.5
    assert gauges.limit.values["alice", "daily", "cost_usd"] == 10
    assert ("alice", "daily", "concurrent") not in gauges.reset.values


def test_series_are_bounded() -> None:
    """Those that changed longest ago go first."""
    gauges = QuotaGauges()
    gauges.absorb(state(1, key=f"k{number}") for number in range(MAX_SERIES + 5))
    assert len(gauges.used.values) == MAX_SERIES
    assert ("k0", "daily", "tokens") not in gauges.used.values
