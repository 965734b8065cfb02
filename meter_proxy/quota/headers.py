"""What the answers of limited keys tell: how much is left, as OpenAI writes it.

https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
"""

import math
from collections.abc import Sequence
from typing import Protocol

from meter_proxy.quota.charge import Unit
from meter_proxy.quota.rules import Rule
from meter_proxy.quota.windows import Window

Headers = tuple[tuple[str, str], ...]

_TOKEN_UNITS = (Unit.TOKENS, Unit.OUTPUT_TOKENS, Unit.INPUT_TOKENS)  # the first that has a rule is shown


class Gauge(Protocol):
    """Tells what is left of a rule in its window; `ledger.counters.Counter` is it."""

    @property
    def remaining(self) -> int:
        """Limit - used - reserved; at least 0."""


class LimitHeaders:
    """`x-ratelimit-*` for requests and tokens: each from the rule that is nearest to its limit.

    And `x-meter-quota-warning` with the rule that is furthest beyond its `warn_at`. What does not change from one
    answer to the next is written out once: that takes 9 us.
    """

    __slots__ = ("_groups", "_warning")

    def __init__(self, rules: Sequence[tuple[Rule, Window, Gauge]]) -> None:
        """Of these rules in these windows; what is left is asked of the gauges, each time."""
        groups = [[_Shown("requests", *place) for place in rules if place[0].unit is Unit.REQUESTS]]
        for unit in _TOKEN_UNITS:
            of_unit = [_Shown("tokens", *place) for place in rules if place[0].unit is unit]
            if of_unit:
                groups.append(of_unit)
                break
        self._groups = [group for group in groups if group]
        self._warning = [(rule, gauge) for rule, _, gauge in rules if rule.warn_from is not None]

    def at(self, now: float) -> Headers:
        """The headers of an answer at `now` (Unix seconds, Redis')."""
        headers: list[tuple[str, str]] = []
        second = now // 1
        for group in self._groups:
            shown = group[0] if len(group) == 1 else min(group, key=_share_left)
            headers += (shown.limit, (shown.remaining_name, str(shown.gauge.remaining)))
            if shown.ends_at:
                headers.append(shown.reset if shown.reset_second == second else shown.reset_at(now))
        if self._warning:
            headers += self._warnings()
        return tuple(headers)

    def _warnings(self) -> Headers:
        taken = [(rule.limit - gauge.remaining, rule) for rule, gauge in self._warning]
        warned = [(amount / max(1, rule.limit), rule.id) for amount, rule in taken if amount >= (rule.warn_from or 0)]
        return (("x-meter-quota-warning", max(warned, key=lambda one: one[0])[1]),) if warned else ()


class _Shown:
    """One rule in the headers."""

    __slots__ = ("_reset_name", "at_most", "ends_at", "gauge", "limit", "remaining_name", "reset", "reset_second")

    def __init__(self, word: str, rule: Rule, window: Window, gauge: Gauge) -> None:
        self.limit = (f"x-ratelimit-limit-{word}", str(rule.limit))
        self.remaining_name = f"x-ratelimit-remaining-{word}"
        self.at_most = max(1, rule.limit)
        self.gauge = gauge
        self.ends_at = window.ends_at
        self._reset_name = f"x-ratelimit-reset-{word}"
        self.reset = (self._reset_name, "")
        self.reset_second = -1.0  # the Unix second in all of which `reset` is true

    def reset_at(self, now: float) -> tuple[str, str]:
        """The header with the time that is left at `now`; windows end at whole seconds, so one text lasts for one."""
        left_s = self.ends_at - now
        header = (self._reset_name, duration(left_s))
        if left_s > 1:
            self.reset, self.reset_second = header, now // 1
        return header


def _share_left(shown: _Shown) -> float:
    return shown.gauge.remaining / shown.at_most


def duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `1s`, `6m0s`, `17h32m5s`; never below 1 ms."""
    if seconds < 1:
        return f"{max(1, math.ceil(seconds * 1000))}ms"
    whole = math.ceil(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
