"""What one's key may still cost, in the words of OpenAI's former dashboard, which one-api made a habit of clients.

They ask for a limit (`/dashboard/billing/subscription`) and for what is used (`/dashboard/billing/usage`, in cents),
and show the difference. So both come from one rule: the cost rule over all models, of the key or its account, with the
least left. A key without one has one-api's "unlimited", and what it has cost between two days.
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from multidict import MultiMapping

from meter_proxy.config.schema import Key
from meter_proxy.errors import ClientError
from meter_proxy.quota.charge import Unit
from meter_proxy.quota.statement import Line
from meter_proxy.usage import NANO_USD

UNLIMITED_USD = 100_000_000
MAX_DAYS = 100
NANO_USD_PER_CENT = NANO_USD // 100


def budget(lines: Iterable[Line]) -> Line | None:
    """The rule that says how much is left; None: nothing does."""
    costs = [line for line in lines if line.rule.unit is Unit.COST_USD and line.models is None]
    return min(costs, key=lambda line: line.rule.limit - line.used - line.reserved, default=None)


def subscription(rule: Line | None, key: Key | None) -> dict[str, Any]:
    """How much may be used, and until when (Unix seconds; 0: without end)."""
    limit = UNLIMITED_USD if rule is None else rule.rule.limit / NANO_USD
    return {
        "object": "billing_subscription",
        "has_payment_method": True,
        "soft_limit_usd": limit,
        "hard_limit_usd": limit,
        "system_hard_limit_usd": limit,
        "access_until": int(key.expires_at.timestamp()) if key is not None and key.expires_at is not None else 0,
    }


def used(nano_usd: int) -> dict[str, Any]:
    """How much was used, in cents."""
    return {"object": "list", "total_usage": nano_usd / NANO_USD_PER_CENT}


def read_days(query: MultiMapping[str], now: float) -> tuple[date, date]:
    """The first and the last day from `start_date` up to, not including, `end_date`; by default this month.

    Raises `ClientError` (400).
    """
    today = datetime.fromtimestamp(now, UTC).date()
    first = _date(query, "start_date", today.replace(day=1))
    last = _date(query, "end_date", max(first, today) + timedelta(days=1)) - timedelta(days=1)
    if not 0 <= (last - first).days < MAX_DAYS:
        message = f"end_date must be after start_date, and at most {MAX_DAYS} days."
        raise ClientError(400, "invalid_parameter", message, param="end_date")
    return first, last


def _date(query: MultiMapping[str], name: str, default: date) -> date:
    text = query.get(name)
    if not text:
        return default
    try:
        found = date.fromisoformat(text)
        if not 1970 <= found.year <= 9998:  # the next day must be one, too
            raise ValueError
    except ValueError:
        raise ClientError(400, "invalid_parameter", f"{name} must be a date such as 2026-01-31.", param=name) from None
    return found
