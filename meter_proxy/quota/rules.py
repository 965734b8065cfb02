"""A rule as the hot path needs it; made from the configuration by `config/rulebook.py`."""

import msgspec

from meter_proxy.quota.charge import Unit

RATE_WINDOWS = ("second", "minute")


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """So much of one unit, for one key or account, per window."""

    id: str  # UNIT-PER, or its name: never depends on position or limit
    holder: str  # "k": a key and its plan; "a": an account
    owner: str  # the key's id, or the account's name
    unit: Unit
    limit: int  # nano-dollars for COST_USD
    per: str | None  # second ... month, total; None for CONCURRENT
    zone: str  # IANA
    hard: bool
    warn_from: int | None  # used and reserved, from which on answers carry a warning
    when_exhausted: str  # stop | error | finish
    when_down: str  # closed | bounded | open

    @property
    def is_rate(self) -> bool:
        """Whether it is about pace, so that waiting a little helps: it is not a budget, as all cost is."""
        return self.unit is not Unit.COST_USD and (self.per is None or self.per in RATE_WINDOWS)

    @property
    def scope(self) -> str:
        """Whose it is, as in the metrics: `alice`, `account:acme`."""
        return self.owner if self.holder == "k" else f"account:{self.owner}"
