"""Reading from Redis how full the quotas are."""

import asyncio
from collections.abc import Sequence

import pytest

from meter_proxy.errors import StoreError
from meter_proxy.quota.charge import Unit
from meter_proxy.tasks import spawn
from meter_proxy.telemetry import quota_watch
from meter_proxy.telemetry.quota_gauges import QuotaState
from meter_proxy.telemetry.quota_rules import MAX_SERIES, WatchedRules
from meter_proxy.telemetry.quota_watch import BATCH, NEWS_S, QuotaWatch
from tests.support.waiting import until
from tests.unit.telemetry.quota_configs import config_with, key

NOON = 1_769_860_800.0  # 2026-01-31T12:00:00Z
MIDNIGHT = 1_769_904_000
DAILY = {"name": "daily", "tokens": 200, "per": "day"}
PLACE = "mp:{acme}:quota:k:alice:daily:20260131"


class FakeStore:
    """Hashes; away if told so."""

    def __init__(self) -> None:
        self.hashes: dict[str, dict[str, str]] = {}
        self.is_away = False
        self.reads: list[Sequence[str]] = []

    async def read_hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """See `Store.read_hashes`."""
        self.reads.append(keys)
        if self.is_away:
            raise StoreError("away")
        return [self.hashes.get(name, {}) for name in keys]


class Watched:
    """A watch on a fake store, with a clock that is set."""

    def __init__(self, *keys: dict[str, object], **members: object) -> None:
        self.store = FakeStore()
        self.now = NOON
        self.watch = QuotaWatch(self.store, WatchedRules(config_with(*keys, **members)), lambda: self.now)

    async def rounds(self, count: int = 1) -> None:
        """Let it read everything so many times."""
        end = len(self.store.reads) + count
        running = spawn(self.watch.run(), name="watch")
        await until(lambda: len(self.store.reads) >= end, "rounds")
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROUND_S", "PAUSE_S", "RETRY_S"):
        monkeypatch.setattr(quota_watch, name, 0.001)


async def test_what_is_read_is_told_once_and_for_a_while() -> None:
    """Under the contract's names; what is empty is no news."""
    accounts = {"acme": {"quotas": [{"requests": 9, "per": "total"}]}}
    it = Watched(key("alice", DAILY, {"concurrent": 3}, account="acme"), accounts=accounts)
    it.store.hashes[PLACE] = {"used": "50", "reserved": "7", "u:abc": "50"}
    it.store.hashes["mp:{acme}:quota:a:requests-total:total"] = {"used": "2"}
    await it.rounds()
    assert it.watch.news == [
        QuotaState("alice", "daily", Unit.TOKENS, "20260131", MIDNIGHT, 200, 50, 7),
        QuotaState("account:acme", "requests-total", Unit.REQUESTS, "total", 0, 9, 2, 0),
    ]
    it.now += NEWS_S + 1
    await it.rounds(2)
    assert it.watch.news == []
    it.store.hashes[PLACE] = {"used": "51", "reserved": "0"}
    await it.rounds()
    assert [(state.used, state.reserved) for state in it.watch.news] == [(51, 0)]


async def test_a_new_window_is_another_hash() -> None:
    it = Watched(key("alice", DAILY, account="acme"))
    it.store.hashes[PLACE] = {"used": "50"}
    it.now = MIDNIGHT
    await it.rounds()
    assert it.watch.news == []
    assert it.store.reads[0] == [PLACE.replace("20260131", "20260201")]


async def test_while_redis_is_away_what_is_known_stays() -> None:
    """And it is read again when it is back."""
    it = Watched(key("alice", DAILY, account="acme"))
    it.store.hashes[PLACE] = {"used": "50"}
    await it.rounds()
    it.store.is_away = True
    await it.rounds(3)
    assert [state.used for state in it.watch.news] == [50]
    it.store.is_away = False
    it.store.hashes[PLACE] = {"used": "60"}
    await it.rounds()
    assert [state.used for state in it.watch.news] == [60]


async def test_a_hash_that_holds_something_else_ends_nothing() -> None:
    it = Watched(key("alice", DAILY, account="acme"), key("bob", DAILY))
    it.store.hashes[PLACE] = {"used": "many"}
    it.store.hashes["mp:{bob}:quota:k:bob:daily:20260131"] = {"used": "4"}
    await it.rounds()
    assert [(state.key, state.used) for state in it.watch.news] == [("bob", 4)]


async def test_rules_are_read_in_batches_and_new_ones_after_a_reload() -> None:
    """What was read for the former configuration is forgotten."""
    it = Watched(*(key(f"k{number}", DAILY) for number in range(BATCH + 1)))
    it.store.hashes["mp:{k0}:quota:k:k0:daily:20260131"] = {"used": "1"}
    await it.rounds(2)
    assert [len(keys) for keys in it.store.reads[:2]] == [BATCH, 1]
    assert it.watch.news
    it.watch.configure(WatchedRules(config_with(key("alice", DAILY, account="acme"))))
    assert it.watch.news == []
    it.store.reads.clear()
    await it.rounds()
    assert it.store.reads[0] == [PLACE]


async def test_more_rules_are_read_than_prometheus_shows() -> None:
    """`/api/quotas` knows them all."""
    it = Watched(*(key(f"k{number}", DAILY) for number in range(MAX_SERIES + BATCH)))
    last = f"k{MAX_SERIES + BATCH - 1}"
    it.store.hashes[f"mp:{{{last}}}:quota:k:{last}:daily:20260131"] = {"used": "3"}
    await it.rounds(MAX_SERIES // BATCH + 1)
    assert [(state.key, state.used) for state in it.watch.news] == [(last, 3)]
