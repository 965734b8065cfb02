"""The drain: nothing new is taken, what is in flight may end, what is cut is billed as `drained`."""

import asyncio
import json

import pytest

from meter_proxy.usage import Basis, Outcome
from tests.integration.conftest import StartProxy
from tests.support import answers
from tests.support.config import KEY
from tests.support.harms import FloodsUntilHungUp, NeverAnswers, StallsAfter
from tests.support.httpraw import BrokenOff, RawClient, request_bytes
from tests.support.upstream import UpstreamExchange
from tests.support.waiting import until

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "12345678"}], "stream": True}
EVENTS = answers.chat_stream("a", "b", "c", "d", output_tokens=9)


async def test_new_requests_are_503_draining_and_streams_may_end(start: StartProxy) -> None:
    """On kept connections, and for a body that was still on its way; the open stream ends as if nothing were."""
    proceed = asyncio.Event()

    async def waits(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await exchange.send_event(*EVENTS[:2])
        await proceed.wait()
        await exchange.send_event(*EVENTS[2:])
        await exchange.end()

    proxy, _ = await start(waits)
    request = request_bytes("POST", CHAT, json.dumps(ASK).encode(), key=KEY)
    async with (
        await RawClient.connect(proxy.url) as streaming,
        await RawClient.connect(proxy.url) as kept,
        await RawClient.connect(proxy.url) as late,
    ):
        response = await streaming.request("POST", CHAT, ASK, key=KEY)
        await response.next_event()
        await (await kept.request("GET", "/v1/models", key=KEY)).read()
        await late.send(request[:-10])
        draining = asyncio.create_task(proxy.gateway.drain(60))
        await until(lambda: proxy.gateway.draining, "the drain to begin")
        await late.send(request[-10:])
        for refused in (await late.response(), await kept.request("POST", CHAT, ASK, key=KEY)):
            assert refused.status == 503
            assert refused.headers["retry-after"] == "1"
            assert (await refused.json())["error"]["code"] == "draining"
        proceed.set()
        assert await response.read() == b"".join(EVENTS[:-2] + EVENTS[-1:])
        await draining
    record = await proxy.record()
    assert (record.outcome, record.basis, record.output_tokens) == (Outcome.COMPLETED, Basis.REPORTED, 9)


async def test_what_is_cut_after_the_drain_time_is_billed_as_drained(start: StartProxy) -> None:
    """As for a hang-up; the client sees the break, the upstream is told."""
    proxy, upstream = await start(StallsAfter(EVENTS[:3]))
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        for _ in range(3):
            await response.next_event()
        await proxy.gateway.drain(0.05)
        assert [(record.outcome, record.basis, record.output_tokens) for record in proxy.records] == [
            (Outcome.DRAINED, Basis.COUNTED, 2)
        ]
        with pytest.raises(BrokenOff):
            await response.read()
    await (await upstream.exchange()).hung_up()


async def test_cut_before_the_answer_bills_nothing(start: StartProxy) -> None:
    """Nothing was generated as far as we know."""
    proxy, upstream = await start(NeverAnswers())
    async with await RawClient.connect(proxy.url) as client:
        await client.send(request_bytes("POST", CHAT, ASK, key=KEY))
        await upstream.exchange(0)
        await proxy.gateway.drain(0.05)
        assert [(record.outcome, record.status, record.basis) for record in proxy.records] == [
            (Outcome.DRAINED, None, Basis.NONE)
        ]
        assert await client.ended()


async def test_a_client_that_does_not_read_does_not_hold_up_the_shutdown(start: StartProxy) -> None:
    """Settled within the two seconds after the cut, though bytes for it are unsent."""
    proxy, _ = await start(FloodsUntilHungUp())
    async with await RawClient.connect(proxy.url, receive_buffer_bytes=4096) as client:
        await client.send(request_bytes("POST", CHAT, ASK, key=KEY))
        exchange = await until(lambda: next(iter(proxy.gateway.in_flight), None), "the request to be admitted")
        client_side = await until(lambda: exchange._client, "the client's side")
        await until(client_side.unsent_bytes, "bytes to be unsent")
        await proxy.gateway.drain(0.05)
        assert [record.outcome for record in proxy.records] == [Outcome.DRAINED]


@pytest.mark.parametrize("policy", ["drain", {"drain_for": "1h"}])
async def test_an_answer_drained_for_a_client_long_gone_is_settled_too(start: StartProxy, policy: object) -> None:
    """It had hung up, so that is its outcome; lost it must not be."""
    proxy, _ = await start(StallsAfter(EVENTS[:3]), upstream={"on_disconnect": policy})
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        for _ in range(3):
            await response.next_event()
        client.close_fin()
        await until(lambda: next(iter(proxy.gateway.in_flight)).relay.client_lost, "the hang-up to be noticed")
    await proxy.gateway.drain(0.05)
    assert [(record.outcome, record.basis, record.output_tokens) for record in proxy.records] == [
        (Outcome.CLIENT_DISCONNECTED, Basis.COUNTED, 2)
    ]


async def test_a_hurried_shutdown_cuts_at_once(start: StartProxy) -> None:
    """Whoever cancels the drain is in a hurry, not careless: everything is settled all the same."""
    proxy, _ = await start(StallsAfter(EVENTS[:3]))
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        for _ in range(3):
            await response.next_event()
        draining = asyncio.create_task(proxy.gateway.drain(60))
        await until(lambda: proxy.gateway.draining, "the drain to begin")
        draining.cancel()
        await draining
        assert [record.outcome for record in proxy.records] == [Outcome.DRAINED]
