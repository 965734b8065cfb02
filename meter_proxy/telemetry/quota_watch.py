"""How full the quotas are, as Redis has it: also those that nobody of this machine has run into yet.

Runs in one worker, not in the parent: a client of Redis may start threads to look up names, and a process that forks
must have none. A worker knows by itself what it uses; this is for what others use, and what was used before it began.
"""

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

from meter_proxy.errors import StoreError
from meter_proxy.quota.windows import Window
from meter_proxy.telemetry.quota_gauges import QuotaState
from meter_proxy.telemetry.quota_rules import MAX_WATCHED, WatchedRule, WatchedRules

ROUND_S = 1.0  # at least; 20,000 rules take 100 s
BATCH = 40  # hashes in one go: keeps the loop for 2 ms
PAUSE_S = 0.2  # after each
RETRY_S = 2.0  # while Redis is away
NEWS_S = 5.0  # what was read is told for so long: the parent looks several times a second


class HashStore(Protocol):
    """What of a store is needed; `store.Store` is it."""

    async def read_hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """Return the hashes under `keys`; an empty one for a key that is not there. Raises `StoreError`."""


class QuotaWatch:
    """`run` reads, `news` tells."""

    def __init__(self, store: HashStore, rules: WatchedRules, now: Callable[[], float]) -> None:
        """`now`: Unix seconds, by the clock that windows follow."""
        self._store = store
        self._rules = rules
        self._now = now
        self._known: dict[tuple[str, str, str], QuotaState] = {}
        self._told: dict[tuple[str, str, str], float] = {}  # -> when it was read, Unix seconds

    def configure(self, rules: WatchedRules) -> None:
        """Watch these from now on."""
        self._rules = rules
        self._known.clear()
        self._told.clear()

    @property
    def news(self) -> list[QuotaState]:
        """What was read lately and was not known before."""
        since = self._now() - NEWS_S
        for labels in [labels for labels, at in self._told.items() if at < since]:
            del self._told[labels]
        return [self._known[labels] for labels in self._told]

    async def run(self) -> None:
        """Read all rules, round after round, until cancelled."""
        while True:
            rules = self._rules
            left = islice(rules.all(), MAX_WATCHED)
            while rules is self._rules and (batch := list(islice(left, BATCH))):
                try:
                    await self._read(rules, batch)
                except StoreError:
                    await asyncio.sleep(RETRY_S)
                await asyncio.sleep(PAUSE_S)
            await asyncio.sleep(ROUND_S - PAUSE_S)

    async def _read(self, rules: WatchedRules, batch: Sequence[WatchedRule]) -> None:
        windows = [rule.window(self._now()) for rule in batch]
        keys = [rule.hash_key(window) for rule, window in zip(batch, windows, strict=True)]
        hashes = await self._store.read_hashes(keys)
        if rules is not self._rules:
            return  # of a configuration that is not served any more
        for rule, window, fields in zip(batch, windows, hashes, strict=True):
            self._note(rule, window, _count(fields, "used"), _count(fields, "reserved"))

    def _note(self, rule: WatchedRule, window: Window, used: int, reserved: int) -> None:
        labels = rule.key, rule.rule, rule.unit.value
        state = QuotaState(rule.key, rule.rule, rule.unit, window.id, window.ends_at, rule.limit, used, reserved)
        known = self._known.get(labels)
        if state == known or (known is None and not used and not reserved):
            return
        self._known[labels] = state
        self._told[labels] = self._now()


def _count(fields: dict[str, str], name: str) -> int:
    try:
        return max(0, int(fields.get(name, "0")))
    except ValueError:
        return 0  # `audit` tells what is wrong with it
