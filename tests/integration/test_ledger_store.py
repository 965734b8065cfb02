"""The books in a real Redis and a real Valkey: what the script does, and which servers are refused."""

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis, RedisError

from meter_proxy.errors import CannotStart, StoreError
from meter_proxy.ledger import Ledger
from meter_proxy.ledger import store as store_module
from meter_proxy.ledger.books import FIELDS
from meter_proxy.ledger.messages import Call
from meter_proxy.ledger.reading import iter_records
from meter_proxy.ledger.store import Store, check_store
from tests.support.records import totals_in_redis, totals_of, usage_record
from tests.support.servers import StoreServer, free_port
from tests.support.waiting import until

EXPIRES_AT = 4_102_444_800  # 2100-01-01
USAGE, BOOKS = "mp:{acc}:usage:alice:20260301", "mp:{acc}:books:alice:20260301"


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    """Both engines, one of each for the module."""
    start = StoreServer.redis if request.param == "redis" else StoreServer.valkey
    with start(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
async def store(server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """A connection to an empty server, more patient than in production: a machine that is held up is no outage."""
    monkeypatch.setattr(store_module, "OPERATION_S", 10.0)
    with server.client() as client:
        client.flushall()
    store = Store(server.url)
    yield store
    await store.close()


def message(
    journal_id: str,
    *models: tuple[str, int, int],
    acked: int = 0,
    expires_at: int = EXPIRES_AT,
    key: str = "alice",
    anew: int = 0,
) -> Call:
    """One message of a day book of `models`: (label, requests, the other totals)."""
    args: list[str | int] = [30_000, 1, 0, 0, len(FIELDS), *FIELDS, journal_id, expires_at, anew, len(models)]
    for label, requests, amount in models:
        args += [label, acked, requests, *[amount] * 5]
    return Call([f"mp:{{acc}}:{kind}:{key}:20260301" for kind in ("usage", "books")], args)


async def merge(store: Store, *messages: Call) -> list[bool | StoreError]:
    """Send messages in one batch; -> for each whether the store has lost data, or its error."""
    return [reply if isinstance(reply, StoreError) else bool(reply[1]) for reply in await store.call(messages)]


async def test_the_usage_hash_is_plain_integers_and_nothing_else(server: StoreServer, store: Store) -> None:
    """All six fields of each model, zeros too; model names may hold the separator."""
    assert await merge(store, message("j1", ("m|1", 2, 0), ("m2", 1, 7)), message("j2", ("m2", 1, 8))) == [False] * 2
    with server.client() as client:
        assert client.hgetall(USAGE) == {
            **{f"m|1|{field}": "2" if field == "requests" else "0" for field in FIELDS},
            **{f"m2|{field}": "2" if field == "requests" else "15" for field in FIELDS},
        }
        assert client.hget(BOOKS, "j1|m|1|requests") == "2"
        assert set(client.keys()) == {USAGE, BOOKS}


async def test_repeated_late_and_reordered_messages_change_nothing(server: StoreServer, store: Store) -> None:
    """However the messages of three journals arrive, and how often, the sum is that of the last totals."""
    chance = random.Random(4)
    for _ in range(20):
        with server.client() as client:
            client.flushall()
        messages = [message(f"j{j}", ("m1", n, n * j * 10), ("m2", n, n)) for j in (1, 2, 3) for n in range(1, 6)]
        arriving = messages + chance.choices(messages, k=20)
        chance.shuffle(arriving)
        for start in range(0, len(arriving), 7):
            assert not any(await merge(store, *arriving[start : start + 7]))
        with server.client() as client:
            assert client.hget(USAGE, "m1|requests") == "15"
            assert client.hget(USAGE, "m1|cost_nano_usd") == str(5 * (10 + 20 + 30))
            assert client.hget(USAGE, "m2|input_tokens") == "15"


async def test_totals_are_exact_to_the_last_nano_dollar(server: StoreServer, store: Store) -> None:
    """Beyond 2^53, where floats skip every second integer, too."""
    big = 2**60 + 1
    for total in (big, big + 2, big + 1):
        await merge(store, message("j1", ("m1", total, total)), message("j2", ("m1", 1, 1)))
    with server.client() as client:
        assert {client.hget(USAGE, f"m1|{field}") for field in FIELDS} == {str(big + 3)}


async def test_expiry_is_set_once(server: StoreServer, store: Store) -> None:
    """The first write decides; later ones, and a changed retention, extend nothing."""
    await merge(store, message("j1", ("m1", 1, 1)))
    await merge(store, message("j1", ("m1", 2, 1), expires_at=EXPIRES_AT + 99))
    with server.client() as client:
        assert [client.expiretime(name) for name in (USAGE, BOOKS)] == [EXPIRES_AT] * 2


@pytest.mark.parametrize("gone", [(USAGE,), (BOOKS,), (USAGE, BOOKS)])
async def test_lost_data_is_reported_and_mended_by_sending_again(
    server: StoreServer, store: Store, gone: tuple[str, ...]
) -> None:
    """Also when only one of the two hashes is gone: then both begin anew, and count nothing twice."""
    await merge(store, message("j1", ("m1", 3, 30)), message("j2", ("m1", 4, 40)))
    with server.client() as client:
        client.delete(*gone)
    assert await merge(store, message("j1", ("m1", 3, 30), acked=3)) == [True]
    assert await merge(store, message("j1", ("m1", 3, 30), acked=3)) == [False]
    assert await merge(store, message("j2", ("m1", 4, 40), acked=4)) == [True]
    with server.client() as client:
        assert client.hget(USAGE, "m1|input_tokens") == "70"


async def test_after_a_loss_the_sums_are_made_anew(server: StoreServer, store: Store) -> None:
    """They may hold what no journal says: a log that was cut within a transaction is replayed with the half of it."""
    await merge(store, message("j1", ("m1", 3, 30)), message("j2", ("m1", 4, 2**60 + 1)))
    with server.client() as client:
        client.hincrby(USAGE, "m1|requests", 22)
    await merge(store, message("j1", ("m1", 3, 30), anew=1))
    with server.client() as client:
        assert client.hget(USAGE, "m1|requests") == "7"
        assert client.hget(USAGE, "m1|input_tokens") == str(2**60 + 31)
        assert client.expiretime(USAGE) == EXPIRES_AT


async def test_a_key_of_another_type_is_an_error_of_its_own(server: StoreServer, store: Store) -> None:
    """WRONGTYPE, or an overflow, stops that message, not the batch, and leaves no half-counted field."""
    await merge(store, message("j1", ("m1", 1, 2**63 - 1)))
    with server.client() as client:
        client.mset({f"mp:{{acc}}:{kind}:bob:20260301": "not ours" for kind in ("usage", "books")})
    wrong_type = message("j1", ("m1", 1, 1), key="bob")
    overflow = message("j2", ("m1", 1, 1))
    replies = await merge(store, wrong_type, overflow, message("j1", ("m2", 1, 1)))
    assert [isinstance(reply, StoreError) for reply in replies] == [True, True, False]
    with server.client() as client:
        assert client.hget(USAGE, "m1|input_tokens") == str(2**63 - 1)
        assert client.hget(USAGE, "m2|requests") == "1"


async def test_the_script_is_loaded_again_after_it_was_forgotten(server: StoreServer, store: Store) -> None:
    """SCRIPT FLUSH and a restart cost one more round trip."""
    await merge(store, message("j1", ("m1", 1, 1)))
    with server.client() as client:
        client.script_flush()
    assert await merge(store, message("j1", ("m1", 2, 2))) == [False]
    with server.client() as client:
        assert client.hget(USAGE, "m1|requests") == "2"


async def test_full_memory_is_refused_as_a_whole(server: StoreServer, store: Store) -> None:
    """Out of memory is the server's trouble: nothing is written, everything is tried again."""
    await merge(store, message("j1", ("m1", 1, 1)))
    server.configure(maxmemory="1")
    try:
        with pytest.raises(StoreError, match=r"OOM|maxmemory"):
            await merge(store, message("j1", ("m1", 2, 2)))
    finally:
        server.configure(maxmemory="0")
    assert await merge(store, message("j1", ("m1", 2, 2))) == [False]


async def test_a_hanging_server_costs_a_quarter_of_a_second(
    server: StoreServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not answer is given up; its late answer confuses nobody."""
    await merge(store, message("j1", ("m1", 1, 1)))
    monkeypatch.undo()  # no more patient than in production
    server.pause()
    try:
        with pytest.raises(StoreError, match="did not answer within 250 ms"):
            async with asyncio.timeout(2):
                await merge(store, message("j1", ("m1", 2, 2), acked=99))
    finally:
        server.resume()
    assert await merge(store, message("j1", ("m1", 3, 3))) == [False]
    assert await store.call([]) == []


async def test_two_workers_and_an_emptied_server(server: StoreServer, store: Store, tmp_path: Path) -> None:
    """Two ledgers add up; after FLUSHALL, after a kill, after a restart on an empty disk, usage equals the records."""
    ledgers = [Ledger(tmp_path / f"w{worker}", Store(server.url), workers=2) for worker in range(2)]
    for ledger in ledgers:
        await ledger.start()

    async def settle(count: int) -> None:
        for number in range(count):
            for ledger in ledgers:
                ledger.settle(usage_record(key=f"k{number % 7}", model=f"m{number % 3}", reasoning_tokens=number))
            if number % 10 == 0:
                await asyncio.sleep(0.001)

    def is_equal() -> bool:
        with server.client() as client:
            expected = totals_of(iter_records(tmp_path))
            return totals_in_redis(client) == expected == totals_in_redis(client, "books")

    await settle(300)
    await until(is_equal, "Redis equals the records")
    with server.client() as client:
        client.flushall()
    await settle(100)
    await until(lambda: all(ledger.regressions >= 1 for ledger in ledgers), "both have noticed")
    await until(is_equal, "Redis equals the records again")
    server.kill()
    await settle(100)
    await until(lambda: not any(ledger.store_up for ledger in ledgers), "both have noticed")
    assert all(ledger.can_write for ledger in ledgers)
    server.start()
    await until(lambda: all(ledger.unsynced == 0 for ledger in ledgers), "both have caught up")
    assert is_equal()
    server.kill()
    shutil.rmtree(server.directory / "appendonlydir")
    server.start()
    await until(is_equal, "the emptied server equals the records")
    for ledger in ledgers:
        await ledger.stop()
    assert is_equal()
    assert sum(totals_of(iter_records(tmp_path)).values()) > 0


async def test_a_good_server_passes_the_check(server: StoreServer) -> None:
    """And the check leaves nothing behind."""
    with server.client() as client:
        client.flushall()
        await check_store(server.url)
        assert client.keys() == []


async def test_an_evicting_server_is_refused(server: StoreServer) -> None:
    """The message names the setting, also where CONFIG is forbidden and INFO must tell."""
    server.configure(maxmemory_policy="allkeys-lru")
    with server.client() as client:
        client.acl_setuser("limited", enabled=True, passwords=["+hidden"], keys=["*"], commands=["+@all", "-config"])
    try:
        for url in (server.url, f"redis://limited:hidden@127.0.0.1:{server.port}/0"):
            with pytest.raises(CannotStart, match="set maxmemory-policy to noeviction") as refusal:
                await check_store(url)
            assert "hidden" not in str(refusal.value)
    finally:
        server.configure(maxmemory_policy="noeviction")
    await check_store(f"redis://limited:hidden@127.0.0.1:{server.port}/0")


async def test_a_user_without_permission_is_refused(server: StoreServer) -> None:
    """At the start, not with the first record."""
    with server.client() as client:
        client.acl_setuser("reader", enabled=True, passwords=["+hidden"], keys=["other:*"], commands=["+@all"])
    with pytest.raises(CannotStart, match="permission"):
        await check_store(f"redis://reader:hidden@127.0.0.1:{server.port}/0")


async def test_a_wrong_password_is_refused_and_not_shown(server: StoreServer) -> None:
    """The message names the address."""
    with pytest.raises(CannotStart, match=f"127.0.0.1:{server.port} refused the user name or password") as refusal:
        await check_store(f"redis://somebody:hidden@127.0.0.1:{server.port}/0")
    assert "hidden" not in str(refusal.value)


async def test_a_replica_is_refused(server: StoreServer) -> None:
    """It could not be written."""
    with server.client() as client:
        client.replicaof("127.0.0.1", str(free_port()))
        try:
            with pytest.raises(CannotStart, match="is a replica"):
                await check_store(server.url)
        finally:
            client.replicaof("no", "one")


async def test_a_missing_password_is_told_apart_from_a_wrong_one(server: StoreServer) -> None:
    """Nobody looks for a typo in a password that is not there."""
    server.configure(requirepass="hidden")
    try:
        with pytest.raises(CannotStart) as refusal:
            await check_store(server.url)
        assert str(refusal.value) == f"redis.url has no password, and Redis at 127.0.0.1:{server.port} wants one"
        with pytest.raises(StoreError, match=r"redis\.url has no password"):
            await Store(server.url).call([])
    finally:
        with Redis.from_url(f"redis://:hidden@127.0.0.1:{server.port}/0") as client:
            client.config_set("requirepass", "")


async def refusal_of(url: str) -> str:
    """The one line with which `check_store` refuses; it never holds `hidden`."""
    with pytest.raises(CannotStart) as refusal:
        await check_store(url)
    assert "hidden" not in str(refusal.value)
    return str(refusal.value)


async def test_an_unreachable_server_is_refused_in_one_clean_line() -> None:
    """The address is shown once, the password is not; the reason is in words, and what to do about it."""
    port = free_port()
    for scheme in ("redis", "rediss"):
        assert await refusal_of(f"{scheme}://user:hidden@127.0.0.1:{port}/0?password=hidden") == (
            f"cannot reach Redis at 127.0.0.1:{port}: connection refused; start it, or set redis.url"
        )
    assert await refusal_of("unix:///no/such.sock") == (
        "cannot reach Redis at /no/such.sock: no such file or directory; start it, or set redis.url"
    )
    assert await refusal_of("redis://no-such-host.invalid:1") == (
        "cannot reach Redis at no-such-host.invalid:1: name or service not known; start it, or set redis.url"
    )
    with pytest.raises(StoreError, match=f"^cannot reach Redis at 127.0.0.1:{port}: connection refused$"):
        await Store(f"redis://127.0.0.1:{port}").call([])


async def test_a_server_without_tls_is_told_apart(server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the end of a line that never comes."""
    monkeypatch.setattr("meter_proxy.ledger.store.CHECK_S", 0.3)
    assert await refusal_of(f"rediss://127.0.0.1:{server.port}/0") == (
        f"Redis at 127.0.0.1:{server.port} did not answer within 0.3 s; if it does not speak TLS, write redis://"
    )


async def test_what_speaks_no_tls_at_all_is_told_apart() -> None:
    """A web server, for instance, answers at once, in plain text."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        assert await refusal_of(f"rediss://127.0.0.1:{port}") == (
            f"cannot reach Redis at 127.0.0.1:{port}: TLS failed, wrong version number; "
            "if it does not speak TLS, write redis://"
        )


@pytest.mark.parametrize(
    "url", ["http://hidden@a", "redis://:hidden@a:port", "redis://:hidden@a/0?db=x&socket_timeout=y"]
)
async def test_a_malformed_url_is_refused_and_not_shown(url: str) -> None:
    """One line, without what may be a password."""
    with pytest.raises(CannotStart, match=r"redis\.url") as refusal:
        await check_store(url)
    assert "hidden" not in str(refusal.value)


async def test_a_busy_server_is_waited_for(server: StoreServer, store: Store) -> None:
    """Somebody's endless script holds it: nothing is written, everything works when that is ended."""
    server.configure(busy_reply_threshold="50")
    await merge(store, message("j1", ("m1", 1, 1)))
    blocker = asyncio.create_task(asyncio.to_thread(_run_for_ever, server))
    try:
        await asyncio.sleep(0.3)
        with pytest.raises(StoreError, match=r"busy|BUSY|did not answer"):
            await store.call([message("j1", ("m1", 2, 2))])
    finally:
        with server.client() as client:
            client.script_kill()
        await blocker
    assert await merge(store, message("j1", ("m1", 3, 3))) == [False]


def _run_for_ever(server: StoreServer) -> None:
    with server.client() as client, contextlib.suppress(RedisError):
        client.eval("while true do end", 0)


async def test_a_primary_that_became_a_replica_is_not_written(server: StoreServer, store: Store) -> None:
    """READONLY: the connection is given up, and made anew when it is a primary again."""
    await merge(store, message("j1", ("m1", 1, 1)))
    with server.client() as client:
        client.replicaof("127.0.0.1", 9)
        try:
            with pytest.raises(StoreError):
                await store.call([message("j1", ("m1", 2, 2))])
        finally:
            client.replicaof("NO", "ONE")
    assert await merge(store, message("j1", ("m1", 3, 3))) == [False]


async def test_replies_that_nobody_waited_for_are_nobody_elses(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is given up midway takes its connection with it."""
    forgotten = [message("j1", ("m", 5, 5), acked=5, key=f"k{number}") for number in range(5)]
    assert await merge(store, forgotten.pop()) == [True]
    with monkeypatch.context() as given_up:
        given_up.setattr(store_module, "_reply", _give_up)
        with pytest.raises(asyncio.CancelledError):
            await store.call(forgotten)
    assert await merge(store, message("j2", ("m", 1, 1)), message("j2", ("m", 2, 2))) == [False] * 2


async def _give_up(connection: object) -> None:
    raise asyncio.CancelledError
