"""The rules of a configuration as the quota gauges need them: whose, how much, which window."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import NamedTuple

from meter_proxy.config.schema import Config, Quota
from meter_proxy.ledger.books import CounterBook
from meter_proxy.ledger.messages import counter_key
from meter_proxy.quota.charge import ACCOUNT_HOLDER, KEY_HOLDER, Unit
from meter_proxy.quota.windows import Window, window_at

MAX_SERIES = 2_000  # of the gauges: rules times keys
MAX_WATCHED = 50_000  # how full more of them are is known of those only that this machine uses
_ID_CHARS = {None: 4, "total": 5, "month": 6, "week": 7, "day": 8, "hour": 10, "minute": 12, "second": 14}
ACCOUNT = "account:"  # before the name of an account where a key's id could stand; no id has a colon


class WatchedRule(NamedTuple):
    """One rule of one key or account."""

    key: str  # its id; `account:NAME`: an account's
    rule: str
    unit: Unit
    limit: int  # nano-dollars for cost
    per: str | None
    zone: str
    account: str
    warn_at: float | None = None  # share of the limit
    models: tuple[str, ...] | None = None  # None: all

    def window(self, now: float) -> Window:
        """Its window at `now` (Unix seconds)."""
        return window_at(self.per, self.zone, now)

    def has_window(self, window_id: str) -> bool:
        """Whether that is the name of one of its windows, not of one from before `per` was edited."""
        return len(window_id) == _ID_CHARS[self.per]

    def hash_key(self, window: Window) -> str:
        """Where Redis has its counter."""
        of_account = self.key.startswith(ACCOUNT)
        holder, owner = (ACCOUNT_HOLDER, self.account) if of_account else (KEY_HOLDER, self.key)
        return counter_key(
            CounterBook("", self.account, holder, owner, self.rule, window.id, self.unit, window.ends_at)
        )


class WatchedRules:
    """All rules of a configuration. Made at once, however large that is: what is asked for is looked up then."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._keys = {key.id: key for key in config.keys}
        self._found: dict[tuple[str, str, str], WatchedRule | None] = {}
        first = list(islice(self.all(), MAX_SERIES + 1))
        self.listed = first if len(first) <= MAX_SERIES else []  # each of them, unless they are too many to show

    def find(self, key: str, rule: str, unit: str) -> WatchedRule | None:
        """The rule with these labels; None if there is none any more."""
        labels = key, rule, unit
        if labels not in self._found:
            if len(self._found) > 2 * MAX_SERIES:
                self._found.clear()
            rules = (one for one in self._of(key) if (one.rule, one.unit.value) == (rule, unit))
            self._found[labels] = next(rules, None)
        return self._found[labels]

    def all(self) -> Iterator[WatchedRule]:
        """Each of them, made as it is asked for: 5 us. Those of the keys, then those of the accounts."""
        keys = chain.from_iterable(self._of(key) for key in self._keys)
        return chain(keys, chain.from_iterable(self._of(ACCOUNT + name) for name in self._config.accounts))

    def _of(self, key: str) -> Iterator[WatchedRule]:
        quotas: Iterable[Quota] = ()
        account = key.removeprefix(ACCOUNT)
        if key.startswith(ACCOUNT):
            found = self._config.accounts.get(account)
            quotas = found.quotas if found is not None else ()
        elif key in self._keys:
            quotas = self._config.rules_of(self._keys[key])
            account = self._keys[key].account_id
        for quota in quotas:
            unit = Unit(quota.unit)
            yield WatchedRule(
                key, quota.rule_id, unit, quota.limit, quota.per, quota.timezone, account, quota.warn_at, quota.models
            )
