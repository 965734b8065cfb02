"""What clients of one-api are told: a limit, and what is used of it."""

from datetime import date

import pytest
from multidict import MultiDict

from meter_proxy.config.schema import Key
from meter_proxy.errors import ClientError
from meter_proxy.gateway.dashboard import UNLIMITED_USD, budget, read_days, subscription, used
from meter_proxy.quota.charge import Unit
from meter_proxy.quota.rules import Rule
from meter_proxy.quota.statement import Line
from meter_proxy.quota.windows import Window

NOON = 1_769_860_800.0  # 2026-01-31T12:00:00Z


def line(limit: int, used: int, *, unit: Unit = Unit.COST_USD, models: tuple[str, ...] | None = None) -> Line:
    rule = Rule(
        id="r", holder="k", owner="alice", unit=unit, limit=limit, per="month", zone="UTC", hard=False,
        warn_from=None, when_exhausted="stop", when_down="open",
    )  # fmt: skip
    return Line(rule, models, Window("202601", 0, 0), used, 0)


def test_the_rule_with_the_least_left_says_it() -> None:
    """A cost rule over all models; others say nothing of a sum in dollars."""
    big, small = line(20 * 10**9, 19 * 10**9), line(5 * 10**9, 10**9)
    lines = [line(10, 9, unit=Unit.TOKENS), small, big, line(10**9, 10**9, models=("gpt-*",))]
    assert budget(lines) is big
    assert subscription(big, None)["hard_limit_usd"] == 20.0
    assert used(big.used) == {"object": "list", "total_usage": 1900.0}


def test_without_one_a_key_is_unlimited_as_in_one_api() -> None:
    key = Key.model_validate({"id": "alice", "secret": [bytes(32)], "expires_at": "2027-01-01T00:00:00Z"})
    document = subscription(budget([line(10, 9, unit=Unit.TOKENS)]), key)
    assert (document["hard_limit_usd"], document["access_until"]) == (UNLIMITED_USD, 1_798_761_600)
    assert subscription(None, None)["access_until"] == 0


@pytest.mark.parametrize(
    ("query", "first", "last"),
    [
        ({}, date(2026, 1, 1), date(2026, 1, 31)),
        ({"start_date": "2025-12-30"}, date(2025, 12, 30), date(2026, 1, 31)),
        ({"start_date": "2026-01-02", "end_date": "2026-01-03"}, date(2026, 1, 2), date(2026, 1, 2)),
        ({"start_date": "2027-05-01"}, date(2027, 5, 1), date(2027, 5, 1)),
    ],
)
def test_days_go_up_to_the_end_date(query: dict[str, str], first: date, last: date) -> None:
    assert read_days(MultiDict(query), NOON) == (first, last)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"start_date": "yesterday"}, "start_date"),
        ({"start_date": "0001-01-01", "end_date": "0001-01-01"}, "start_date"),
        ({"end_date": "2026-02-30"}, "end_date"),
        ({"start_date": "2026-01-02", "end_date": "2026-01-02"}, "end_date"),
        ({"start_date": "2025-01-02", "end_date": "2026-01-02"}, "end_date"),
        ({"start_date": "9999-12-31"}, "start_date"),
    ],
)
def test_other_days_are_refused(query: dict[str, str], param: str) -> None:
    with pytest.raises(ClientError) as refused:
        read_days(MultiDict(query), NOON)
    assert (refused.value.status, refused.value.param) == (400, param)
