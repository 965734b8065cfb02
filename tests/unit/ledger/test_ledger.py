"""The seam: what is settled is in the journal and on its way to the store, whatever either of them does."""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meter_proxy.errors import CannotStart
from meter_proxy.ledger import Ledger, ledger, outbox, sync
from meter_proxy.ledger.books import FIELDS
from meter_proxy.ledger.grants import Grant
from meter_proxy.ledger.messages import day_expires_at
from meter_proxy.ledger.reading import iter_records
from meter_proxy.metering.request import Asked
from meter_proxy.quota.charge import Charge, Unit
from meter_proxy.quota.reservation import FREE, Terms
from meter_proxy.quota.rules import Rule
from tests.support.records import totals_of, usage_record
from tests.support.waiting import until
from tests.unit.ledger.stores import InMemory, LosesReplies, RefusesOneKey, Slow, Unreachable, keys_in

NOW = 1772366400.0  # 2026-03-01T12:00:00Z
MakeLedger = Callable[..., Ledger]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same behaviour in less time."""
    monkeypatch.setattr(outbox, "COALESCE_S", 0.001)
    monkeypatch.setattr(sync, "CHECK_S", 0.01)
    monkeypatch.setattr(sync, "BACKOFF_FIRST_S", 0.001)
    monkeypatch.setattr(sync, "BACKOFF_MAX_S", 0.01)
    monkeypatch.setattr(ledger, "REWRITE_S", 0.001)
    monkeypatch.setattr(ledger, "STOP_S", 0.2)
    monkeypatch.setattr(ledger, "STOP_WHILE_DOWN_S", 0.02)


@pytest.fixture
def make(tmp_path: Path) -> MakeLedger:
    """`make(store, worker=0, workers=1)`: a ledger in the test's state directory, its clock at NOW."""

    def make_ledger(store: InMemory | None, worker: int = 0, workers: int = 1) -> Ledger:
        return Ledger(tmp_path / f"w{worker}", store, workers=workers, clock=lambda: NOW, jitter=lambda: 0.5)

    return make_ledger


async def settle_and_stop(books: Ledger, *keys: str) -> None:
    await books.start()
    for key in keys:
        books.settle(usage_record(key=key))
    await books.stop()


async def test_settled_is_in_journal_and_store(make: MakeLedger, tmp_path: Path) -> None:
    """Every record is in the journal when settle returns, and in the store soon after."""
    store = InMemory()
    books = make(store)
    await books.start()
    assert books.store_up
    for number in range(300):
        books.settle(
            usage_record(key=f"k{number % 150}", model="m1" if number % 3 else "m2", cached_input_tokens=number)
        )
    assert len(list(iter_records(tmp_path))) == 300
    assert books.unsynced == 300
    await until(lambda: books.unsynced == 0, "everything is acknowledged")
    assert store.totals() == totals_of(iter_records(tmp_path))
    assert max(store.batches) <= sync.MAX_CALLS + 2
    await books.stop()
    assert store.is_closed


async def test_without_a_store_the_books_stay_here(make: MakeLedger, tmp_path: Path) -> None:
    """A ledger without a store writes its journal all the same."""
    await settle_and_stop(books := make(None), "alice")
    assert len(list(iter_records(tmp_path))) == 1
    assert (books.unsynced, books.store_up, books.regressions) == (0, False, 0)


async def test_what_is_settled_meanwhile_rides_in_the_next_batch(make: MakeLedger, tmp_path: Path) -> None:
    """One batch is under way at a time; what changes under way is not taken for acknowledged."""
    store = Slow()
    books = make(store)
    await books.start()
    for key in ("first", "changes", "last"):
        books.settle(usage_record(key=key))
    await until(lambda: store.under_way, "the first batch is under way")
    books.settle(usage_record(key="changes"))
    books.settle(usage_record(key="new"))
    assert books.unsynced == 5
    store.answer.set()
    await until(lambda: books.unsynced == 0, "everything is acknowledged")
    assert not store.overlapped
    assert store.totals() == totals_of(iter_records(tmp_path))
    await books.stop()


async def test_what_is_settled_while_the_last_batch_is_under_way_is_sent_before_the_end(
    make: MakeLedger, tmp_path: Path
) -> None:
    """It waits for the same account, which has nothing else to send."""
    store = Slow()
    books = make(store)
    await books.start()
    books.settle(usage_record(key="first"))
    await until(lambda: store.under_way, "the first batch is under way")
    books.settle(usage_record(key="second"))
    stopping = asyncio.ensure_future(books.stop())
    await asyncio.sleep(0)
    store.answer.set()
    await stopping
    assert store.totals() == totals_of(iter_records(tmp_path))


async def test_a_busy_key_is_sent_a_few_times_a_second(
    make: MakeLedger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is settled while a batch is under way waits a little, too: the store is not asked once a request."""
    monkeypatch.setattr(outbox, "COALESCE_S", 0.02)
    monkeypatch.setattr(sync, "CHECK_S", 60.0)  # no other look at the store
    store = InMemory()
    books = make(store)
    await books.start()
    for _ in range(200):
        books.settle(usage_record())
        await asyncio.sleep(0)
    await until(lambda: books.unsynced == 0, "everything is acknowledged")
    assert len(keys_in(store.messages)) <= 5
    await books.stop()


@pytest.mark.alone
async def test_an_outage_costs_nothing(make: MakeLedger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """While the store is away, settling goes on; afterwards every key is sent once."""
    monkeypatch.setattr(sync, "CHECK_S", 60.0)  # no other look at the store
    store = Unreachable()
    books = make(store)
    await books.start()
    assert not books.store_up
    for _ in range(50):
        books.settle(usage_record())
    await until(lambda: store.attempts > 5, "it is tried again and again")
    assert books.can_write
    assert books.unsynced == 50
    store.is_away = False
    await until(lambda: books.unsynced == 0 and books.store_up, "everything is acknowledged")
    assert keys_in(store.messages).count("alice") <= 2
    assert store.totals() == totals_of(iter_records(tmp_path))
    await books.stop()


async def test_lost_replies_count_nothing_twice(make: MakeLedger, tmp_path: Path) -> None:
    """A batch that was applied but not acknowledged is sent again, to no effect."""
    store = LosesReplies(5)
    await settle_and_stop(make(store), "alice", "bob")
    assert store.times == 0
    assert store.totals() == totals_of(iter_records(tmp_path))


async def test_one_bad_key_does_not_hold_up_the_others(make: MakeLedger, caplog: pytest.LogCaptureFixture) -> None:
    """A key that the store cannot count is reported once, waits, and catches up when it is put right."""
    store = RefusesOneKey()
    books = make(store)
    await books.start()
    for number in range(1, 4):
        books.settle(usage_record(key="bad"))
        books.settle(usage_record(key="good"))
        await until(lambda: books.unsynced == number, "only the bad one is missing")  # noqa: B023
    assert books.store_up
    store.is_wrong = False
    await until(lambda: books.unsynced == 0, "the bad one caught up")
    assert sum("cannot count" in record.message and " bad " in record.message for record in caplog.records) == 1
    await books.stop()


@pytest.mark.parametrize("loses", ["everything", "the newest", "all but the newest"])
async def test_a_store_that_lost_data_gets_everything_again(make: MakeLedger, tmp_path: Path, loses: str) -> None:
    """Found out within a second without traffic, counted as one regression, mended from all incarnations' journals."""
    store = InMemory()
    await settle_and_stop(make(store), "alice", "former")
    books = make(store)
    await books.start()
    books.settle(usage_record())
    await until(lambda: books.unsynced == 0, "the first is acknowledged")
    older: dict[Any, Any] = {key: store.redis.hgetall(key) for key in store.redis.scan_iter()}
    for key in ("bob", "middle", "carol"):
        books.settle(usage_record(key=key))
    await until(lambda: books.unsynced == 0, "the others are acknowledged")
    expected = totals_of(iter_records(tmp_path))
    assert store.totals() == expected
    newer: dict[Any, Any] = {key: store.redis.hgetall(key) for key in store.redis.scan_iter() if key not in older}
    store.redis.flushall()
    for key, fields in {"everything": {}, "the newest": older, "all but the newest": newer}[loses].items():
        store.redis.hset(key, mapping=fields)
    await until(lambda: store.totals() == expected, "everything is back")
    assert books.regressions == 1
    books.settle(usage_record())
    await books.stop()
    assert books.regressions == 1
    assert store.totals() == totals_of(iter_records(tmp_path))


@pytest.mark.parametrize(("count", "words"), [(1, "1 record"), (3, "3 records")])
async def test_a_stop_while_the_store_is_down_is_short(
    make: MakeLedger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, count: int, words: str
) -> None:
    """There is no hope that it comes back just now; what it lacks is said."""
    monkeypatch.setattr(ledger, "STOP_S", 60.0)
    books = make(Unreachable())
    await books.start()
    for _ in range(count):
        books.settle(usage_record())
    async with asyncio.timeout(2):
        await books.stop()
    assert caplog.messages[-1] == f"not in the store yet, sent at the next start: {words}"


async def test_nothing_is_said_of_a_dead_store_that_lacks_nothing(
    make: MakeLedger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has everything, so there is nothing to wait for, either."""
    monkeypatch.setattr(ledger, "STOP_S", 60.0)
    monkeypatch.setattr(ledger, "STOP_WHILE_DOWN_S", 60.0)
    books = make(store := Unreachable())
    store.is_away = False
    await books.start()
    books.settle(usage_record())
    await until(lambda: books.unsynced == 0, "everything is acknowledged")
    store.is_away = True
    await until(lambda: not books.store_up, "it is known to be down")
    async with asyncio.timeout(2):
        await books.stop()
    assert not any("next start" in message for message in caplog.messages)


async def test_the_next_start_sends_what_the_last_could_not(make: MakeLedger, tmp_path: Path) -> None:
    """A stop during an outage is bounded, and loses nothing."""
    away = Unreachable()
    await settle_and_stop(make(away), "alice", "bob")
    assert away.totals() == {}
    store = InMemory()
    books = make(store)
    await books.start()
    await until(lambda: store.totals() == totals_of(iter_records(tmp_path)), "the former journal is counted")
    await books.stop()


async def test_what_the_store_has_is_not_sent_again(make: MakeLedger) -> None:
    """After a clean stop the next start asks about two of the books, and sends nothing else."""
    store = InMemory()
    await settle_and_stop(make(store), *(f"k{number}" for number in range(20)))
    store.messages.clear()
    books = make(store)
    await books.start()
    await until(lambda: store.messages, "some books are checked")
    await books.stop()
    assert set(keys_in(store.messages)) == {"k0", "k19"}


async def test_a_store_emptied_between_two_runs_gets_everything_again(make: MakeLedger, tmp_path: Path) -> None:
    """The check at the start finds it out."""
    await settle_and_stop(make(InMemory()), "alice", "bob")
    await settle_and_stop(make(InMemory(), 1, 2), "carol")
    store = InMemory()
    books = make(store)
    await books.start()
    await until(lambda: store.totals() == totals_of(iter_records(tmp_path)), "everything is back, of worker 1 too")
    assert books.regressions >= 1
    await books.stop()


async def test_worker_0_looks_after_workers_that_are_no_more(make: MakeLedger, tmp_path: Path) -> None:
    """With fewer workers now, the journals of the others are brought to the store; those of live ones are theirs."""
    for worker in range(4):
        await settle_and_stop(make(Unreachable(), worker, 4), f"k{worker}")
    store = InMemory()
    books = make(store, 0, 2)
    await books.start()
    await until(lambda: {key for _, key, *_ in store.totals()} == {"k0", "k2", "k3"}, "three journals are counted")
    await books.stop()
    assert (tmp_path / "w1").is_dir()
    store.messages.clear()
    await settle_and_stop(make(store, 1, 2))
    assert set(keys_in(store.messages)) <= {"k1"}


async def test_expired_days_are_not_sent(make: MakeLedger) -> None:
    """A day whose counters have expired does not come back; the start is not held up by it."""
    away = make(Unreachable())
    await away.start()
    away.settle(usage_record(key="old", time="2024-01-01T00:00:00.000Z"))
    away.settle(usage_record(key="new"))
    await away.stop()
    store = InMemory()
    books = make(store)
    await books.start()
    await until(lambda: store.totals(), "the other day is sent")
    assert set(keys_in(store.messages)) == {"new"}
    assert store.redis.expiretime("mp:{alice}:usage:new:20260301") == 1772409600 + 400 * 86_400
    await books.stop()


def test_counters_expire_after_the_end_of_their_day() -> None:
    """The retention begins when the day ends, in UTC."""
    assert day_expires_at("20260301", 60) == 1772409600 + 60  # 2026-03-02T00:01:00Z


class FullDisk:
    """`os.pwrite` that refuses while `is_full`."""

    def __init__(self) -> None:
        self.is_full = True
        self._write = os.pwrite

    def __call__(self, fd: int, data: bytes, offset: int) -> int:
        if self.is_full:
            raise OSError(28, "No space left on device")
        return self._write(fd, data, offset)


async def test_a_full_disk_delays_records_but_loses_none(
    make: MakeLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is full `can_write` is False and nothing is in the books; then all come, in their order."""
    disk = FullDisk()
    store = InMemory()
    books = make(store)
    await books.start()
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", disk)
        for number in range(5):
            books.settle(usage_record(id=f"r{number}"))
            assert not books.can_write
        assert books.unsynced == 5
        assert list(iter_records(tmp_path)) == []
        disk.is_full = False
        books.settle(usage_record(id="r5"))  # must not overtake those that wait
        await until(lambda: books.can_write, "the disk takes records again")
    assert [record.id for record in iter_records(tmp_path)] == [f"r{number}" for number in range(6)]
    books.settle(usage_record(id="r6"))
    await books.stop()
    assert store.totals() == totals_of(iter_records(tmp_path))
    assert [record.id for record in iter_records(tmp_path)][-1] == "r6"


async def test_records_that_could_never_be_written_are_logged_whole(
    make: MakeLedger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the disk is still full at the end, the log is the last place that keeps the record."""
    books = make(InMemory())
    await books.start()
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", FullDisk())
        books.settle(usage_record(id="the-last-one"))
        await books.stop()
    assert any('"id":"the-last-one"' in record.message for record in caplog.records)


async def test_what_is_no_text_does_not_cost_the_record(make: MakeLedger, tmp_path: Path) -> None:
    """Bytes of a header, or a name, that are not UTF-8 come as `?`; the bill stands."""
    books = make(InMemory())
    await books.start()
    books.settle(usage_record(model="m\ud800", client_request_id=b"\xff".decode("utf-8", "surrogateescape")))
    await books.stop()
    (record,) = iter_records(tmp_path)
    assert (record.model, record.model_label, record.client_request_id) == ("m?", "m?", "?")


async def test_one_process_a_directory(make: MakeLedger) -> None:
    """A second ledger on the same directory does not start, and disturbs nothing."""
    books = make(InMemory())
    await books.start()
    with pytest.raises(CannotStart, match=f"process {os.getpid()}"):
        await make(InMemory()).start()
    await books.stop()
    await settle_and_stop(make(InMemory()))


async def test_a_journal_belongs_to_its_directory_not_to_a_process(make: MakeLedger) -> None:
    """Restarting a thousand times does not make a thousand journals, nor fields in Redis."""
    store = InMemory()
    for _ in range(3):
        await settle_and_stop(books := make(store), "alice")
    assert len(list(books.directory.glob("journal-*"))) == 1
    assert len([name for name in store.redis.hkeys("mp:{alice}:books:alice:20260301") if "requests" in name]) == 1


async def test_what_others_wrote_into_a_day_does_not_hide_the_rest(make: MakeLedger) -> None:
    """As in every report: a field that is missing is 0, and what is no amount of ours is passed over."""
    store = InMemory()
    books = make(store)
    await books.start()
    odd: dict[Any, Any] = {
        "m|requests": "2",
        "m|input_tokens": "many",
        "m|output_tokens": "\u00b2",
        "m|x": "1",
        "note": "by hand",
    }
    store.redis.hset("mp:{alice}:usage:alice:20260301", mapping=odd)
    found = await books.usage_on("alice", "alice", ["20260301", "20260302"])
    assert found == [{"m": {**dict.fromkeys(FIELDS, 0), "requests": 2}}, {}]
    await books.stop()


async def test_an_older_copy_that_is_found_out_late_is_left_at_the_next_start(
    make: MakeLedger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The store was away at the start: what to do is in the log, once, and a restart is all of it."""
    state, copy = tmp_path / "w0", tmp_path / "copy"
    store = Unreachable()
    store.is_away = False
    await settle_and_stop(make(store), "alice")
    shutil.copytree(state, copy)
    await settle_and_stop(make(store), *["alice"] * 3)
    shutil.rmtree(state)
    shutil.copytree(copy, state)
    store.is_away = True
    books = make(store)
    await books.start()
    store.is_away = False
    for _ in range(3):
        await until(lambda: books.store_up and books.unsynced == 0, "the store is back")
        books.settle(usage_record())
    await books.stop()
    assert sum("Restart this proxy now" in message for message in caplog.messages) == 1
    again = make(store)
    await again.start()
    before = store.totals()["alice", "alice", "20260301", "m1", "requests"]
    for _ in range(5):
        again.settle(usage_record())
    await again.stop()
    assert store.totals()["alice", "alice", "20260301", "m1", "requests"] == before + 5
    assert len(list(state.glob("journal-*"))) == 2


async def test_the_label_is_decided_once(make: MakeLedger, tmp_path: Path) -> None:
    """The journal line, the books and everybody who reads them agree on `other`."""
    store = InMemory()
    books = make(store)
    await books.start()
    books.settle(usage_record(model="unknown", status=500))
    books.settle(usage_record(model="known", status=200))
    await books.stop()
    assert [record.model_label for record in iter_records(tmp_path)] == ["other", "known"]
    assert {label for *_, label, _ in store.totals()} == {"other", "known"}


CHARGE = Charge("k", "tokens-total", "total", Unit.TOKENS, 0)


async def test_a_key_that_moves_takes_its_counters_along(make: MakeLedger) -> None:
    """Into the hash of its new account: every worker brings its own part."""
    store = InMemory()
    books = make(store)
    await books.start()
    books.settle(usage_record(), charges=(CHARGE,))
    await until(lambda: store.redis.hget("mp:{alice}:quota:k:alice:tokens-total:total", "used") == "15", "the old one")
    books.place_keys({"alice": "team"})
    await until(lambda: store.redis.hget("mp:{team}:quota:k:alice:tokens-total:total", "used") == "15", "the new one")
    await books.stop()


async def test_what_a_killed_worker_held_is_free_when_the_next_one_starts(make: MakeLedger) -> None:
    """Not only when the lease is over: the journal is the same, so are its fields in Redis."""
    store = InMemory()
    killed = make(store)
    await killed.start()
    killed.settle(usage_record(), charges=(CHARGE,))
    assert killed.quotas is not None
    rule = Rule(
        id="tokens-total", holder="k", owner="alice", unit=Unit.TOKENS, limit=1000, per="total", zone="UTC", hard=False,
        warn_from=None, when_exhausted="stop", when_down="closed",
    )  # fmt: skip
    tab = killed.quotas.open_tab(Terms([rule], FREE, None, NOW), key="alice", account="alice")
    want = tab.terms.want(Asked(model="m", stream=True, input_text_bytes=40))
    assert isinstance(await killed.quotas.reserve(tab, want), Grant)
    name = "mp:{alice}:quota:k:alice:tokens-total:total"
    await until(lambda: store.redis.hget(name, "reserved") == "522", "it is held")
    killed._lock.release()  # what a kill does, and nothing more
    successor = make(store)
    await successor.start()
    await until(lambda: store.redis.hget(name, "reserved") == "0", "it is free")
    await successor.stop()
