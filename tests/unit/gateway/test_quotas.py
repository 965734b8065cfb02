"""The gate of quotas: what it keeps of a key's calls from one to the next never outlives its truth."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meter_proxy.config.lookup import ModelTable
from meter_proxy.config.rulebook import RuleBook
from meter_proxy.errors import ClientError
from meter_proxy.gateway.headers import Forwarded
from meter_proxy.gateway.inbound import Call, Caller
from meter_proxy.gateway.quotas import MUST_ASK, MustAsk, QuotaGate
from meter_proxy.ledger import Ledger
from meter_proxy.ledger.counters import Counter
from meter_proxy.ledger.grants import Grant
from meter_proxy.metering.request import Asked
from meter_proxy.telemetry.stats import WorkerStats
from meter_proxy.usage import Operation
from tests.support.records import usage_record
from tests.support.waiting import until
from tests.unit.config.yaml_cases import config_of
from tests.unit.ledger.stores import InMemory

PLENTY = 10**12
CHAT, EMBEDDINGS = Operation.CHAT, Operation.EMBEDDINGS
ENVIRONMENT = {"A": "sk-alice"}


class Clock:
    """Tells Redis' time, and ours."""

    def __init__(self) -> None:
        self.at = 1_772_366_400.0  # 2026-03-01T12:00:00Z

    def __call__(self) -> float:
        return self.at


class SameClock(InMemory):
    """A store whose clock is the test's."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.takes_s = 0.0
        self._test_clock = clock

    async def call(self, batch: Any) -> list[Any]:
        await asyncio.sleep(self.takes_s)
        replies: list[Any] = await super().call(batch)
        for reply in replies:
            reply[0] = int(self._test_clock() * 1000)
        return replies

    async def now(self) -> float:
        return self._test_clock()


class Rig:
    """A ledger, and a gate by a configuration that may be loaded anew."""

    def __init__(self, ledger: Ledger, clock: Clock, directory: Path) -> None:
        self.ledger = ledger
        self.clock = clock
        self._directory = directory
        self.gate: QuotaGate
        self.table: ModelTable
        self.caller: Caller

    def load(self, *rules: str, price: str = "{input: 1, output: 2}", account: str = "") -> None:
        """Serve by another configuration, as `Gateway.reconfigure` does."""
        config = config_of(
            f"""
upstreams: {{local: {{base_url: "http://127.0.0.1:1/v1"}}}}
models: {{"*": {{upstream: local, price: {price}}}}}
accounts: {{team: {{quotas: []}}}}
keys: [{{id: alice, secret: {{env: A}}, quotas: [{", ".join(rules)}]{f", account: {account}" if account else ""}}}]
""",
            self._directory,
            ENVIRONMENT,
        )
        self.gate = QuotaGate(RuleBook(config), self.ledger, WorkerStats())
        self.table = ModelTable(config)
        key = config.keys[0]
        self.caller = Caller(key, key.id, key.account_id)
        self.ledger.place_keys({key.id: key.account_id})

    def call(self, operation: Operation = CHAT, model: str = "m", **asked: Any) -> Call:
        """What alice asks now."""
        resolved = self.table.resolve(model, self.caller.key)
        assert resolved is not None
        request = Asked(model=model, **{"input_text_bytes": 40, **asked})
        return Call(self.caller, operation, "/x", request, resolved, Forwarded(b"", False), None)

    def counters(self, grant: Grant | MustAsk | None) -> tuple[Counter, ...]:
        assert isinstance(grant, Grant)
        return grant.tab.counters

    async def ready(self, call: Call | None = None) -> Grant:
        """A grant, and plenty of credit for the next ones."""
        grant = await self.gate.grant(call or self.call())
        assert isinstance(grant, Grant)
        for counter in grant.tab.counters:
            counter.credit = PLENTY
        return grant


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    clock = Clock()
    ledger = Ledger(tmp_path / "w0", SameClock(clock), clock=clock, jitter=lambda: 0.5)
    await ledger.start()
    yield Rig(ledger, clock, tmp_path)
    await ledger.stop()


DAY = "{tokens: 900M, per: day}"


async def test_where_no_rule_applies_there_is_no_grant(rig: Rig) -> None:
    rig.load('{tokens: 5, per: day, models: ["gpt-*"]}')
    assert rig.gate.grant_now(rig.call()) is None
    assert await rig.gate.grant(rig.call()) is None


async def test_without_credit_somebody_must_be_asked(rig: Rig) -> None:
    """Also for what the limit has room for; nothing is held meanwhile."""
    rig.load(DAY)
    assert rig.gate.grant_now(rig.call()) is MUST_ASK
    (counter,) = rig.counters(await rig.gate.grant(rig.call(max_output_tokens=8)))
    assert counter.reserved == 40 + 16 + 32 + 8


async def test_credit_is_granted_at_once_and_released(rig: Rig) -> None:
    rig.load("{requests: 900M, per: day}", DAY, "{cost_usd: 1000000, per: month}")
    (await rig.ready()).release()
    grant = rig.gate.grant_now(rig.call(max_output_tokens=8))
    counters = rig.counters(grant)
    tokens = 40 + 16 + 32 + 8
    assert [counter.reserved for counter in counters] == [1, tokens, (tokens - 8) * 1000 + 8 * 2000]
    assert [PLENTY - counter.credit for counter in counters] == [counter.reserved for counter in counters]
    assert isinstance(grant, Grant)
    grant.release()
    grant.release()
    assert [counter.reserved for counter in counters] == [0, 0, 0]


async def test_a_known_denial_is_raised_at_once(rig: Rig) -> None:
    rig.load("{tokens: 90, per: day}")
    with pytest.raises(ClientError) as refused:
        rig.gate.grant_now(rig.call(max_output_tokens=8))
    assert (refused.value.status, refused.value.code) == (429, "insufficient_quota")
    with pytest.raises(ClientError):
        await rig.gate.grant(rig.call(max_output_tokens=8))


async def test_after_a_reload_the_new_limit_holds_for_the_same_counter(rig: Rig) -> None:
    rig.load(DAY)
    (before,) = rig.counters(await rig.ready())
    rig.load("{tokens: 5k, per: day}")
    with pytest.raises(ClientError):
        rig.gate.grant_now(rig.call(max_output_tokens=5_000))
    (after,) = rig.counters(rig.gate.grant_now(rig.call(max_output_tokens=8)))
    assert after is before
    assert after.limit == 5_000


async def test_who_asked_before_a_reload_leaves_no_old_price_behind(rig: Rig) -> None:
    """It waits for the store meanwhile: its own price holds for it, the new one for all others."""
    rig.load("{cost_usd: 1000, per: day}")
    old = rig.call(max_output_tokens=0)
    rig.load("{cost_usd: 1000, per: day}", price="{input: 7, output: 7}")
    (await rig.ready()).release()
    for _ in range(2):
        for call, price in ((old, 1_000), (rig.call(max_output_tokens=0), 7_000)):
            grant = rig.gate.grant_now(call)
            assert isinstance(grant, Grant)
            assert grant.amounts == [88 * price]


async def test_when_a_window_ends_the_next_is_counted_in(rig: Rig) -> None:
    """At the pace of the last: credit is wished for from the first message on. What was granted stays where it was."""
    rig.load("{requests: 1M, per: minute}", DAY)
    first = await rig.ready()
    for _ in range(20):
        rig.gate.grant_now(rig.call())
    rig.clock.at += 59
    assert isinstance(same := rig.gate.grant_now(rig.call()), Grant)
    assert same.charges == first.charges
    rig.clock.at += 1
    assert rig.gate.grant_now(rig.call()) is MUST_ASK
    after = await rig.gate.grant(rig.call())
    minute, day = rig.counters(after)
    assert isinstance(after, Grant)
    assert [charge.window for charge in after.charges] == ["202603011201", "20260301"]
    assert (minute.book.window, minute.reserved) == ("202603011201", 1)
    assert minute.wish > 0
    assert day is first.tab.counters[1]
    reserved = first.tab.counters[0].reserved
    first.release()
    assert first.tab.counters[0].reserved == reserved - 1


async def test_a_clock_that_is_set_back_brings_the_old_window_back(rig: Rig) -> None:
    rig.load("{requests: 1M, per: minute}")
    rig.clock.at += 60
    await rig.ready()
    rig.clock.at -= 1
    assert rig.gate.grant_now(rig.call()) is MUST_ASK


async def test_a_key_that_moved_takes_its_counters_along(rig: Rig) -> None:
    """The same counter, told to Redis under the new account, from the first admission after the reload."""
    rule = "{tokens: 900M, per: total}"
    rig.load(rule)
    (before,) = rig.counters(await rig.ready())
    rig.load(rule, account="team")
    before.credit = 0
    assert rig.gate.grant_now(rig.call()) is MUST_ASK
    (after,) = rig.counters(await rig.gate.grant(rig.call()))
    assert after is before
    assert after.book.account == "team"
    store = rig.ledger.store
    assert isinstance(store, InMemory)
    name = "mp:{team}:quota:k:alice:tokens-total:total"
    await until(lambda: store.redis.hget(name, "reserved") == str(after.holds), "it is held in the new account")


async def test_who_asked_before_a_key_moved_is_not_put_on_the_new_accounts_tab(rig: Rig) -> None:
    rig.load("{requests: 900M, per: total}")
    old = rig.call()
    rig.load("{requests: 900M, per: total}", account="team")
    (await rig.ready()).release()
    for _ in range(2):
        for call, account in ((old, "alice"), (rig.call(), "team")):
            grant = rig.gate.grant_now(call._replace(model=rig.call().model))
            assert isinstance(grant, Grant)
            assert grant.tab.account == account


async def test_a_book_that_was_forgotten_is_not_counted_in_any_more(rig: Rig) -> None:
    """The next admission is in the counter that the books know: what is settled there is seen."""
    rig.load(DAY)
    grant = await rig.ready()
    (before,) = rig.counters(grant)
    rig.ledger._books.forget(before.book)
    assert rig.gate.grant_now(rig.call()) is MUST_ASK
    after = await rig.gate.grant(rig.call())
    (counter,) = rig.counters(after)
    assert counter is not before
    assert isinstance(after, Grant)
    rig.ledger.settle(
        usage_record(key="alice", account="alice", time="2026-03-01T12:00:00.000Z", input_tokens=3, output_tokens=4),
        charges=after.charges,
    )
    assert counter.book.used == 7


async def test_a_crowd_that_never_stops_asking_is_served_from_credit(rig: Rig) -> None:
    """Somebody waits for an answer at each instant: that must not keep credit from all."""
    rig.load("{requests: 900M, per: day}")
    store = rig.ledger.store
    assert isinstance(store, SameClock)
    store.takes_s = 0.005
    at_once: list[bool] = []
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + 1

    async def ask_again_and_again() -> None:
        while loop.time() < ends_at:
            grant = rig.gate.grant_now(rig.call())
            at_once.append(grant is not MUST_ASK)
            if not isinstance(grant, Grant):
                grant = await rig.gate.grant(rig.call())
            assert isinstance(grant, Grant)
            await asyncio.sleep(0.001)
            grant.release()

    await asyncio.gather(*(ask_again_and_again() for _ in range(16)))
    late = at_once[len(at_once) // 2 :]
    assert sum(late) >= 0.9 * len(late)


async def test_models_of_one_name_pattern_are_told_apart(rig: Rig) -> None:
    rig.load('{tokens: 900M, per: day, models: ["gpt-*"]}', "{requests: 900M, per: day}")
    assert len(rig.counters(await rig.ready(rig.call(model="gpt-4")))) == 2
    assert len(rig.counters(await rig.ready(rig.call(model="llama")))) == 1
    assert len(rig.counters(rig.gate.grant_now(rig.call(model="gpt-4")))) == 2


async def test_embeddings_and_chat_of_one_model_are_told_apart(rig: Rig) -> None:
    rig.load(DAY)
    (await rig.ready()).release()
    for _ in range(2):
        embedding = rig.gate.grant_now(rig.call(EMBEDDINGS))
        chat = rig.gate.grant_now(rig.call(max_output_tokens=8))
        assert isinstance(embedding, Grant)
        assert isinstance(chat, Grant)
        assert (embedding.amounts, chat.amounts) == ([88], [96])


amounts = st.integers(0, 12_000)


@given(
    limit=st.integers(1, 12_000),
    used=amounts,
    others_used=amounts,
    seen=amounts,
    credit=amounts,
    stream=st.booleans(),
    max_tokens=st.none() | st.integers(0, 2_000),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
def test_nothing_is_granted_at_once_that_is_used_up_or_not_covered(
    tmp_path: Path,
    limit: int,
    used: int,
    others_used: int,
    seen: int,
    credit: int,
    stream: bool,
    max_tokens: int | None,
) -> None:
    """Refused is exactly what is known to be used up; granted only what credit covers, and nobody knows better."""
    asyncio.run(_compare(tmp_path, limit, used, others_used, seen, credit, stream, max_tokens))


async def _compare(
    directory: Path, limit: int, used: int, others: int, seen: int, credit: int, stream: bool, bound: int | None
) -> None:
    clock = Clock()
    ledger = Ledger(directory / "w0", SameClock(clock), clock=clock, jitter=lambda: 0.5)
    await ledger.start()
    try:
        rig = Rig(ledger, clock, directory)
        rig.load(f"{{tokens: {limit}, per: day}}")
        call = rig.call(stream=stream, max_output_tokens=bound)
        with contextlib.suppress(ClientError):
            rig.gate.grant_now(call)
        (counter,) = rig.gate._tab(call).counters  # type: ignore[union-attr]
        counter.told(used=seen, reserved=0, own_used=0, own_reserved=0)
        counter.told(used=others + used, reserved=0, own_used=used, own_reserved=0)
        counter.book.used, counter.credit = used, credit
        known_used = max(seen, others + used)
        up_front = 10 if stream else 40 + 16 + 32
        if stream:
            most = 512 if bound is None else min(512, bound)
            least = min(1, most)
        else:
            most = 4096 if bound is None else bound
            least = 1 if bound is None else bound
        is_used_up = known_used + up_front + least > limit
        try:
            answer = rig.gate.grant_now(call)
        except ClientError:
            assert is_used_up
            return
        assert not is_used_up
        if answer is MUST_ASK:
            assert credit < up_front + most or known_used + up_front + most > limit
            return
        assert isinstance(answer, Grant)
        assert credit >= up_front + most
        assert (counter.reserved, counter.credit) == (up_front + most, credit - up_front - most)
        answer.release()
    finally:
        await ledger.stop()
