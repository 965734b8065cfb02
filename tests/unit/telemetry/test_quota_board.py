"""All rules, the fullest first."""

import asyncio
from typing import Any

import pytest

from meter_proxy.quota.charge import Unit
from meter_proxy.telemetry.quota_board import SLICE, QuotaBoard
from meter_proxy.telemetry.quota_gauges import QuotaState
from meter_proxy.telemetry.quota_rules import MAX_SERIES, WatchedRules
from tests.unit.telemetry.quota_configs import config_with, key

NOON = 1_769_860_800.0  # 2026-01-31T12:00:00Z
MIDNIGHT = 1_769_904_000
DAILY = {"name": "daily", "tokens": 200, "per": "day"}


def board(*keys: dict[str, Any], **members: Any) -> QuotaBoard:
    made = QuotaBoard()
    made.configure(WatchedRules(config_with(*keys, **members)))
    return made


def used(key: str, amount: int, **more: Any) -> QuotaState:
    members = {"rule": "daily", "unit": Unit.TOKENS, "window": "20260131", "ends_at": MIDNIGHT, "limit": 200, **more}
    return QuotaState(key=key, used=amount, reserved=members.pop("reserved", 0), **members)


async def test_a_row_says_everything_of_a_rule() -> None:
    """Costs in dollars as in the configuration, all else in whole numbers."""
    cost = {"name": "budget", "cost_usd": 20, "per": "month", "warn_at": "80%", "models": ["gpt-*"]}
    it = board(key("alice", cost, {"concurrent": 2}))
    states = [
        used("alice", 2_500_000_000, rule="budget", unit=Unit.COST_USD, window="202601", reserved=500_000_000),
        used("alice", 0, rule="concurrent", unit=Unit.CONCURRENT, window="live", ends_at=0, reserved=1),
    ]
    it.absorb(states)
    total, rows = await it.page(NOON)
    assert total == 2
    assert rows == [
        {
            "key": "alice", "rule": "concurrent", "unit": "concurrent", "per": None, "limit": 2, "used": 0,
            "reserved": 1, "remaining": 1, "resets_at": None, "warn_at": None, "models": None,
        },
        {
            "key": "alice", "rule": "budget", "unit": "cost_usd", "per": "month", "limit": 20.0, "used": 2.5,
            "reserved": 0.5, "remaining": 17.0, "resets_at": "2026-02-01T00:00:00Z", "warn_at": 0.8,
            "models": ["gpt-*"],
        },
    ]  # fmt: skip


async def test_the_fullest_come_first_and_pages_join() -> None:
    """Then those that nobody has used, as they are configured; accounts last."""
    accounts = {"acme": {"quotas": [DAILY]}, "zeta": {"quotas": [DAILY]}}
    it = board(*(key(f"k{number}", DAILY) for number in range(8)), accounts=accounts)
    it.absorb([used("k3", 50), used("account:zeta", 100), used("k5", 300), used("k1", 40, reserved=20)])
    expected = ["k5", "account:zeta", "k1", "k3", "k0", "k2", "k4", "k6", "k7", "account:acme"]
    total, rows = await it.page(NOON)
    assert (total, [row["key"] for row in rows]) == (10, expected)
    pages = [(await it.page(NOON, limit=3, offset=offset))[1] for offset in (0, 3, 6, 9, 12)]
    assert [row["key"] for page in pages for row in page] == expected


async def test_rules_are_found_by_key_and_by_text() -> None:
    it = board(key("Alice", DAILY, {"requests": 9, "per": "hour"}), key("bob", DAILY), accounts={"alicia": {}})
    assert (await it.page(NOON, key="Alice"))[0] == 2
    assert (await it.page(NOON, key="alice"))[0] == 0
    assert (await it.page(NOON, q="aLi"))[0] == 2
    assert (await it.page(NOON, q="requests"))[0] == 1
    assert (await it.page(NOON, q="requests", key="bob"))[0] == 0


async def test_what_is_over_or_gone_is_not_shown() -> None:
    """A window that has ended; a rule that a reload took away; a window from before `per` was edited."""
    it = board(key("alice", DAILY), key("bob", DAILY))
    it.absorb([used("alice", 50)])
    (row, _) = (await it.page(MIDNIGHT))[1]
    assert (row["used"], row["resets_at"]) == (0, "2026-02-02T00:00:00Z")
    it.configure(WatchedRules(config_with(key("alice", {**DAILY, "tokens": 100}))))
    ((row,),) = ((await it.page(NOON))[1],)
    assert (row["limit"], row["used"], row["remaining"]) == (100, 50, 50)
    it.configure(WatchedRules(config_with(key("alice", {**DAILY, "per": "month"}))))
    assert (await it.page(NOON))[1][0]["used"] == 0


async def test_a_worker_that_heard_of_it_earlier_takes_nothing_back() -> None:
    it = board(key("alice", DAILY))
    it.absorb([used("alice", 50)])
    it.absorb([used("alice", 40, reserved=5)])
    row = (await it.page(NOON))[1][0]
    assert (row["used"], row["reserved"]) == (50, 5)


@pytest.mark.parametrize("keys", [10 * SLICE])
async def test_many_rules_do_not_hold_the_loop(keys: int) -> None:
    """All of them are listed, more than Prometheus shows, and others have their turn meanwhile."""
    it = board(*(key(f"k{number}", DAILY, {"concurrent": 1}) for number in range(keys)))
    it.absorb([used(f"k{number}", number % 200 + 1) for number in range(keys)])
    turns = 0
    asked = asyncio.ensure_future(it.page(NOON, limit=10))
    while not asked.done():
        turns += 1
        await asyncio.sleep(0)
    total, rows = await asked
    assert total == 2 * keys > MAX_SERIES
    assert {row["used"] for row in rows} == {200}
    assert turns >= 2 * keys // SLICE
