"""To which account each key belongs: what joins the keys of the other metrics to accounts."""

from itertools import islice

from meter_proxy.config.schema import Config
from meter_proxy.telemetry.exposition import Gauge, Labels
from meter_proxy.telemetry.quota_rules import MAX_SERIES


class KeyInfo(Gauge):
    """One series of each key that is configured or was used; where too many are configured, of the first ones."""

    def __init__(self) -> None:
        super().__init__("meter_proxy_key_info", "Always 1; the account of a key is in the label.", ("key", "account"))
        self._accounts: dict[str, str] = {}  # by key, as configured
        self._shown: dict[Labels, float] = {}
        self.values = self._shown

    def configure(self, config: Config) -> None:
        """Show these keys, and those shown so far that are still there; a key is under one account only."""
        accounts = self._accounts = {key.id: key.account_id for key in config.keys}
        used = [key for key, _ in self._shown if key in accounts]
        self.values = self._shown = {(key, accounts[key]): 1 for key in [*islice(accounts, MAX_SERIES), *used]}

    def show(self, key: str, account: str) -> None:
        """`key` was used. The account matters only where the configuration does not know the key (any more)."""
        self._shown[key, self._accounts.get(key, account)] = 1
