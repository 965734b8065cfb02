"""What a caller is told of its own use: the document of `GET /v1/usage`.

    {"object": "usage", "key": "alice", "account": "alice", "as_of": "2026-01-31T12:00:00Z", "live": true,
     "today": {"day": "2026-01-31", "models": [{"model", "requests", "input_tokens", "output_tokens",
               "cached_input_tokens", "reasoning_tokens", "cost_usd"}]},
     "days": [{"day", "models"}],
     "quotas": [{"rule", "scope": "key" or "account", "unit", "per", "models": [...] or null, "limit", "used",
                 "reserved", "remaining", "window", "began_at", "resets_at", "timezone", "warning": true or false}]}

`days`: those asked for (`?days=30`) on which something was used, oldest first, today too; in the shape of `today`.
`live`: false while Redis is away; then the figures are this worker's own, and may be too low. Amounts of a cost rule
are US dollars, as strings with all their digits; all others are integers. Times are RFC 3339, UTC; null: never.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from meter_proxy.quota.charge import KEY_HOLDER, Unit
from meter_proxy.quota.rules import Rule
from meter_proxy.quota.windows import Window, rfc3339
from meter_proxy.usage import NANO_USD


class Line(NamedTuple):
    """One rule in its present window."""

    rule: Rule
    models: tuple[str, ...] | None
    window: Window
    used: int
    reserved: int


Totals = Mapping[str, Mapping[str, int]]  # model -> field -> amount


def statement(
    *, key: str, account: str, now: float, live: bool, days: Sequence[tuple[str, Totals]], lines: Sequence[Line]
) -> dict[str, Any]:
    """The document. `days`: what was used on UTC days, newest first; the first one is today."""
    return {
        "object": "usage",
        "key": key,
        "account": account,
        "as_of": rfc3339(now),
        "live": live,
        "today": _day(*days[0]),
        "days": [_day(day, totals) for day, totals in reversed(days) if totals],
        "quotas": [_quota(line) for line in lines],
    }


def _day(day: str, totals: Totals) -> dict[str, Any]:
    return {"day": day, "models": [_model(name, fields) for name, fields in sorted(totals.items())]}


def _model(name: str, fields: Mapping[str, int]) -> dict[str, Any]:
    counts = {field: amount for field, amount in fields.items() if field != "cost_nano_usd"}
    return {"model": name, **counts, "cost_usd": dollars(fields.get("cost_nano_usd", 0))}


def _quota(line: Line) -> dict[str, Any]:
    rule, window = line.rule, line.window
    amount = dollars if rule.unit is Unit.COST_USD else int
    taken = line.used + line.reserved
    return {
        "rule": rule.id,
        "scope": "key" if rule.holder == KEY_HOLDER else "account",
        "unit": rule.unit.value,
        "per": rule.per,
        "models": list(line.models) if line.models is not None else None,
        "limit": amount(rule.limit),
        "used": amount(line.used),
        "reserved": amount(line.reserved),
        "remaining": amount(max(0, rule.limit - taken)),
        "window": window.id,
        "began_at": rfc3339(window.began_at) if window.began_at else None,
        "resets_at": rfc3339(window.ends_at) if window.ends_at else None,
        "timezone": rule.zone,
        "warning": rule.warn_from is not None and taken >= rule.warn_from,
    }


def dollars(nano_usd: int) -> str:
    """Nano-dollars as dollars, exact: `0.0025`."""
    whole, rest = divmod(nano_usd, NANO_USD)
    digits = f"{rest:09d}".rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)
