"""Quotas over HTTP: who is refused, in what words, and where a stream ends."""

import asyncio
import hashlib
import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from meter_proxy.usage import Basis, Outcome
from tests.integration.conftest import StartProxy
from tests.support import answers
from tests.support.harms import FloodsUntilHungUp, Streams
from tests.support.httpraw import RawClient, RawResponse
from tests.support.inprocess import InProcessProxy
from tests.support.upstream import UpstreamExchange
from tests.support.waiting import until, until_async

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "12345678"}], "stream": True}
PLAIN = {"model": "m", "messages": [{"role": "user", "content": "12345678"}]}
KEY = "sk-quota"


def limited(*quotas: dict[str, Any], account: dict[str, Any] | None = None, **key: Any) -> dict[str, Any]:
    """Members of a configuration: one key with these rules, known to nobody else on the shared store."""
    name = f"k{secrets.token_hex(6)}"
    entry = {"id": name, "secret": f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}", "quotas": list(quotas), **key}
    if account is None:
        return {"keys": [entry]}
    entry["account"] = f"a{name}"
    return {"keys": [entry], "accounts": {f"a{name}": account}}


async def ask(proxy: InProcessProxy, body: dict[str, Any] = ASK) -> tuple[RawResponse, bytes]:
    """One request on a connection of its own; its response, and the body to its end."""
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, body, key=KEY)
        return response, await response.read()


def events_of(body: bytes) -> list[Any]:
    """The data of a stream's events; [DONE] as text."""
    found = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event.startswith(b"data: ")]
    return [event.decode() if event == b"[DONE]" else json.loads(event) for event in found]


def contents(body: bytes) -> str:
    """The text that a stream delivered."""
    events = [event for event in events_of(body) if isinstance(event, dict)]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event.get("choices", []))


def header(response: RawResponse, name: str) -> str | None:
    value: str | None = response.headers.get(name)
    return value


async def test_the_request_after_the_last_is_refused(start: StartProxy) -> None:
    """A rate rule: 429 as OpenAI writes it, with the time to wait; no byte reaches the upstream."""
    proxy, upstream = await start(Streams(answers.chat_stream("a")), **limited({"requests": 2, "per": "minute"}))
    remaining = []
    for _ in range(2):
        response, _ = await ask(proxy)
        assert response.status == 200
        assert header(response, "x-ratelimit-limit-requests") == "2"
        remaining.append(header(response, "x-ratelimit-remaining-requests"))
    assert remaining == ["1", "0"]
    response, body = await ask(proxy)
    assert response.status == 429
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert 1 <= int(header(response, "retry-after") or 0) <= 60
    assert 1 <= int(header(response, "retry-after-ms") or 0) <= 60_000
    assert header(response, "x-should-retry") is None
    assert len(upstream.posts) == 2


async def test_a_used_up_budget_says_that_trying_again_does_not_help(start: StartProxy) -> None:
    proxy, _ = await start(Streams(answers.chat_stream("a")), **limited({"tokens": 5, "per": "total"}))
    await ask(proxy)
    response, body = await ask(proxy)
    assert response.status == 429
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert header(response, "x-should-retry") == "false"
    assert header(response, "retry-after") is None


async def test_a_request_that_reached_nobody_is_given_back(start: StartProxy) -> None:
    """`requests` counts what was sent on: an upstream that is not there takes nothing."""
    members = limited({"requests": 1, "per": "total"})
    proxy, _ = await start(Streams([]), upstream={"base_url": "http://127.0.0.1:9/v1"}, **members)
    for _ in range(3):
        response, _ = await ask(proxy)
        assert response.status == 502


async def test_concurrent_counts_what_is_open_now(start: StartProxy) -> None:
    proxy, _ = await start(FloodsUntilHungUp(), **limited({"concurrent": 1}))
    async with await RawClient.connect(proxy.url) as client:
        first = await client.request("POST", CHAT, ASK, key=KEY)
        assert first.status == 200
        response, body = await ask(proxy)
        assert response.status == 429
        assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
        assert header(response, "retry-after") == "1"
        client.close_rst()
    await proxy.record()
    async with await RawClient.connect(proxy.url) as client:
        assert (await client.request("POST", CHAT, ASK, key=KEY)).status == 200


@pytest.mark.parametrize("reads", ["one by one", "all at once", "cut anywhere"])
async def test_a_stream_ends_at_the_event_that_uses_up_the_last_token(start: StartProxy, reads: str) -> None:
    """2 tokens of input are estimated, 3 of output are left: three events, then `length` and [DONE]; all is billed."""
    events = answers.chat_stream(*"abcdefgh", output_tokens=8)

    async def upstream_script(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        whole = b"".join(events)
        pieces = {
            "one by one": events,
            "all at once": [whole],
            "cut anywhere": [whole[n : n + 77] for n in range(0, len(whole), 77)],
        }
        for piece in pieces[reads]:
            await exchange.send_event(piece)
            await asyncio.sleep(0.002)
        await exchange.end()

    proxy, _ = await start(upstream_script, **limited({"tokens": 5, "per": "day"}))
    response, body = await ask(proxy)
    assert response.status == 200
    assert contents(body) == "abc"
    assert events_of(body)[-1] == "[DONE]"
    assert events_of(body)[-2]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]
    assert events_of(body)[-2]["id"] == events_of(body)[0]["id"]
    record = await proxy.record()
    assert record.outcome is Outcome.QUOTA_CUT
    # What had been sent is generated, and billed; what had not been never was.
    assert record.output_tokens == 8 if reads == "all at once" else 3 <= record.output_tokens <= 8


async def test_the_upstream_is_told_at_the_cut_and_what_it_sent_is_billed(start: StartProxy) -> None:
    proxy, upstream = await start(FloodsUntilHungUp(), **limited({"output_tokens": 4, "per": "day"}))
    _, body = await ask(proxy)
    assert events_of(body)[-1] == "[DONE]"
    await (await upstream.exchange()).hung_up()
    record = await proxy.record()
    assert record.outcome is Outcome.QUOTA_CUT
    assert record.basis is Basis.COUNTED
    assert record.output_tokens >= 4


async def test_the_usage_of_a_cut_stream_is_told_to_who_asked_for_it(start: StartProxy) -> None:
    events = answers.chat_stream(*"abcdefgh", output_tokens=8)
    proxy, _ = await start(Streams(events), **limited({"tokens": 5, "per": "day"}))
    _, body = await ask(proxy, {**ASK, "stream_options": {"include_usage": True}})
    last = events_of(body)[-2]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


async def test_a_rule_may_end_a_stream_with_an_error(start: StartProxy) -> None:
    events = answers.chat_stream(*"abcdefgh", output_tokens=8)
    proxy, _ = await start(Streams(events), **limited({"tokens": 5, "per": "day", "when_exhausted": "error"}))
    _, body = await ask(proxy)
    assert events_of(body)[-2]["error"]["code"] == "insufficient_quota"
    assert (await proxy.record()).outcome is Outcome.QUOTA_CUT


async def test_a_rule_may_let_a_stream_finish(start: StartProxy) -> None:
    """It runs over; the next one is refused."""
    events = answers.chat_stream(*"abcdefgh", output_tokens=8)
    proxy, _ = await start(Streams(events), **limited({"tokens": 5, "per": "day", "when_exhausted": "finish"}))
    _, body = await ask(proxy)
    assert contents(body) == "abcdefgh"
    assert (await proxy.record()).outcome is Outcome.COMPLETED
    response, _ = await ask(proxy)
    assert response.status == 429


async def test_every_open_choice_is_ended(start: StartProxy) -> None:
    def choice_event(index: int) -> bytes:
        return answers.event({
            "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": index, "delta": {"content": "x"}, "finish_reason": None}],
        })  # fmt: skip

    finished = answers.event({
        "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}],
    })  # fmt: skip
    events = [choice_event(0), choice_event(1), finished, *[choice_event(index % 3) for index in range(0, 12, 2)]]
    proxy, _ = await start(Streams(events), **limited({"output_tokens": 4, "per": "day"}))
    _, body = await ask(proxy, {**ASK, "n": 3})
    endings = [event["choices"][0] for event in events_of(body)[:-1] if event["choices"][0]["finish_reason"]]
    assert {choice["index"]: choice["finish_reason"] for choice in endings} == {0: "length", 1: "stop", 2: "length"}


async def test_a_long_stream_is_granted_slice_by_slice(start: StartProxy) -> None:
    """3,000 events under a limit of 1,000,000: nobody notices; what is left is given back."""
    events = answers.chat_stream(*["x"] * 3000, output_tokens=3000)
    members = limited({"tokens": 1_000_000, "per": "day"})
    proxy, _ = await start(Streams(events), **members)
    _, body = await ask(proxy)
    assert len(contents(body)) == 3000
    record = await proxy.record()
    assert (record.outcome, record.output_tokens) == (Outcome.COMPLETED, 3000)
    ledger = proxy.gateway.ledger
    await until(lambda: ledger.unsynced == 0, "the books are in Redis")
    assert ledger.store is not None
    name = members["keys"][0]["id"]
    window = record.time[:10].replace("-", "")

    async def sums() -> dict[str, str]:
        (fields,) = await ledger.store.read_hashes([f"mp:{{{name}}}:quota:k:{name}:tokens-day:{window}"])  # type: ignore[union-attr]
        return fields

    async def all_given_back() -> dict[str, str] | None:
        fields = await sums()
        return fields if fields["reserved"] == "0" else None

    # Credit that the rate of renewals earned is given back after a few idle ticks.
    fields = await until_async(all_given_back, "what was not used to be given back")
    assert fields["used"] == str(record.input_tokens + 3000)


async def test_a_plain_call_reserves_its_whole_output_or_nothing(start: StartProxy) -> None:
    """All or nothing before the call; the model's bound is sent where the client gave none."""

    async def answer(exchange: UpstreamExchange) -> None:
        await exchange.answer(answers.chat_json(output_tokens=3))

    models = {"m": {"upstream": "local", "max_output_tokens": 40}}
    proxy, upstream = await start(answer, models=models, **limited({"output_tokens": 100, "per": "day"}))
    response, _ = await ask(proxy, {**PLAIN, "max_tokens": 101})
    assert response.status == 429
    response, _ = await ask(proxy, {**PLAIN, "max_tokens": 100})
    assert response.status == 200
    await proxy.record()
    response, _ = await ask(proxy, {**PLAIN, "n": 2})
    assert response.status == 200
    assert [post.json().get("max_tokens") for post in upstream.posts] == [100, 40]


async def test_a_cost_rule_is_counted_in_nano_dollars(start: StartProxy) -> None:
    models = {"m": {"upstream": "local", "price": {"input": 1, "output": 1000}}}
    events = answers.chat_stream(*"abcdefgh", output_tokens=8)
    proxy, _ = await start(Streams(events), models=models, **limited({"cost_usd": 0.004002, "per": "month"}))
    _, body = await ask(proxy)
    assert contents(body) == "abcd"
    response, _ = await ask(proxy)
    assert (response.status, header(response, "x-should-retry")) == (429, "false")


async def test_an_accounts_rule_is_shared_and_named(start: StartProxy) -> None:
    members = limited({"requests": 100, "per": "day"}, account={"quotas": [{"requests": 1, "per": "day"}]})
    proxy, _ = await start(Streams(answers.chat_stream("a")), **members)
    response, _ = await ask(proxy)
    assert response.status == 200
    assert header(response, "x-ratelimit-limit-requests") == "1"  # of two rules the one that is nearest to its limit
    response, body = await ask(proxy)
    assert response.status == 429
    assert "your account" in json.loads(body)["error"]["message"]


async def test_rules_are_about_the_models_that_they_name(start: StartProxy) -> None:
    rule = {"requests": 1, "per": "day", "models": ["gpt-*"]}
    proxy, _ = await start(Streams(answers.chat_stream("a")), **limited(rule))
    for model, status in (("gpt-4", 200), ("other", 200), ("gpt-5", 429), ("other", 200)):
        response, _ = await ask(proxy, {**ASK, "model": model})
        assert response.status == status, model


async def test_past_warn_at_answers_carry_a_warning(start: StartProxy) -> None:
    rule = {"name": "budget", "requests": 3, "per": "day", "warn_at": "60%"}
    proxy, _ = await start(Streams(answers.chat_stream("a")), **limited(rule))
    warnings = [header((await ask(proxy))[0], "x-meter-quota-warning") for _ in range(3)]
    assert warnings == [None, "budget", "budget"]


async def test_a_caller_sees_its_own_usage_and_quotas(start: StartProxy) -> None:
    """`GET /v1/usage`: what is used today by model, and what is left of each rule; nobody else's."""
    models = {"m": {"upstream": "local", "price": {"input": 1, "output": 2}}}
    rules = [{"name": "budget", "cost_usd": 1, "per": "month", "warn_at": "1%"}, {"requests": 5, "per": "day"}]
    members = limited(*rules, account={"quotas": [{"tokens": 1000, "per": "total"}]})
    proxy, _ = await start(Streams(answers.chat_stream("a", output_tokens=1)), models=models, **members)
    await ask(proxy)
    record = await proxy.record()
    await until(lambda: proxy.gateway.ledger.unsynced == 0, "the books are in Redis")
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("GET", "/v1/usage", key=KEY)
        document = await response.json()
        assert (await client.request("GET", "/v1/usage", key="sk-wrong")).status == 401
    assert (document["key"], document["live"]) == (record.key, True)
    (today,) = document["today"]["models"]
    assert (today["model"], today["requests"], today["output_tokens"]) == ("m", 1, 1)
    assert today["cost_usd"] == f"{record.cost_nano_usd / 1e9:.9f}".rstrip("0")
    quotas = {quota["rule"]: quota for quota in document["quotas"]}
    assert (quotas["requests-day"]["used"], quotas["requests-day"]["remaining"]) == (1, 4)
    assert quotas["budget"]["used"] == today["cost_usd"]
    assert quotas["tokens-total"]["scope"] == "account"
    assert quotas["tokens-total"]["used"] == record.input_tokens + record.output_tokens
    assert quotas["tokens-total"]["resets_at"] is None


async def test_a_caller_sees_its_own_last_days(start: StartProxy, shared_store: str) -> None:
    """`?days=30`: the days on which something was used, oldest first, none before the first one asked for."""
    members = limited({"requests": 5, "per": "day"})
    name = members["keys"][0]["id"]
    proxy, _ = await start(Streams(answers.chat_stream("a", output_tokens=1)), **members)
    days = {ago: datetime.now(UTC).date() - timedelta(days=ago) for ago in (0, 3, 29, 30)}
    fields: dict[Any, Any] = {"m|requests": 2, "m|input_tokens": 5, "m|output_tokens": 7, "m|cost_nano_usd": 4_200_000}
    async with Redis.from_url(shared_store) as redis:
        for ago in (3, 29, 30):
            await redis.hset(f"mp:{{{name}}}:usage:{name}:{days[ago]:%Y%m%d}", mapping=fields)
    await ask(proxy)
    await until(lambda: proxy.gateway.ledger.unsynced == 0, "the books are in Redis")
    async with await RawClient.connect(proxy.url) as client:
        document = await (await client.request("GET", "/v1/usage?days=30", key=KEY)).json()
        assert [day["day"] for day in document["days"]] == [f"{days[ago]}" for ago in (29, 3, 0)]
        counts = {"requests": 2, "input_tokens": 5, "output_tokens": 7, "cached_input_tokens": 0, "reasoning_tokens": 0}
        assert document["days"][0]["models"] == [{"model": "m", **counts, "cost_usd": "0.0042"}]
        assert document["days"][-1] == document["today"]
        assert (await (await client.request("GET", "/v1/usage", key=KEY)).json())["days"] == [document["today"]]
        for wrong in ("0", "93", "-1", "ten", "%D9%A3"):
            response = await client.request("GET", f"/v1/usage?days={wrong}", key=KEY)
            assert response.status == 400
            assert (await response.json())["error"]["param"] == "days"


async def test_without_enough_room_for_a_slice_the_rest_is_granted(start: StartProxy) -> None:
    """Parallel streams of one key: together they deliver what the limit says, not more."""
    proxy, _ = await start(FloodsUntilHungUp(), **limited({"output_tokens": 900, "per": "day"}))
    answered = await asyncio.gather(*(ask(proxy) for _ in range(5)))
    content_events = sum(
        1
        for _, body in answered
        for event in events_of(body)
        if isinstance(event, dict) and event.get("choices") and event["choices"][0]["delta"].get("content")
    )
    assert 512 <= content_events <= 900
