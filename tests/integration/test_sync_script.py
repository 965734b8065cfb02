"""`sync.lua` against a real Redis: absolute state that survives lost, late and repeated messages, and grants that hold.

The messages here are put together by hand, not by the product: a second reading of the script's contract.
"""

import random
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.support.servers import StoreServer

KEY = "mp:{acme}:quota:k:alice:tokens-day:20260131"
OTHER_KEY = "mp:{acme}:quota:a:requests-day:20260131"
LEASE_MS = 30_000
NEVER = 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    directory: Path = tmp_path_factory.mktemp("script")
    with StoreServer.redis(directory) as store:
        yield store


@pytest.fixture
def redis(server: StoreServer) -> Iterator[Redis]:
    client = Redis.from_url(server.url, decode_responses=True)
    client.flushall()
    yield client
    client.close()


class Worker:
    """One journal's view of some counters; sends what it is told to send."""

    def __init__(self, redis: Redis, name: str, *, limit: int, workers: int = 1) -> None:
        self.redis = redis
        self.script = redis.register_script(files("meter_proxy.ledger").joinpath("sync.lua").read_text())
        self.name = name
        self.limit = limit
        self.version = 0
        self.acked_version = 0
        self.used: dict[str, int] = {}
        self.reserved: dict[str, int] = {}
        self.credit: dict[str, int] = {}
        self.acked_used: dict[str, int] = {}
        self.seen: dict[str, int] = {}
        self.lease_ms = LEASE_MS
        self.lost_data = False

    def message(
        self, *wants: tuple[int, int, tuple[int, int]], keys: tuple[str, ...] = (KEY,), wish: int = 0, far: int = 0
    ) -> tuple[list[str], list[Any]]:
        """`wants`: (least, most, (up front, each)), the same for every key."""
        self.version += 1
        args: list[Any] = [self.lease_ms, 0, len(keys), len(wants), 0]
        for key in keys:
            args += [
                self.name,
                self.version,
                self.acked_version,
                self.acked_used.get(key, 0),
                self.used.get(key, 0),
                self.reserved.get(key, 0) + self.credit.get(key, 0),
                self.credit.get(key, 0),
                self.limit,
                self.seen.get(key, 0),
                wish,
                far,
                NEVER,
            ]
        for least, most, (up_front, each) in wants:
            args += [least, most, len(keys)]
            for place in range(len(keys)):
                args += [place + 1, up_front, each]
        return list(keys), args

    def send(
        self, *wants: tuple[int, int, tuple[int, int]], keys: tuple[str, ...] = (KEY,), **options: int
    ) -> list[int]:
        """Send, take in the reply; -> what each want was granted (or -1, -2, -3)."""
        message = self.message(*wants, keys=keys, **options)
        return self.receive(message, self.script(*message), wants)

    def receive(self, message: tuple[list[str], list[Any]], reply: list[int], wants: Any = ()) -> list[int]:
        keys = message[0]
        self.lost_data = bool(reply[1])
        for place, key in enumerate(keys):
            used, _, added, called = reply[2 + 4 * place : 6 + 4 * place]
            self.seen[key] = max(self.seen.get(key, 0), used)
            self.acked_used[key] = self.used.get(key, 0)
            self.credit[key] = 0 if called else self.credit.get(key, 0) + added
        self.acked_version = message[1][6]
        granted = [reply[at] for at in range(2 + 4 * len(keys), len(reply), 2)]
        for tokens, (_, _, (up_front, each)) in zip(granted, wants, strict=True):
            if tokens >= 0:
                for key in keys:
                    self.reserved[key] = self.reserved.get(key, 0) + up_front + each * tokens
        return granted


def sums(redis: Redis, key: str = KEY) -> tuple[int, int]:
    used, reserved = redis.hmget(key, "used", "reserved")
    return int(used or 0), int(reserved or 0)


def test_no_more_is_granted_than_is_left(redis: Redis) -> None:
    worker = Worker(redis, "w0", limit=1000)
    assert worker.send(*[(0, 0, (10, 0))] * 150).count(0) == 100
    assert sums(redis) == (0, 1000)


def test_a_slice_gets_what_is_left_down_to_the_last_token(redis: Redis) -> None:
    worker = Worker(redis, "w0", limit=1000)
    assert worker.send((1, 512, (100, 1)), (1, 512, (100, 1)), (1, 512, (0, 1))) == [512, 288, -1]
    assert sums(redis) == (0, 1000)


def test_all_rules_of_a_want_are_granted_or_none(redis: Redis) -> None:
    Worker(redis, "w1", limit=5).send((0, 0, (5, 0)), keys=(OTHER_KEY,))
    worker = Worker(redis, "w0", limit=5)
    assert worker.send((0, 0, (1, 0)), keys=(KEY, OTHER_KEY)) == [-1]
    assert sums(redis) == (0, 0)
    assert sums(redis, OTHER_KEY) == (0, 5)


def test_the_claim_that_denies_is_named(redis: Redis) -> None:
    Worker(redis, "w1", limit=5).send((0, 0, (5, 0)), keys=(OTHER_KEY,))
    worker = Worker(redis, "w0", limit=5)
    reply = worker.script(*worker.message((0, 0, (1, 0)), keys=(KEY, OTHER_KEY)))
    assert reply[-2:] == [-1, 2]


def test_a_large_want_that_is_denied_does_not_stand_in_the_way_of_a_small_one(redis: Redis) -> None:
    assert Worker(redis, "w0", limit=10).send((0, 0, (11, 0)), (0, 0, (10, 0))) == [-1, 0]


def test_what_is_settled_moves_from_reserved_to_used(redis: Redis) -> None:
    worker = Worker(redis, "w0", limit=1000)
    worker.send((1, 512, (100, 1)))
    worker.reserved[KEY], worker.used[KEY] = 0, 70
    worker.send()
    assert sums(redis) == (70, 0)


def test_a_repeated_or_late_message_changes_nothing(redis: Redis) -> None:
    worker = Worker(redis, "w0", limit=1000)
    worker.used[KEY] = 10
    late = worker.message((0, 0, (100, 0)))
    worker.used[KEY] = 30
    worker.send((0, 0, (5, 0)))
    for _ in range(2):
        assert worker.script(*late)[-2] == -3
    assert sums(redis) == (30, 5)


def test_a_grant_whose_reply_was_lost_is_taken_back_by_the_next_message(redis: Redis) -> None:
    worker = Worker(redis, "w0", limit=100)
    worker.script(*worker.message((0, 0, (100, 0))))
    assert sums(redis) == (0, 100)
    assert worker.send((0, 0, (100, 0))) == [0]
    assert sums(redis) == (0, 100)


def test_a_dead_workers_hold_lapses_by_redis_clock(redis: Redis) -> None:
    dead = Worker(redis, "dead", limit=100)
    dead.lease_ms = -1
    dead.used[KEY] = 40
    dead.send((0, 0, (60, 0)))
    assert Worker(redis, "w0", limit=100).send((0, 0, (60, 0))) == [0]
    assert sums(redis) == (40, 60)
    assert dead.send() == []  # it lives after all: what it holds is held again
    assert sums(redis) == (40, 120)


def test_a_live_workers_hold_does_not_lapse(redis: Redis) -> None:
    Worker(redis, "w1", limit=100).send((0, 0, (60, 0)))
    assert Worker(redis, "w0", limit=100).send((0, 0, (41, 0)), (0, 0, (40, 0))) == [-1, 0]


def test_credit_is_given_only_far_from_the_limit(redis: Redis) -> None:
    worker = Worker(redis, "w0", limit=1000)
    worker.send(wish=50, far=1001)
    assert worker.credit[KEY] == 0
    worker.send(wish=50, far=1000)
    assert worker.credit[KEY] == 50
    assert sums(redis) == (0, 50)


def test_unused_credit_is_called_in_before_the_first_denial(redis: Redis) -> None:
    rich, poor = Worker(redis, "rich", limit=1000), Worker(redis, "poor", limit=1000)
    rich.send(wish=50, far=100)
    assert poor.send((0, 0, (990, 0))) == [-2]
    rich.send()
    assert rich.credit[KEY] == 0  # it was told to give it back ...
    rich.send(wish=50, far=0)
    assert rich.credit[KEY] == 0  # ... and gets no other for a while
    assert poor.send((0, 0, (1000, 0))) == [0]


def test_a_want_that_no_credit_could_help_is_denied_at_once(redis: Redis) -> None:
    Worker(redis, "rich", limit=1000).send(wish=50, far=100)
    assert Worker(redis, "poor", limit=1000).send((0, 0, (1001, 0))) == [-1]


def test_lost_data_is_noticed_and_what_was_seen_still_counts(redis: Redis) -> None:
    worker, other = Worker(redis, "w0", limit=100), Worker(redis, "w1", limit=100)
    worker.used[KEY], other.used[KEY] = 30, 60
    worker.send()
    other.send()
    redis.flushall()
    assert other.send((0, 0, (11, 0)), (0, 0, (10, 0))) == [-1, 0]  # 90 are used, though Redis knows of 60 only
    assert other.lost_data


def test_sums_are_made_anew_by_who_begins_anew(redis: Redis) -> None:
    """A log that was cut within a transaction, and then went on, is replayed with sums that their parts do not have."""
    worker, other = Worker(redis, "w0", limit=1000), Worker(redis, "w1", limit=1000)
    worker.used[KEY], other.used[KEY] = 30, 60
    worker.send()
    other.send()
    redis.hset(KEY, mapping={"used": 7, "reserved": 99})
    worker.send()
    assert sums(redis) == (7, 99)  # who goes on goes on
    worker.acked_version = 0
    worker.send()
    assert sums(redis) == (90, 0)


def test_amounts_beyond_1e15_are_exact(redis: Redis) -> None:
    worker = Worker(redis, "w0", limit=2**53)
    worker.used[KEY] = 2**53 - 3
    assert worker.send((0, 0, (3, 0)), (0, 0, (1, 0))) == [0, -1]
    assert sums(redis) == (2**53 - 3, 3)


def test_expiry_is_set_once_and_never_extended(redis: Redis) -> None:
    worker = Worker(redis, "w0", limit=10)
    keys, args = worker.message()
    args[-1] = 4_000_000_000
    worker.script(keys, args)
    keys, args = worker.message()
    args[-1] = 4_000_000_999
    worker.script(keys, args)
    assert redis.expiretime(KEY) == 4_000_000_000


@pytest.mark.parametrize("loses_data", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_to_messages_and_to_redis_the_sums_come_out_right(
    redis: Redis, seed: int, loses_data: bool
) -> None:
    """Lost, repeated, late messages; Redis set back to an old state: in the end it holds what the workers used.

    The limit holds as long as Redis loses nothing; after that, as soon as every worker has said again what it used.
    """
    chance = random.Random(seed)
    limit = 5_000
    workers = [Worker(redis, f"w{index}", limit=limit) for index in range(4)]
    late: list[tuple[list[str], list[Any]]] = []
    snapshot: dict[Any, Any] = {}
    for _ in range(400):
        worker = chance.choice(workers)
        wants = [(1, 64, (chance.randrange(20), 1))] * chance.randrange(3)
        message = worker.message(*wants, wish=chance.choice((0, 40)), far=300)
        fate = chance.random()
        if fate < 0.05:
            late.append(message)
        elif fate < 0.10:
            worker.script(*message)  # its reply is lost
        else:
            granted = worker.receive(message, worker.script(*message), wants)
            if fate < 0.15:
                worker.script(*message)
            for tokens, (_, _, (up_front, _)) in zip(granted, wants, strict=True):
                if tokens >= 0:
                    worker.reserved[KEY] -= up_front + tokens
                    worker.used[KEY] = worker.used.get(KEY, 0) + chance.randrange(up_front + tokens + 1)
        if late and chance.random() < 0.05:
            workers[0].script(*late.pop(chance.randrange(len(late))))
        if chance.random() < 0.02:
            snapshot = redis.hgetall(KEY)
        elif loses_data and snapshot and chance.random() < 0.05:
            redis.delete(KEY)
            redis.hset(KEY, mapping=snapshot)  # an old copy
        assert loses_data or sum(worker.used.get(KEY, 0) for worker in workers) <= limit
    for message in late:
        workers[0].script(*message)
    for worker in workers:
        worker.credit[KEY] = worker.reserved[KEY] = 0
        worker.send()
    assert sums(redis) == (sum(worker.used.get(KEY, 0) for worker in workers), 0)
