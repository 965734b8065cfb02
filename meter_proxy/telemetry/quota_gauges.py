"""How full each quota is, as workers know it: the latest window of each rule, and the most that anybody saw used.

Workers report the counters that they heard of within the last seconds; so a rule that nobody runs into has no series.
"""

from collections.abc import Iterable

import msgspec

from meter_proxy.quota.charge import Unit
from meter_proxy.telemetry.exposition import Family, Gauge, Labels

MAX_SERIES = 2_000  # rules of keys; those that were used longest ago go first
NANO = 1e9


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
    """The four families. `absorb` what workers say, `expire` with the clock."""

    def __init__(self) -> None:
        labels = ("key", "rule", "unit")
        self.ratio = Gauge("meter_proxy_quota_usage_ratio", "Share of a quota that is used.", labels)
        self.limit = Gauge("meter_proxy_quota_limit", "A quota's limit in its unit; cost in US dollars.", labels)
        self.used = Gauge("meter_proxy_quota_used", "What is used of a quota, in its unit.", labels)
        self.reset = Gauge(
            "meter_proxy_quota_reset_timestamp_seconds", "When a quota's window ends, in Unix time.", labels
        )
        self._states: dict[Labels, QuotaState] = {}  # the one that changed last, last

    @property
    def families(self) -> list[Family]:
        """In the order of the exposition."""
        return [self.ratio, self.limit, self.used, self.reset]

    def absorb(self, states: Iterable[QuotaState]) -> None:
        """Take in what one worker knows; what is older than what is known changes nothing."""
        changed = False
        for state in states:
            labels = (state.key, state.rule, state.unit.value)
            known = self._states.get(labels)
            if known is not None and state.window == known.window:
                if state.used < known.used and state.unit is not Unit.CONCURRENT:
                    state = msgspec.structs.replace(state, used=known.used)
            elif known is not None and state.ends_at < known.ends_at:
                continue
            if state != known:
                self._states.pop(labels, None)
                self._states[labels] = state
                changed = True
        while len(self._states) > MAX_SERIES:
            del self._states[next(iter(self._states))]
        if changed:
            self._show()

    def expire(self, now: float) -> None:
        """Windows that are over hold nothing any more. `now`: Unix seconds."""
        over = [labels for labels, state in self._states.items() if state.used and 0 < state.ends_at <= now]
        for labels in over:
            self._states[labels] = msgspec.structs.replace(self._states[labels], used=0)
        if over:
            self._show()

    def _show(self) -> None:
        self.used.values = {labels: _amount(state, _taken(state)) for labels, state in self._states.items()}
        self.limit.values = {labels: _amount(state, state.limit) for labels, state in self._states.items()}
        self.ratio.values = {
            labels: _taken(state) / state.limit if state.limit else 1.0 for labels, state in self._states.items()
        }
        self.reset.values = {labels: state.ends_at for labels, state in self._states.items() if state.ends_at}


def _taken(state: QuotaState) -> int:
    return state.reserved if state.unit is Unit.CONCURRENT else state.used


def _amount(state: QuotaState, amount: int) -> float:
    return amount / NANO if state.unit is Unit.COST_USD else amount
