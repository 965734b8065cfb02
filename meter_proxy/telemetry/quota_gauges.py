"""How full each quota is, as workers know it: the present window of each rule, and the most that anybody saw used.

Which rules there are and what their limits are comes from the configuration. Workers report what they heard of within
the last seconds. Every rule has its series, used or not; where they are too many, those that were used last.
"""

from collections.abc import Iterable

import msgspec

from meter_proxy.quota.charge import Unit
from meter_proxy.telemetry.exposition import Family, Gauge, Labels
from meter_proxy.telemetry.quota_rules import MAX_SERIES, WatchedRule, WatchedRules
from meter_proxy.usage import NANO_USD


class QuotaState(msgspec.Struct, frozen=True, array_like=True):
    """One counter, as a worker saw it last."""

    key: str  # `account:NAME`: an account's
    rule: str
    unit: Unit
    window: str
    ends_at: int  # Unix seconds; 0: never
    limit: int
    used: int
    reserved: int


class QuotaGauges:
    """The four families. `configure` the rules, `absorb` what workers say, `expire` with the clock."""

    def __init__(self) -> None:
        labels = ("key", "rule", "unit")
        self.ratio = Gauge("meter_proxy_quota_usage_ratio", "Share of a quota that is used.", labels)
        self.limit = Gauge("meter_proxy_quota_limit", "A quota's limit in its unit; cost in US dollars.", labels)
        self.used = Gauge("meter_proxy_quota_used", "What is used of a quota, in its unit.", labels)
        self.reset = Gauge(
            "meter_proxy_quota_reset_timestamp_seconds", "When a quota's window ends, in Unix time.", labels
        )
        self._rules: WatchedRules | None = None
        self._states: dict[Labels, QuotaState] = {}  # the one that changed last, last

    @property
    def families(self) -> list[Family]:
        """In the order of the exposition."""
        return [self.ratio, self.limit, self.used, self.reset]

    def configure(self, rules: WatchedRules, now: float) -> None:
        """Show these rules with their limits from now on (Unix seconds); what is used of them stays."""
        self._rules = rules
        former, self._states = self._states, {}
        for rule in rules.listed:
            self._states[rule.key, rule.rule, rule.unit.value] = _unused(rule, now)
        for labels, state in former.items():
            still = self._rule_of(labels)
            if still is not None and still.window(now).id == state.window:
                self._states[labels] = msgspec.structs.replace(state, limit=still.limit)
        self._drop_oldest()
        self._show()

    def _rule_of(self, labels: Labels) -> WatchedRule | None:
        return self._rules.find(*labels) if self._rules is not None else None

    def absorb(self, states: Iterable[QuotaState]) -> None:
        """Take in what one worker knows; what is older than what is known changes nothing."""
        changed = False
        for state in states:
            labels = (state.key, state.rule, state.unit.value)
            if self._rules is not None:
                rule = self._rule_of(labels)
                if rule is None or not rule.has_window(state.window):
                    continue  # the worker used it before the reload that changed it
                state = msgspec.structs.replace(state, limit=rule.limit)
            known = self._states.get(labels)
            state = newer(state, known)
            if state != known:
                self._states.pop(labels, None)
                self._states[labels] = state
                changed = True
        self._drop_oldest()
        if changed:
            self._show()

    def _drop_oldest(self) -> None:
        while len(self._states) > MAX_SERIES:
            del self._states[next(iter(self._states))]

    def expire(self, now: float) -> None:
        """Where a window is over, the next one has begun, and nothing of it is used. `now`: Unix seconds."""
        over = [(labels, state) for labels, state in self._states.items() if 0 < state.ends_at <= now]
        changed = False
        for labels, state in over:
            rule = self._rule_of(labels)
            empty = _unused(rule, now) if rule is not None else msgspec.structs.replace(state, used=0)
            changed = changed or empty != state
            self._states[labels] = empty
        if changed:
            self._show()

    def _show(self) -> None:
        self.used.values = {labels: _amount(state, _taken(state)) for labels, state in self._states.items()}
        self.limit.values = {labels: _amount(state, state.limit) for labels, state in self._states.items()}
        self.ratio.values = {
            labels: _taken(state) / state.limit if state.limit else 1.0 for labels, state in self._states.items()
        }
        self.reset.values = {labels: state.ends_at for labels, state in self._states.items() if state.ends_at}


def newer(state: QuotaState, known: QuotaState | None) -> QuotaState:
    """What is known of a counter after `state` was told: a worker that heard of it earlier takes nothing back."""
    if known is None:
        return state
    if state.window == known.window:
        if state.used < known.used and state.unit is not Unit.CONCURRENT:
            return msgspec.structs.replace(state, used=known.used)
        return state
    return known if state.ends_at < known.ends_at else state


def _taken(state: QuotaState) -> int:
    return state.reserved if state.unit is Unit.CONCURRENT else state.used


def _amount(state: QuotaState, amount: int) -> float:
    return amount / NANO_USD if state.unit is Unit.COST_USD else amount


def _unused(rule: WatchedRule, now: float) -> QuotaState:
    window = rule.window(now)
    return QuotaState(rule.key, rule.rule, rule.unit, window.id, window.ends_at, rule.limit, 0, 0)
