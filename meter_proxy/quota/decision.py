"""What a refusal says: whose fault it is, and when it is worth while to come back.

Rules about pace (second, minute, concurrent) are `rate_limit_exceeded`: clients wait and try again by themselves.
Budgets (hour and longer, cost) are `insufficient_quota`, and say that trying again does not help. The words and the
headers are OpenAI's: https://platform.openai.com/docs/guides/error-codes
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from meter_proxy.quota.charge import Unit
from meter_proxy.quota.rules import Rule
from meter_proxy.quota.windows import Window

CONCURRENT_RETRY_S = 1.0  # when another exchange ends, nobody knows
NANO_USD = 1_000_000_000

Headers = tuple[tuple[str, str], ...]


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
            at = datetime.fromtimestamp(self.window.ends_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            until = f" It resets at {at}."
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
    """A limit in words: `200,000 tokens per day`."""
    if rule.unit is Unit.COST_USD:
        dollars = f"{rule.limit / NANO_USD:,.9f}".rstrip("0").rstrip(".")
        amount = f"{dollars} USD"
    else:
        amount = f"{rule.limit:,} {rule.unit.value.replace('_', ' ')}"
    return f"{amount} in total" if rule.per == "total" else f"{amount} per {rule.per}"


class Left(NamedTuple):
    """What is left of a rule in its window, after an admission."""

    rule: Rule
    window: Window
    remaining: int


_TOKEN_UNITS = (Unit.TOKENS, Unit.OUTPUT_TOKENS, Unit.INPUT_TOKENS)  # the first that has a rule is shown


def rate_limit_headers(left: Sequence[Left], now: float) -> Headers:
    """`x-ratelimit-*` for requests and tokens: each from the rule that is nearest to its limit, as OpenAI writes them.

    And `x-meter-quota-warning` with the rule that is furthest beyond its `warn_at`.
    """
    headers: list[tuple[str, str]] = []
    for word, units in (("requests", (Unit.REQUESTS,)), ("tokens", _TOKEN_UNITS)):
        tightest = _tightest(left, units)
        if tightest is not None:
            rule, window, remaining = tightest
            headers.append((f"x-ratelimit-limit-{word}", str(rule.limit)))
            headers.append((f"x-ratelimit-remaining-{word}", str(remaining)))
            if window.ends_at:
                headers.append((f"x-ratelimit-reset-{word}", duration(window.ends_at - now)))
    warned = [one for one in left if one.rule.warn_from is not None and _taken(one) >= one.rule.warn_from]
    if warned:
        most = max(warned, key=lambda one: _taken(one) / max(1, one.rule.limit))
        headers.append(("x-meter-quota-warning", most.rule.id))
    return tuple(headers)


def _tightest(left: Sequence[Left], units: Sequence[Unit]) -> Left | None:
    for unit in units:
        of_unit = [one for one in left if one.rule.unit is unit]
        if of_unit:
            return min(of_unit, key=lambda one: one.remaining / max(1, one.rule.limit))
    return None


def _taken(left: Left) -> int:
    return left.rule.limit - left.remaining


def duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `1s`, `6m0s`, `17h32m5s`; never below 1 ms."""
    if seconds < 1:
        return f"{max(1, math.ceil(seconds * 1000))}ms"
    whole = math.ceil(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
