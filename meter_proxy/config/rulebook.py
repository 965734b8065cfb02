"""Which rules apply to whom, for which model; built once from a Config, so a reload builds a new one."""

import re
from fractions import Fraction

from meter_proxy.config.coverage import matcher
from meter_proxy.config.schema import Config, Key, Quota
from meter_proxy.quota.charge import ACCOUNT_HOLDER, KEY_HOLDER, Unit
from meter_proxy.quota.rules import Rule

MAX_REMEMBERED = 10_000  # (key, model) pairs: callers choose model names


class _Entry:
    """A rule, and the models that it covers."""

    __slots__ = ("models", "pattern", "rule")

    def __init__(self, rule: Rule, models: tuple[str, ...] | None) -> None:
        self.rule = rule
        self.models = models
        self.pattern: re.Pattern[str] | None = matcher(models) if models is not None else None

    def covers(self, model: str) -> bool:
        return self.pattern is None or self.pattern.match(model) is not None


class RuleBook:
    """Key and model -> rules."""

    def __init__(self, config: Config) -> None:
        when_down = config.redis.when_down
        accounts = {
            name: [_entry(quota, ACCOUNT_HOLDER, name, when_down) for quota in account.quotas]
            for name, account in config.accounts.items()
        }
        self._entries: dict[str, list[_Entry]] = {}
        for key in config.keys:
            own = [_entry(quota, KEY_HOLDER, key.id, when_down) for quota in config.rules_of(key)]
            self._entries[key.id] = own + accounts.get(key.account_id, [])
        self._remembered: dict[tuple[str, str], tuple[Rule, ...]] = {}

    def rules_for(self, key: Key | None, model: str) -> tuple[Rule, ...]:
        """The rules under which `key` asks for `model`: its plan's and its own, then its account's. Nobody: none."""
        if key is None:
            return ()
        place = (key.id, model)
        rules = self._remembered.get(place)
        if rules is None:
            rules = tuple(entry.rule for entry in self._entries.get(key.id, ()) if entry.covers(model))
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[place] = rules
        return rules

    def rules_of(self, key: Key | None) -> list[tuple[Rule, tuple[str, ...] | None]]:
        """All rules of a key, each with the models that it is about (None: all)."""
        return [(entry.rule, entry.models) for entry in self._entries.get(key.id, ())] if key is not None else []


def _entry(quota: Quota, holder: str, owner: str, when_down: str) -> _Entry:
    warn_from = None
    if quota.warn_at is not None:
        share = Fraction(str(quota.warn_at))  # 0.8 as it was written, not as a float holds it
        warn_from = -(-quota.limit * share.numerator // share.denominator)
    rule = Rule(
        id=quota.rule_id,
        holder=holder,
        owner=owner,
        unit=Unit(quota.unit),
        limit=quota.limit,
        per=quota.per,
        zone=quota.timezone,
        hard=quota.reserve == "hard",
        warn_from=warn_from,
        when_exhausted=quota.when_exhausted,
        when_down=quota.when_down or when_down,
    )
    return _Entry(rule, quota.models)
