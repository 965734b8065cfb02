"""All rules of a configuration with what is used of them, the fullest first: `/api/quotas`.

The gauges of Prometheus show some of the rules, where they are many; this one knows them all. What is used comes from
the workers: of what they use themselves at once, of everything else when it was read from Redis last (quota_watch.py).
"""

from collections.abc import Iterable

from meter_proxy.quota.charge import Unit
from meter_proxy.quota.windows import rfc3339
from meter_proxy.tasks import slices, sort
from meter_proxy.telemetry.quota_gauges import QuotaState, newer
from meter_proxy.telemetry.quota_rules import MAX_WATCHED, WatchedRule, WatchedRules
from meter_proxy.usage import NANO_USD

SLICE = 200  # rules before the loop gets its turn: 1 ms
QuotaRow = dict[str, str | int | float | list[str] | None]
FIELDS = (
    "key", "rule", "unit", "per", "limit", "used", "reserved", "remaining", "resets_at", "warn_at", "models",
)  # fmt: skip


class QuotaBoard:
    """`configure` the rules, `absorb` what workers say, ask for a `page`."""

    def __init__(self) -> None:
        self._rules: WatchedRules | None = None
        self._listed: tuple[WatchedRules, list[WatchedRule]] | None = None
        self._states: dict[tuple[str, str, Unit], QuotaState] = {}

    def configure(self, rules: WatchedRules) -> None:
        """Show these rules from now on; what is used of them stays."""
        self._rules = rules

    def absorb(self, states: Iterable[QuotaState]) -> None:
        """Take in what one worker knows."""
        for state in states:
            labels = (state.key, state.rule, state.unit)
            self._states[labels] = newer(state, self._states.pop(labels, None))  # it is the last now
        while len(self._states) > 2 * MAX_WATCHED:
            del self._states[next(iter(self._states))]

    async def page(
        self, now: float, *, key: str | None = None, q: str = "", limit: int = 100, offset: int = 0
    ) -> tuple[int, list[QuotaRow]]:
        """How many rules fit, and `limit` of them from `offset` on; the fullest first, then as configured.

        `key`: only the rules of this key (`account:NAME`: of an account); `q`: only those with this text in the key or
        in the name of the rule, whatever its case. `now`: Unix seconds.
        """
        wanted = q.lower()
        rules = await self._all()
        fullest: list[tuple[float, int]] = []  # how full, below 0, and the number of the rule
        unused: list[int] = []
        async for part in slices(enumerate(rules), SLICE):
            for number, rule in part:
                if key is not None and rule.key != key:
                    continue
                if wanted and wanted not in rule.key.lower() and wanted not in rule.rule.lower():
                    continue
                taken = sum(self._taken(rule, now))
                if taken:
                    fullest.append((-taken / rule.limit if rule.limit else -1.0, number))
                else:
                    unused.append(number)
        first = await sort(fullest)
        end = offset + limit
        chosen = [number for _, number in first[offset:end]]
        chosen += unused[max(0, offset - len(first)) : max(0, end - len(first))]
        rows = [self._row(rules[number], now) async for part in slices(chosen, SLICE) for number in part]
        return len(first) + len(unused), rows

    async def _all(self) -> list[WatchedRule]:
        rules = self._rules
        if rules is None:
            return []
        if self._listed is None or self._listed[0] is not rules:
            found = [rule async for part in slices(rules.all(), SLICE) for rule in part]
            self._listed = rules, found
        return self._listed[1]

    def _taken(self, rule: WatchedRule, now: float) -> tuple[int, int]:
        """What is used and reserved of its present window."""
        state = self._states.get((rule.key, rule.rule, rule.unit))
        if state is None or state.window != rule.window(now).id:
            return 0, 0
        return state.used, state.reserved

    def _row(self, rule: WatchedRule, now: float) -> QuotaRow:
        used, reserved = self._taken(rule, now)
        ends_at = rule.window(now).ends_at
        values = (
            rule.key,
            rule.rule,
            rule.unit.value,
            rule.per,
            _amount(rule, rule.limit),
            _amount(rule, used),
            _amount(rule, reserved),
            _amount(rule, max(0, rule.limit - used - reserved)),
            rfc3339(ends_at) if ends_at else None,
            rule.warn_at,
            list(rule.models) if rule.models is not None else None,
        )
        return dict(zip(FIELDS, values, strict=True))


def _amount(rule: WatchedRule, amount: int) -> int | float:
    return amount / NANO_USD if rule.unit is Unit.COST_USD else amount
