"""OpenAI's reports: what may be asked, and how totals become buckets."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from multidict import MultiDict

from meter_proxy.errors import ClientError
from meter_proxy.gateway.organization import COSTS, USAGE, Kind, Sums, read_report
from meter_proxy.ledger.days import DayTotal, Place

DAY_S = 86_400
MARCH_1 = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
NOW = MARCH_1 + 9 * DAY_S + 3600  # the 10th, 01:00


def ask(kind: Kind = USAGE, *more: tuple[str, str], start: int = MARCH_1, **given: object) -> Any:
    pairs = [("start_time", str(start)), *((name, str(value)) for name, value in given.items()), *more]
    return read_report(kind, MultiDict(pairs), NOW)


def march(*days: int) -> tuple[date, ...]:
    return tuple(date(2026, 3, day) for day in days)


def test_a_page_has_seven_days_unless_asked_otherwise() -> None:
    """The cursor leads to the rest; the day of now is the last."""
    first = ask()
    assert (first.days, first.next_page) == (march(1, 2, 3, 4, 5, 6, 7), "page_20260308")
    second = ask(page=first.next_page)
    assert (second.days, second.next_page) == (march(8, 9, 10), None)
    assert ask(limit=31).days == march(*range(1, 11))
    assert ask(COSTS, limit=180).next_page is None


@pytest.mark.parametrize(
    ("start", "end", "days"),
    [
        (MARCH_1, MARCH_1 + DAY_S, march(1)),  # the end is exclusive
        (MARCH_1, MARCH_1 + DAY_S + 1, march(1, 2)),
        (MARCH_1 + DAY_S - 1, MARCH_1 + DAY_S, march(1)),  # a bucket is the whole day
        (NOW + 5 * DAY_S, None, ()),  # the future
        (NOW, None, march(10)),
    ],
)
def test_days_are_whole_and_the_end_is_exclusive(start: int, end: int | None, days: tuple[date, ...]) -> None:
    report = ask(start=start) if end is None else ask(start=start, end_time=end)
    assert (report.days, report.next_page) == (days, None)


def test_a_cursor_leads_through_any_span_and_ends() -> None:
    """Each day once, in order."""
    days: list[date] = []
    report = ask(start=0, limit=31)
    while True:
        days += report.days
        if report.next_page is None:
            break
        report = ask(start=0, limit=31, page=report.next_page)
    assert days == [date(1970, 1, 1) + timedelta(days=number) for number in range(len(days))]
    assert days[-1] == date(2026, 3, 10)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"bucket_width": "1h"}, "bucket_width"),
        ({"bucket_width": "1m"}, "bucket_width"),
        ({"limit": 32}, "limit"),
        ({"limit": 0}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"start": -1}, "start_time"),
        ({"start": "2026-03-01"}, "start_time"),
        ({"start": 10**15}, "start_time"),
        ({"end_time": MARCH_1}, "end_time"),
        ({"group_by": "user_id"}, "group_by"),
        ({"group_by": "line_item"}, "group_by"),
        ({"user_ids": "u1"}, "user_ids"),
        ({"batch": "true"}, "batch"),
        ({"page": "page_20260228"}, "page"),
        ({"page": "page_20261350"}, "page"),
        ({"page": "AAAA"}, "page"),
    ],
)
def test_what_cannot_be_told_is_refused_and_named(given: dict[str, Any], param: str) -> None:
    with pytest.raises(ClientError) as refused:
        ask(**given)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_a_start_is_needed() -> None:
    with pytest.raises(ClientError) as refused:
        read_report(USAGE, MultiDict(), NOW)
    assert (refused.value.param, refused.value.code) == ("start_time", "missing_required_parameter")


def total(key: str, model: str, day: int, amount: int, account: str = "acme") -> DayTotal:
    return DayTotal(account, key, date(2026, 3, day), model, [1, amount, 2 * amount, 3, 4, amount * 1_000_000])


TOTALS = [
    total("alice", "a", 1, 10),
    total("alice", "b", 1, 20),
    total("bob", "a", 1, 40),
    total("bob", "a", 2, 80, account="zeta"),
]


def results(report: Any) -> list[list[dict[str, Any]]]:
    sums = Sums(report)
    for one in TOTALS:
        if report.wants(Place(*one[:3])):
            sums.add(one)
    page = sums.page()
    assert [bucket["start_time"] for bucket in page["data"]] == [MARCH_1, MARCH_1 + DAY_S, MARCH_1 + 2 * DAY_S]
    assert all(bucket["end_time"] - bucket["start_time"] == DAY_S for bucket in page["data"])
    return [bucket["results"] for bucket in page["data"]]


def test_without_groups_a_bucket_has_one_result_or_none() -> None:
    (first,), (second,), third = results(ask(limit=3))
    assert (first["num_model_requests"], first["input_tokens"], first["output_tokens"]) == (3, 70, 140)
    assert (first["input_cached_tokens"], first["model"], first["project_id"]) == (9, None, None)
    assert (second["input_tokens"], third) == (80, [])


def test_groups_are_those_asked_for_in_both_ways_of_writing() -> None:
    """`group_by=` and `group_by[]=`, as the SDK sends it."""
    report = ask(USAGE, ("group_by[]", "model"), group_by="project_id", limit=3)
    first, second, _ = results(report)
    assert [(one["project_id"], one["model"], one["api_key_id"], one["input_tokens"]) for one in first] == [
        ("acme", "a", None, 50),
        ("acme", "b", None, 20),
    ]
    assert [(one["project_id"], one["model"]) for one in second] == [("zeta", "a")]


@pytest.mark.parametrize(
    ("pairs", "tokens"),
    [
        ([("models", "a")], [50, 80]),
        ([("models[]", "b"), ("models[]", "c")], [20]),
        ([("api_key_ids[]", "bob")], [40, 80]),
        ([("project_ids", "zeta")], [80]),
        ([("project_ids", "zeta"), ("api_key_ids", "alice")], []),
    ],
)
def test_filters_leave_out_the_rest(pairs: list[tuple[str, str]], tokens: list[int]) -> None:
    found = results(ask(USAGE, *pairs, limit=3))
    assert [one["input_tokens"] for bucket in found for one in bucket] == tokens


def test_costs_are_dollars_by_model() -> None:
    report = ask(COSTS, ("group_by[]", "line_item"), limit=3)
    first, _, _ = results(report)
    assert [(one["line_item"], one["amount"]) for one in first] == [
        ("a", {"value": 0.05, "currency": "usd"}),
        ("b", {"value": 0.02, "currency": "usd"}),
    ]
