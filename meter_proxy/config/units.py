"""A counter is kept under its rule's id: what it holds in one unit must never be read in another.

An unnamed rule has its unit in its id. A named one whose unit changes would go on with the counter of the old unit.
"""

from collections.abc import Iterator
from typing import NamedTuple

from meter_proxy.config.faults import Finding, Loc
from meter_proxy.config.schema import Config, Quota
from meter_proxy.quota.charge import ACCOUNT_HOLDER, KEY_HOLDER


class PlacedRule(NamedTuple):
    """A rule in force: whose counter it is, and where the rule stands in the configuration."""

    holder: str
    owner: str
    quota: Quota
    loc: Loc

    def refused(self, held: str) -> Finding:
        """Say that the rule's counter holds something else than it counts."""
        whose = f"{'key' if self.holder == KEY_HOLDER else 'account'} {self.owner!r}"
        message = (
            f"counts {self.quota.unit}, but the counter {self.quota.rule_id!r} of {whose} is in {held}, "
            "and its window is not over: give the rule another `name`, under which it begins at 0"
        )
        return Finding(self.loc, message)


def placed_rules(config: Config) -> Iterator[PlacedRule]:
    """All rules in force, a plan's once for each of its keys."""
    for name, account in config.accounts.items():
        for index, quota in enumerate(account.quotas):
            yield PlacedRule(ACCOUNT_HOLDER, name, quota, ("accounts", name, "quotas", index))
    for position, key in enumerate(config.keys):
        plan = config.plans.get(key.plan) if key.plan is not None else None
        for index, quota in enumerate(plan.quotas if plan is not None else ()):
            if not key.replaces(quota):
                yield PlacedRule(KEY_HOLDER, key.id, quota, ("plans", str(key.plan), "quotas", index))
        for index, quota in enumerate(key.quotas):
            yield PlacedRule(KEY_HOLDER, key.id, quota, ("keys", position, "quotas", index))


def changed_units(now: Config, new: Config) -> Iterator[Finding]:
    """What of `new` would go on with a counter that `now` keeps in another unit; each place once.

    A rule per another time has other windows, and so another counter.
    """
    units = {
        (rule.holder, rule.owner, rule.quota.rule_id, rule.quota.per): rule.quota.unit for rule in placed_rules(now)
    }
    found: dict[Loc, Finding] = {}
    for rule in placed_rules(new):
        held = units.get((rule.holder, rule.owner, rule.quota.rule_id, rule.quota.per), rule.quota.unit)
        if held != rule.quota.unit:
            found.setdefault(rule.loc, rule.refused(held))
    yield from found.values()
