"""One frame of `top`: what is in it, at every size of a terminal, whatever the server says."""

import itertools
from typing import Any

import pytest
from rich.cells import cell_len

from meter_proxy.cli.frame import frame
from meter_proxy.cli.snapshot import Snapshot, read
from tests.support.admin_listener import live, quota, stream

NOW = 1_795_867_200.0  # 2026-11-28T12:00:00Z


def snapshot(streams: int = 3, quotas: int = 2, at: float = 100.0, **members: Any) -> Snapshot:
    """A snapshot with so many rows."""
    rules = [quota(key=f"k{number}") for number in range(quotas)]
    document = live([stream(number, key=f"k{number % 5}", **members) for number in range(streams)])
    return read(document, {"total": quotas, "data": rules}, at)


def lines(shown: Snapshot, before: Snapshot | None = None, width: int = 80, height: int | None = 24) -> list[str]:
    """The frame as text."""
    return frame(shown, before, url="http://127.0.0.1:9090", width=width, height=height, now=NOW).plain.split("\n")


@pytest.mark.parametrize(
    ("width", "height", "streams", "quotas"),
    list(itertools.product((40, 80, 119, 120, 200), (8, 24, 50), (0, 1, 500), (0, 1, 300))),
)
def test_a_frame_never_exceeds_the_terminal(width: int, height: int, streams: int, quotas: int) -> None:
    """Not by a line, not by a cell."""
    shown = lines(snapshot(streams, quotas), width=width, height=height)
    assert len(shown) <= height
    assert max(map(cell_len, shown)) <= width


def test_what_is_going_on_is_all_there_at_80_by_24() -> None:
    """Rates, a bar with its share and its reset, sums per key, each stream with its speed."""
    text = "\n".join(lines(snapshot(2, 1)))
    assert "ready" in text
    assert "up 3h07m" in text
    assert "2/2 workers" in text
    assert "2 in flight   3.2 requests/s   in 1,204 tokens/s   out 812 tokens/s" in text
    (bar,) = [line for line in lines(snapshot(2, 1)) if "tokens-day" in line]
    assert bar.split() == ["k0", "tokens-day", "██████░░░░", "62%", "124k", "/", "200k", "12h00m"]
    assert "gpt-4o" in text
    assert "50.0" in text  # 200 tokens in 4 s


def test_the_speed_of_a_stream_is_what_came_since_the_last_frame() -> None:
    """Not the average of its life, which hides a stall."""
    before, after = snapshot(1, 0, at=100.0, output_tokens=200), snapshot(1, 0, at=102.0, output_tokens=230)
    (row,) = [line for line in lines(after, before) if "gpt-4o" in line]
    assert row.endswith("15.0")
    stalled = snapshot(1, 0, at=104.0, output_tokens=230)
    (row,) = [line for line in lines(stalled, after) if "gpt-4o" in line]
    assert row.endswith(" 0.0")


def test_rows_that_do_not_fit_are_counted_in_the_title() -> None:
    """Nothing is silently gone."""
    shown = lines(snapshot(500, 300))
    titles = [line for line in shown if line.startswith(("QUOTAS", "KEYS", "STREAMS"))]
    assert len(titles) == 3
    assert titles[0].endswith("of 300")
    assert titles[2].endswith("of 500")


def test_a_server_that_lacks_streams_and_quotas_is_shown_as_far_as_it_goes() -> None:
    """An older version: what it tells is shown, what it does not is said."""
    old = {"ready": False, "uptime_s": 5, "workers": [], "inflight": {"m": 7}}
    text = "\n".join(lines(read(old, None, 0.0)))
    assert "not ready" in text
    assert "7 in flight" in text
    assert text.count("this server does not tell") == 3


@pytest.mark.parametrize("wrong", [None, 7, "x", [1], {"a": 1}])
def test_members_of_the_wrong_type_are_as_missing(wrong: object) -> None:
    """No traceback, whatever answers."""
    names = ("ready", "uptime_s", "workers", "inflight", "streams", "streams_total", "rates")
    assert lines(read(dict.fromkeys(names, wrong), {"data": wrong, "total": wrong}, 0.0))
    bad_rows = read(live([dict.fromkeys(stream(), wrong)]), {"data": [dict.fromkeys(quota(), wrong)]}, 0.0)
    assert lines(bad_rows)


def test_names_cannot_move_the_cursor_and_wide_ones_keep_the_columns() -> None:
    """A model's name is its caller's own words."""
    shown = lines(snapshot(1, 0, model="\x1b[2J\r\nevil"))
    assert not any("\x1b" in line or "\r" in line for line in shown)
    wide = lines(snapshot(2, 0, model="模型" * 20))
    rows = [line for line in wide if "模型" in line]
    assert len({cell_len(row) for row in rows}) == 1
    assert all("…" in row for row in rows)


def test_a_bar_is_full_only_when_the_quota_is_used_up() -> None:
    """99.9% is not 100%, and one token of a million is not none."""

    def bar(**members: Any) -> str:
        rules = {"total": 1, "data": [quota(**members)]}
        (row,) = [line for line in lines(read(live(), rules, 0.0)) if "tokens-day" in line]
        return row.split()[2]

    assert bar(limit=1000, used=999, reserved=0) == "█████████░"
    assert bar(limit=1_000_000, used=1, reserved=0) == "█░░░░░░░░░"
    assert bar(limit=1000, used=1000, reserved=0) == "██████████"
    assert bar(limit=1000, used=2000, reserved=0) == "██████████"
    assert bar(limit=8, used=0, reserved=4) == "▒▒▒▒▒░░░░░"
    assert bar(limit=8, used=0, reserved=0) == "░░░░░░░░░░"


def test_money_is_shown_in_dollars_and_an_endless_window_never_resets() -> None:
    """Cents, or as many digits as a small amount needs."""
    rules = [
        quota(unit="cost_usd", rule="budget", limit=20.0, used=17.2, reserved=0.0, resets_at=None),
        quota(unit="cost_usd", rule="tiny", limit=0.002, used=0.0005, reserved=0.0, resets_at="nonsense"),
    ]
    shown = lines(read(live(), {"total": 2, "data": rules}, 0.0))
    budget, tiny = (line for line in shown if "budget" in line or "tiny" in line)
    assert budget.endswith("$17.20 / $20.00      never")
    assert tiny.split()[-4:] == ["$0.0005", "/", "$0.002", "-"]
