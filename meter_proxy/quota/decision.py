"""What a refusal says: whose fault it is, and when it is worth while to come back.

Rules about pace (second, minute, concurrent) are `rate_limit_exceeded`: clients wait and try again by themselves.
Budgets (hour and longer, cost) are `insufficient_quota`, and say that trying again does not help. The words and the
headers are OpenAI's: https://platform.openai.com/docs/guides/error-codes
"""

import math
from typing import NamedTuple

from meter_proxy.quota.charge import Unit
from meter_proxy.quota.headers import Headers
from meter_proxy.quota.rules import Rule
from meter_proxy.quota.windows import Window, rfc3339
from meter_proxy.usage import NANO_USD

CONCURRENT_RETRY_S = 1.0  # when another exchange ends, nobody knows


class Denied(NamedTuple):
    """One rule that does not grant what was asked."""

    rule: Rule
    window: Window
    retry_after_s: float | None  # None: never

    @property
    def type(self) -> str:
        """`error.type` of the reply."""
        if not self.rule.is_rate:
            return "insufficient_quota"
        return "requests" if self.rule.unit in (Unit.REQUESTS, Unit.CONCURRENT) else "tokens"

    @property
    def code(self) -> str:
        """`error.code` of the reply."""
        return "rate_limit_exceeded" if self.rule.is_rate else "insufficient_quota"

    @property
    def message(self) -> str:
        """One sentence for the caller; nothing of anybody else's use."""
        rule = self.rule
        whose = "your account" if rule.holder == "a" else "this API key"
        if rule.unit is Unit.CONCURRENT:
            return f"Too many requests at once: {whose} may have {rule.limit} open. Rule: {rule.id}."
        until = ""
        if self.window.ends_at:
            until = f" It resets at {rfc3339(self.window.ends_at)}."
        what = "Rate limit reached" if rule.is_rate else "Quota exceeded"
        return f"{what}: {whose} may use {described(rule)}. Rule: {rule.id}.{until}"

    @property
    def headers(self) -> Headers:
        """What tells a client whether, and when, to try again."""
        headers: list[tuple[str, str]] = []
        if not self.rule.is_rate:
            headers.append(("x-should-retry", "false"))
        if self.retry_after_s is not None:
            headers.append(("retry-after", str(max(1, math.ceil(self.retry_after_s)))))
            if self.rule.is_rate:
                headers.append(("retry-after-ms", str(max(1, math.ceil(self.retry_after_s * 1000)))))
        return tuple(headers)


def denied(rule: Rule, window: Window, now: float) -> Denied:
    """The refusal by `rule` at `now` (Unix seconds, Redis')."""
    if rule.unit is Unit.CONCURRENT:
        return Denied(rule, window, CONCURRENT_RETRY_S)
    return Denied(rule, window, max(0.0, window.ends_at - now) if window.ends_at else None)


def described(rule: Rule) -> str:
    """A limit in words: `200,000 tokens per day`, `1 request per minute`."""
    if rule.unit is Unit.COST_USD:
        dollars = f"{rule.limit / NANO_USD:,.9f}".rstrip("0").rstrip(".")
        amount = f"{dollars} USD"
    else:
        unit = rule.unit.value.replace("_", " ")
        amount = f"{rule.limit:,} {unit.removesuffix('s') if rule.limit == 1 else unit}"
    return f"{amount} in total" if rule.per == "total" else f"{amount} per {rule.per}"
