"""Calendar windows: where a day begins is the rule's own affair. Tables of what calendars do to people."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_proxy.quota.windows import Window, window_at


def at(text: str, zone: str = "UTC") -> float:
    """Unix seconds of a local time; `fold=1` after a second blank for the second of two."""
    time, _, fold = text.partition(" fold=")
    return datetime.fromisoformat(time).replace(tzinfo=ZoneInfo(zone), fold=int(fold or 0)).timestamp()


def hours(window: Window) -> float:
    return (window.ends_at - window.began_at) / 3600


@pytest.mark.parametrize(
    ("per", "name"),
    [
        ("second", "20260131140507"),
        ("minute", "202601311405"),
        ("hour", "2026013114"),
        ("day", "20260131"),
        ("week", "2026W05"),
        ("month", "202601"),
        ("total", "total"),
        (None, "live"),
    ],
)
def test_names_are_those_of_the_contract(per: str | None, name: str) -> None:
    assert window_at(per, "UTC", at("2026-01-31T14:05:07")).id == name


@pytest.mark.parametrize(
    ("per", "zone", "now", "name", "length_h"),
    [
        ("day", "Asia/Shanghai", "2026-01-31T23:59:59", "20260131", 24),
        ("day", "Europe/Berlin", "2026-03-29T12:00:00", "20260329", 23),  # clocks forward
        ("day", "Europe/Berlin", "2026-10-25T12:00:00", "20261025", 25),  # and back
        ("day", "Australia/Lord_Howe", "2026-10-04T12:00:00", "20261004", 23.5),  # half an hour
        ("day", "America/Sao_Paulo", "2018-11-04T12:00:00", "20181104", 23),  # midnight itself is skipped
        ("day", "Pacific/Apia", "2011-12-29T12:00:00", "20111229", 24),  # the 30th never was
        ("day", "UTC", "2024-02-29T12:00:00", "20240229", 24),
        ("month", "UTC", "2024-02-10T00:00:00", "202402", 29 * 24),
        ("month", "UTC", "2026-02-10T00:00:00", "202602", 28 * 24),
        ("month", "UTC", "2026-12-31T23:59:59", "202612", 31 * 24),
        ("month", "Europe/Berlin", "2026-03-15T00:00:00", "202603", 31 * 24 - 1),
        ("week", "UTC", "2027-01-03T12:00:00", "2026W53", 168),  # ISO: a Sunday belongs to the old year
        ("week", "UTC", "2024-12-30T12:00:00", "2025W01", 168),
        ("week", "Europe/Berlin", "2026-03-29T12:00:00", "2026W13", 167),
        ("hour", "Asia/Kathmandu", "2026-01-31T14:05:00", "2026013114", 1),  # +05:45
        ("hour", "Europe/Berlin", "2026-10-25T02:30:00", "2026102502", 2),  # the hour that comes twice
        ("hour", "Europe/Berlin", "2026-10-25T02:30:00 fold=1", "2026102502", 2),
        ("hour", "Europe/Berlin", "2026-03-29T03:30:00", "2026032903", 1),
    ],
)
def test_days_are_as_long_as_the_calendar_says(per: str, zone: str, now: str, name: str, length_h: float) -> None:
    window = window_at(per, zone, at(now, zone))
    assert (window.id, hours(window)) == (name, length_h)


@given(
    now=st.floats(min_value=1.6e9, max_value=2.2e9),
    per=st.sampled_from(["second", "minute", "hour", "day", "week", "month"]),
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Chatham"]
    ),
)
def test_windows_tile_time(now: float, per: str, zone: str) -> None:
    """Each instant is in exactly one window; the next begins where it ends, under another name."""
    window = window_at(per, zone, now)
    assert window.began_at <= now < window.ends_at
    following = window_at(per, zone, window.ends_at)
    assert following.began_at == window.ends_at
    assert following.id != window.id
    assert window_at(per, zone, window.ends_at - 0.5) == window
    assert window_at(per, zone, window.began_at) == window


def test_a_total_never_ends() -> None:
    assert window_at("total", "UTC", datetime(2026, 1, 1, tzinfo=UTC).timestamp()) == Window("total", 0, 0)
