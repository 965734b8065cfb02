"""How full quotas are, from what several workers say."""

from meter_proxy.quota.charge import Unit
from meter_proxy.telemetry.quota_gauges import QuotaGauges, QuotaState
from meter_proxy.telemetry.quota_rules import MAX_SERIES, WatchedRules
from tests.unit.telemetry.quota_configs import config_with, key

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


# With a configuration.

NOON = 1_769_860_800.0  # 2026-01-31T12:00:00Z
MIDNIGHT = 1_769_904_000


def configured(*quotas: dict[str, object], now: float = NOON) -> QuotaGauges:
    """The gauges of alice with these rules."""
    gauges = QuotaGauges()
    gauges.configure(WatchedRules(config_with(key("alice", *quotas))), now)
    return gauges


def daily(limit: int, **more: object) -> dict[str, object]:
    return {"name": "daily", "tokens": limit, "per": "day", **more}


def test_a_rule_is_shown_before_it_is_used() -> None:
    gauges = configured(daily(200))
    assert (gauges.used.values[LABELS], gauges.ratio.values[LABELS]) == (0, 0)
    assert (gauges.limit.values[LABELS], gauges.reset.values[LABELS]) == (200, MIDNIGHT)


def test_the_next_window_follows_by_the_clock() -> None:
    """Empty, and with its own end."""
    gauges = configured(daily(200))
    gauges.absorb([state(50, ends_at=MIDNIGHT)])
    assert gauges.used.values[LABELS] == 50
    gauges.expire(MIDNIGHT - 1)
    assert gauges.used.values[LABELS] == 50
    gauges.expire(MIDNIGHT)
    assert (gauges.used.values[LABELS], gauges.reset.values[LABELS]) == (0, MIDNIGHT + 86_400)
    gauges.absorb([state(60, ends_at=MIDNIGHT)])  # of the window that is over, late
    assert gauges.used.values[LABELS] == 0


def test_an_edited_limit_keeps_what_is_used() -> None:
    """Whatever limit a worker still has in mind."""
    gauges = configured(daily(200))
    gauges.absorb([state(50, ends_at=MIDNIGHT)])
    gauges.configure(WatchedRules(config_with(key("alice", daily(100)))), NOON)
    assert (gauges.used.values[LABELS], gauges.ratio.values[LABELS]) == (50, 0.5)
    gauges.absorb([state(60, ends_at=MIDNIGHT, limit=200)])
    assert gauges.ratio.values[LABELS] == 0.6


def test_what_is_not_configured_any_more_is_gone_and_stays_away() -> None:
    """A rule, or the key with all its rules; also for a worker that has not heard of it yet."""
    gauges = configured(daily(200))
    gauges.absorb([state(50, ends_at=MIDNIGHT)])
    gauges.configure(WatchedRules(config_with(key("bob", daily(200)))), NOON)
    gauges.absorb([state(60, ends_at=MIDNIGHT)])
    assert set(gauges.used.values) == {("bob", "daily", "tokens")}


def test_another_window_under_the_same_name_begins_anew() -> None:
    """Per month instead of per day: what a worker says of days is not of this rule."""
    gauges = configured(daily(200))
    gauges.absorb([state(50, ends_at=MIDNIGHT)])
    gauges.configure(WatchedRules(config_with(key("alice", daily(200, per="month")))), NOON)
    gauges.absorb([state(60, ends_at=MIDNIGHT)])
    assert gauges.used.values[LABELS] == 0
    gauges.absorb([state(7, window="202601", ends_at=MIDNIGHT)])
    assert gauges.used.values[LABELS] == 7


def test_of_too_many_rules_those_in_use_are_shown() -> None:
    """With the limits of the configuration all the same."""
    gauges = QuotaGauges()
    gauges.configure(WatchedRules(config_with(*(key(f"k{n}", daily(50)) for n in range(MAX_SERIES + 1)))), NOON)
    assert not gauges.used.values
    gauges.absorb([state(5, key="k7", ends_at=MIDNIGHT), state(5, key="nobody", ends_at=MIDNIGHT)])
    assert gauges.ratio.values == {("k7", "daily", "tokens"): 0.1}


def test_an_account_s_rules_are_its_own() -> None:
    """Once, however many keys it has."""
    accounts = {"team": {"quotas": [{"requests": 9, "per": "total"}]}}
    gauges = QuotaGauges()
    keys = [key(name, daily(1), account="team") for name in ("alice", "bob")]
    gauges.configure(WatchedRules(config_with(*keys, accounts=accounts)), NOON)
    assert gauges.limit.values == {
        ("alice", "daily", "tokens"): 1,
        ("bob", "daily", "tokens"): 1,
        ("account:team", "requests-total", "requests"): 9,
    }
