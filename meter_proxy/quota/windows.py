"""Calendar windows: days, weeks, months begin where the rule's own time zone says so.

A window is a stretch of time between two boundaries of the calendar. Where the clocks are set back, the repeated hour
is part of the same hourly window as the first (its name on the clock is the same), so that no limit is granted twice
under one name; a day may have 23 or 25 hours. Where a calendar skips a day, nobody can be in it.
"""

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

TOTAL = "total"
LIVE = "live"  # the window of a rule that counts what is open now


class Window(NamedTuple):
    """One window. Instants are Unix seconds; `ends_at` 0: never."""

    id: str
    began_at: int
    ends_at: int


_TOTAL = Window(TOTAL, 0, 0)
_LIVE = Window(LIVE, 0, 0)
_current: dict[tuple[str, str], Window] = {}  # (per, zone) -> the last one asked for


def window_at(per: str | None, zone: str, now: float) -> Window:
    """The window of `now` (Unix seconds) for a rule `per` second ... month or total; None: what is open now."""
    if per is None:
        return _LIVE
    if per == TOTAL:
        return _TOTAL
    window = _current.get((per, zone))
    if window is None or not window.began_at <= now < window.ends_at:
        window = _current[per, zone] = _window(per, zone, now)
    return window


@lru_cache(maxsize=256)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _window(per: str, zone: str, now: float) -> Window:
    tz = _zone(zone)
    local = datetime.fromtimestamp(now // 1, tz)
    name = _name(per, local)
    match per:
        case "second":
            return Window(name, int(now), int(now) + 1)
        case "minute":
            return Window(name, int(now) // 60 * 60, int(now) // 60 * 60 + 60)
        case "hour":
            return _hour(name, tz, int(now))
        case "day":
            first = local.date()
            after = first + timedelta(days=1)
        case "week":
            first = local.date() - timedelta(days=local.weekday())
            after = first + timedelta(days=7)
        case _:
            first = local.date().replace(day=1)
            after = (first + timedelta(days=31)).replace(day=1)
    return Window(name, _midnight(first, tz), _midnight(after, tz))


def _name(per: str, local: datetime) -> str:
    if per == "week":
        year, week, _ = local.isocalendar()
        return f"{year}W{week:02d}"
    digits = {"second": 14, "minute": 12, "hour": 10, "day": 8, "month": 6}[per]
    return local.strftime("%Y%m%d%H%M%S")[:digits]


def _hour(name: str, tz: ZoneInfo, now: int) -> Window:
    """As long as the clock shows this hour: twice as long where it is set back, half where half an hour is skipped."""

    def shows(at: int) -> bool:
        return _name("hour", datetime.fromtimestamp(at, tz)) == name

    began_at = ends_at = now - now % 60
    while shows(began_at - 60):
        began_at -= 60
    while shows(ends_at):
        ends_at += 60
    return Window(name, began_at, ends_at)


def _midnight(day: date, tz: ZoneInfo) -> int:
    """When a local day begins: its first instant, also where midnight itself is skipped."""
    return int(datetime(day.year, day.month, day.day, tzinfo=tz).timestamp())


def rfc3339(at: float) -> str:
    """An instant in Unix seconds as people and programs read it, in whole seconds of UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
