"""Grants: quota asked of a real Redis by several workers, held, renewed, given back; and what happens without it."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from redis import Redis

from meter_proxy.ledger.books import Books
from meter_proxy.ledger.grants import UNBOUNDED, Grant, Quotas, Tab, Unavailable
from meter_proxy.ledger.store import Store
from meter_proxy.ledger.sync import Sync
from meter_proxy.quota.charge import Unit
from meter_proxy.quota.decision import Denied
from meter_proxy.quota.reservation import FREE, Terms, Want
from meter_proxy.quota.rules import Rule
from meter_proxy.quota.windows import Window
from meter_proxy.tasks import spawn
from tests.support.servers import StoreServer
from tests.support.waiting import until

DAY = Window("20990131", 4_073_500_800, 4_073_587_200)
SLICE = 512


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    directory: Path = tmp_path_factory.mktemp("grants")
    with StoreServer.redis(directory) as store:
        yield store


@pytest.fixture
def redis(server: StoreServer) -> Iterator[Redis]:
    client = Redis.from_url(server.url, decode_responses=True)
    client.flushall()
    yield client
    client.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is held up for a moment is no outage: what is granted without Redis is not what is tested here."""
    monkeypatch.setattr("meter_proxy.ledger.grants.ANSWER_S", 10.0)
    monkeypatch.setattr("meter_proxy.ledger.store.OPERATION_S", 10.0)


@contextlib.asynccontextmanager
async def worker(url: str, name: str = "w0", *, workers: int = 1, bounded_tokens: int = 1000) -> AsyncIterator[Quotas]:
    """The quota side of one worker: books, sync, grants."""
    books = Books(name)
    store = Store(url)
    sync = Sync(
        store,
        journal_id=name,
        incarnation=1,
        workers=workers,
        retention_s=86_400,
        position=lambda: 0,
        on_lost=lambda: None,
        on_behind=lambda: None,
        clock=time.time,
        jitter=lambda: 0.5,
    )
    await sync.greet()
    running = spawn(sync.run(), name="sync")
    try:
        yield Quotas(books, sync, bounded_tokens=bounded_tokens)
    finally:
        await sync.stop(running, 1.0)
        if not running.done():
            running.cancel()
        await store.close()


def rule(limit: int, unit: Unit = Unit.TOKENS, **options: str) -> Rule:
    return Rule(
        id=options.pop("id", f"{unit.value}-day"),
        holder="k",
        owner="alice",
        unit=unit,
        limit=limit,
        per="day",
        zone="UTC",
        hard=False,
        warn_from=None,
        when_exhausted=options.pop("when_exhausted", "stop"),
        when_down=options.pop("when_down", "bounded"),
    )


class Wish(NamedTuple):
    """A want, and the rule that it is about."""

    rule: Rule
    want: Want


def hard(limit_rule: Rule, amount: int) -> Wish:
    """All of it up front."""
    return Wish(limit_rule, Want([amount], (0,), 0, None, None, 0, False, 1))


def by_slice(limit_rule: Rule, input_tokens: int = 10, bound: int | None = None) -> Wish:
    """A stream: its input, and a slice of output."""
    most = min(SLICE, bound or SLICE)
    return Wish(limit_rule, Want([input_tokens + most], (1,), most, bound, None, input_tokens, True, 1))


def tab_for(quotas: Quotas, limit_rule: Rule, key: str = "alice") -> Tab:
    return quotas.open_tab(Terms([limit_rule], FREE, None, DAY.began_at), key=key, account=key)


async def answer_to(quotas: Quotas, wish: Wish, key: str = "alice") -> Grant | Denied | Unavailable:
    return await quotas.reserve(tab_for(quotas, wish.rule, key), wish.want)


async def reserve(quotas: Quotas, wish: Wish) -> Grant:
    grant = await answer_to(quotas, wish)
    assert isinstance(grant, Grant), grant
    return grant


def settle(grant: Grant, used: int) -> None:
    """What the ledger does when an exchange has ended."""
    for counter in grant.tab.counters:
        counter.book.used += used
    grant.release()


def sums(redis: Redis, window: str = "20990131", rule_id: str = "tokens-day") -> tuple[int, int]:
    used, reserved = redis.hmget(f"mp:{{alice}}:quota:k:alice:{rule_id}:{window}", "used", "reserved")
    return int(used or 0), int(reserved or 0)


def settled(redis: Redis, used: int, reserved: int = 0) -> Callable[[], bool]:
    return lambda: sums(redis) == (used, reserved)


async def test_exactly_what_is_left_is_granted_to_many_at_once_on_several_workers(
    server: StoreServer, redis: Redis
) -> None:
    """1,000 wants of 10 on four workers, a limit for 100 of them: 100 are granted, whoever asks first."""
    async with contextlib.AsyncExitStack() as stack:
        quotas = [await stack.enter_async_context(worker(server.url, f"w{n}", workers=4)) for n in range(4)]
        for round_ in range(5):
            limit = rule(1000, id=f"round-{round_}")
            wants = [answer_to(quotas[n % 4], hard(limit, 10)) for n in range(1000)]
            answers = await asyncio.gather(*wants)
            assert sum(isinstance(answer, Grant) for answer in answers) == 100
            assert sum(isinstance(answer, Denied) for answer in answers) == 900


async def test_a_grant_is_released_at_settlement_and_the_rest_is_free(server: StoreServer, redis: Redis) -> None:
    async with worker(server.url) as quotas:
        grant = await reserve(quotas, by_slice(rule(100_000)))
        await until(settled(redis, 0, 10 + SLICE), "the sums in Redis")
        settle(grant, used=70)
        await until(settled(redis, 70, 0), "the sums in Redis")


async def test_the_last_tokens_can_be_used(server: StoreServer, redis: Redis) -> None:
    async with worker(server.url) as quotas:
        grant = await reserve(quotas, by_slice(rule(13)))
        assert grant.granted == 3
        assert isinstance(await answer_to(quotas, by_slice(rule(13))), Denied)


async def test_a_stream_is_topped_up_in_the_background(server: StoreServer, redis: Redis) -> None:
    async with worker(server.url) as quotas:
        grant = await reserve(quotas, by_slice(rule(100_000)))
        changed = asyncio.Event()
        grant.on_change = changed.set
        assert grant.top_up_at == SLICE // 2
        grant.top_up(300)
        await asyncio.wait_for(changed.wait(), 1)
        assert (grant.granted, grant.exhausted) == (2 * SLICE, None)
        assert sums(redis) == (0, 10 + 2 * SLICE)


async def test_a_denied_top_up_is_final_only_at_the_wall(server: StoreServer, redis: Redis) -> None:
    """Before it, others may still release what they hold: an honest user is not refused for tokens he does not use."""
    limit = rule(10 + SLICE + 10 + 100)
    async with worker(server.url) as quotas:
        other = await reserve(quotas, by_slice(limit, bound=100))
        grant = await reserve(quotas, by_slice(limit))
        changed = asyncio.Event()
        grant.on_change = changed.set
        grant.top_up(300)
        await asyncio.wait_for(changed.wait(), 1)
        assert (grant.exhausted, grant.top_up_at) == (None, SLICE)
        settle(other, used=20)
        grant.top_up(SLICE)
        changed.clear()
        await asyncio.wait_for(changed.wait(), 1)
        assert grant.granted == SLICE + 90
        grant.top_up(SLICE + 90)
        changed.clear()
        await asyncio.wait_for(changed.wait(), 1)
        assert grant.exhausted == "stop"
        assert grant.cut_by == limit


async def test_a_rule_that_lets_streams_finish_does_not_end_them(server: StoreServer, redis: Redis) -> None:
    async with worker(server.url) as quotas:
        grant = await reserve(quotas, by_slice(rule(20, when_exhausted="finish")))
        assert grant.granted == 10
        grant.top_up(10)
        assert grant.granted == 10 + SLICE
        await until(settled(redis, 0, 20 + SLICE), "the sums in Redis")


async def test_nothing_ends_a_stream_whose_whole_output_is_granted(server: StoreServer, redis: Redis) -> None:
    async with worker(server.url) as quotas:
        assert (await reserve(quotas, by_slice(rule(1000), bound=50))).granted == UNBOUNDED


async def test_the_real_input_count_shrinks_what_is_held(server: StoreServer, redis: Redis) -> None:
    async with worker(server.url) as quotas:
        grant = await reserve(quotas, by_slice(rule(100_000), input_tokens=1000))
        grant.input_is(600)
        await until(settled(redis, 0, 600 + SLICE), "the sums in Redis")
        settle(grant, used=610)
        await until(settled(redis, 610, 0), "the sums in Redis")


async def test_what_is_used_up_is_refused_without_asking(server: StoreServer, redis: Redis) -> None:
    async with worker(server.url) as quotas:
        settle(await reserve(quotas, hard(rule(10), 10)), used=10)
        await until(settled(redis, 10, 0), "the sums in Redis")
        server.pause()
        try:
            assert isinstance(await answer_to(quotas, hard(rule(10), 1)), Denied)
        finally:
            server.resume()


async def test_far_from_the_limit_a_busy_worker_grants_by_itself(server: StoreServer, redis: Redis) -> None:
    """After a tenth of a second at a high rate there is credit: an admission then costs no round trip."""
    limit = rule(10_000_000)
    async with worker(server.url) as quotas:
        by_itself = 0
        ends_at = time.monotonic() + 5
        used = 0
        while by_itself < 100 and time.monotonic() < ends_at:
            answer = answer_to(quotas, hard(limit, 10))
            grant = _at_once(answer)
            if grant is None:
                grant = await reserve(quotas, hard(limit, 10))
            else:
                by_itself += 1
            used += 7
            settle(grant, used=7)
            await asyncio.sleep(0.001)
        assert by_itself >= 100
        await until(settled(redis, used, 0), "the sums in Redis")  # the credit is given back when it is idle


def _at_once(answer: Awaitable[object]) -> Grant | None:
    """The grant, if it needs no waiting."""
    coroutine = answer
    try:
        coroutine.send(None)  # type: ignore[attr-defined]
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()  # type: ignore[attr-defined]
    return None


async def test_credit_of_one_worker_does_not_keep_another_from_the_last_tokens(
    server: StoreServer, redis: Redis
) -> None:
    limit = rule(100_000)
    async with worker(server.url, "rich") as rich, worker(server.url, "poor") as poor:
        for _ in range(300):
            settle(await reserve(rich, hard(limit, 10)), used=0)
            await asyncio.sleep(0.001)
        counter = (await reserve(rich, hard(limit, 1))).tab.counters[0]
        assert counter.credit > 0
        grant = await reserve(poor, hard(limit, 100_000 - 1))
        await until(settled(redis, 0, 100_000), "the sums in Redis")
        grant.release()


async def test_without_redis_closed_rules_refuse_and_open_ones_grant(tmp_path: Path) -> None:
    async with worker(f"unix://{tmp_path}/none.sock") as quotas:
        closed = await answer_to(quotas, hard(rule(100, when_down="closed"), 1))
        assert isinstance(closed, Unavailable)
        grant = await reserve(quotas, by_slice(rule(100_000, when_down="open")))
        grant.top_up(300)
        assert grant.granted == 2 * SLICE


async def test_without_redis_a_bounded_rule_grants_an_allowance_per_key(tmp_path: Path) -> None:
    limit = rule(100_000)
    async with worker(f"unix://{tmp_path}/none.sock", bounded_tokens=600) as quotas:
        grant = await reserve(quotas, by_slice(limit))
        assert grant.granted == SLICE
        grant.top_up(300)
        assert grant.granted == 600 - 10
        grant.top_up(600 - 10)
        assert grant.exhausted == "stop"
        assert isinstance(await answer_to(quotas, by_slice(limit)), Unavailable)
        assert isinstance(await answer_to(quotas, by_slice(limit), "bob"), Grant)
        grant.used_tokens = 100
        settle(grant, used=100)
        assert (await reserve(quotas, by_slice(limit))).granted == 500 - 10


@pytest.mark.alone
@pytest.mark.alone
async def test_a_frozen_redis_is_waited_for_once(
    server: StoreServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # no more patient than in production
    async with worker(server.url) as quotas:
        server.pause()
        try:
            began_at = time.monotonic()
            await reserve(quotas, by_slice(rule(100_000)))
            assert time.monotonic() - began_at < 1
            for _ in range(20):
                began_at = time.monotonic()
                grant = await reserve(quotas, by_slice(rule(100_000, id="other"), 1, 2))
                assert time.monotonic() - began_at < 0.1
                settle(grant, used=3)
        finally:
            server.resume()
        await until(lambda: sums(redis, rule_id="other") == (60, 0), "the sums in Redis")


async def test_who_gives_up_waiting_holds_nothing(server: StoreServer, redis: Redis) -> None:
    async with worker(server.url) as quotas:
        for delay in (0.0, 0.0001, 0.0005, 0.001, 0.002):
            task = asyncio.ensure_future(answer_to(quotas, by_slice(rule(100_000))))
            await asyncio.sleep(delay)
            if not task.done():
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                result = await task
                assert isinstance(result, Grant)
                result.release()
        await until(settled(redis, 0, 0), "the sums in Redis")


async def test_redis_says_what_is_used_by_all(server: StoreServer, redis: Redis) -> None:
    limit = rule(1000)
    async with worker(server.url, "a") as a, worker(server.url, "b") as b:
        settle(await reserve(a, hard(limit, 10)), used=7)
        await reserve(a, hard(limit, 20))
        await until(settled(redis, 7, 20), "the sums in Redis")
        assert await b.look([(limit, DAY)], "alice") == [(7, 20)]


@pytest.mark.parametrize("seed", range(3))
async def test_streams_on_several_workers_never_deliver_more_than_the_limit(
    server: StoreServer, redis: Redis, seed: int
) -> None:
    """200 streams of one key run into the wall: together they deliver at most the limit, and nearly all of it.

    Not all: who is refused at the wall has no share in what others, still running, will turn out not to need.
    """
    chance = random.Random(seed)
    limit_tokens = 20_000
    delivered = 0

    async def stream(quotas: Quotas) -> None:
        nonlocal delivered
        grant = await answer_to(quotas, by_slice(limit, input_tokens=0))
        if not isinstance(grant, Grant):
            return
        changed = asyncio.Event()
        grant.on_change = changed.set
        spent, length = 0, chance.randrange(50, 1500)
        while spent < length:
            if spent >= grant.top_up_at:
                grant.top_up(spent)
            if spent >= grant.granted:
                if grant.exhausted:
                    break
                changed.clear()
                await asyncio.wait_for(changed.wait(), 20)
                continue
            spent += 1
            if spent % 16 == 0:
                await asyncio.sleep(0)
        delivered += spent
        settle(grant, used=spent)

    limit = rule(limit_tokens, id=f"wall-{seed}")
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(worker(server.url, f"w{n}", workers=4)) for n in range(4)]
        await asyncio.gather(*(stream(workers[n % 4]) for n in range(200)))
        assert 0.9 * limit_tokens <= delivered <= limit_tokens
        await until(lambda: sums(redis, rule_id=f"wall-{seed}") == (delivered, 0), "the sums in Redis")
