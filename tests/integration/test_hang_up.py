"""The client hangs up: at every instant, in every manner. Each test states the bill."""

import asyncio
from collections.abc import Callable

import pytest

from meter_proxy.usage import Basis, Outcome
from tests.integration.conftest import StartProxy
from tests.support import answers
from tests.support.config import KEY
from tests.support.harms import FloodsUntilHungUp, NeverAnswers, StallsAfter, Streams
from tests.support.httpraw import RawClient, request_bytes
from tests.support.upstream import UpstreamExchange
from tests.support.waiting import until

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "12345678"}], "stream": True}
PLAIN = {"model": "m", "messages": [{"role": "user", "content": "12345678"}]}
EVENTS = answers.chat_stream("a", "b", "c", "d", output_tokens=9)

hang_ups = pytest.mark.parametrize("hang_up", [RawClient.close_fin, RawClient.close_rst], ids=["FIN", "RST"])
HangUp = Callable[[RawClient], None]


async def read_events(client: RawClient, count: int, ask: dict[str, object] = ASK) -> None:
    """Ask, and read that many events of the answer."""
    response = await client.request("POST", CHAT, ask, key=KEY)
    for _ in range(count):
        assert await response.next_event() is not None


@hang_ups
async def test_during_the_connect_bills_nothing(start: StartProxy, hang_up: HangUp) -> None:
    """Not a byte reached the upstream: nothing is billed, whatever `bill_prompt` says."""
    # 192.0.2.0/24 is reserved for documentation; a full backlog on loopback never accepts either.
    import socket

    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        proxy, _ = await start(
            NeverAnswers(), upstream={"base_url": f"http://127.0.0.1:{port}/v1", "bill_prompt": "always"}
        )
        async with await RawClient.connect(proxy.url) as client:
            await client.send(request_bytes("POST", CHAT, ASK, key=KEY))
            await until(lambda: proxy.gateway.in_flight, "the request to be admitted")
            hang_up(client)
            record = await proxy.record()
        for filler in fillers:
            filler.close()
    assert (record.outcome, record.status) == (Outcome.CLIENT_DISCONNECTED, None)
    assert (record.input_tokens, record.output_tokens, record.basis, record.input_basis) == (
        0,
        0,
        Basis.NONE,
        Basis.NONE,
    )


@hang_ups
@pytest.mark.parametrize(("policy", "billed"), [("on_first_token", 0), ("never", 0), ("always", 2)])
async def test_before_the_first_byte_bills_the_prompt_only_if_told_so(
    start: StartProxy, hang_up: HangUp, policy: str, billed: int
) -> None:
    """By default nothing; `bill_prompt: always` bills the estimated input."""
    proxy, upstream = await start(NeverAnswers(), upstream={"bill_prompt": policy})
    async with await RawClient.connect(proxy.url) as client:
        await client.send(request_bytes("POST", CHAT, ASK, key=KEY))
        exchange = await upstream.exchange(0)
        hang_up(client)
        record = await proxy.record()
    await exchange.hung_up()
    assert (record.outcome, record.status, record.ttft_ms) == (Outcome.CLIENT_DISCONNECTED, None, None)
    assert (record.output_tokens, record.basis) == (0, Basis.NONE)
    assert record.input_tokens == billed
    assert record.input_basis == (Basis.ESTIMATED if billed else Basis.NONE)


@hang_ups
async def test_after_the_head_but_before_the_first_token_bills_nothing(start: StartProxy, hang_up: HangUp) -> None:
    """The role event is no token."""
    proxy, upstream = await start(StallsAfter(EVENTS[:1]))
    async with await RawClient.connect(proxy.url) as client:
        await read_events(client, 1)
        hang_up(client)
        record = await proxy.record()
    await (await upstream.exchange()).hung_up()
    assert (record.outcome, record.status, record.basis) == (Outcome.CLIENT_DISCONNECTED, 200, Basis.NONE)
    assert (record.input_tokens, record.output_tokens) == (0, 0)


@hang_ups
async def test_between_two_events_bills_what_was_generated(start: StartProxy, hang_up: HangUp) -> None:
    """Without running usage: one per content event that reached us; the input by its text."""
    proxy, upstream = await start(StallsAfter(EVENTS[:3]))
    async with await RawClient.connect(proxy.url) as client:
        await read_events(client, 3)
        hang_up(client)
        record = await proxy.record()
    await (await upstream.exchange()).hung_up()
    assert (record.outcome, record.basis, record.output_tokens) == (Outcome.CLIENT_DISCONNECTED, Basis.COUNTED, 2)
    assert (record.input_basis, record.input_tokens) == (Basis.ESTIMATED, 2)
    assert record.ttft_ms is not None


@hang_ups
async def test_inside_an_event_bills_the_whole_events(start: StartProxy, hang_up: HangUp) -> None:
    """Half an event is no token."""
    proxy, _ = await start(StallsAfter([*EVENTS[:3], EVENTS[3][:40]]))
    async with await RawClient.connect(proxy.url) as client:
        await read_events(client, 3)
        hang_up(client)
        record = await proxy.record()
    assert (record.basis, record.output_tokens) == (Basis.COUNTED, 2)


@hang_ups
async def test_running_usage_makes_the_bill_exact(start: StartProxy, hang_up: HangUp) -> None:
    """Two tokens an event: the last running count is billed, and the client saw none of it."""
    events = answers.running_chat_stream("a", "b", "c")
    proxy, upstream = await start(StallsAfter(events[:3]), upstream={"running_usage": "vllm"})
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        for _ in range(3):
            assert b"usage" not in (await response.next_event() or b"")
        hang_up(client)
        record = await proxy.record()
    assert (record.basis, record.output_tokens) == (Basis.RUNNING, 4)
    assert (record.input_basis, record.input_tokens) == (Basis.RUNNING, 9)
    assert upstream.posts[0].json()["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


async def test_running_usage_is_asked_for_where_the_server_says_who_it_is(start: StartProxy) -> None:
    """`auto`: the identity endpoint decides, before the first stream."""

    proxy, upstream = await start(Streams(answers.running_chat_stream("a")), upstream={"running_usage": "auto"})
    upstream.on_get("/version", lambda exchange: exchange.answer(b'{"version":"0.11.0"}'))
    async with await RawClient.connect(proxy.url) as client:
        await (await client.request("POST", CHAT, ASK, key=KEY)).read()
    assert upstream.posts[0].json()["stream_options"]["continuous_usage_stats"] is True


@hang_ups
async def test_after_the_finish_is_completed(start: StartProxy, hang_up: HangUp) -> None:
    """The client had all it wanted; the usage that was still to come is drained if it comes."""
    proxy, _ = await start(StallsAfter(EVENTS[:6]))
    async with await RawClient.connect(proxy.url) as client:
        await read_events(client, 6)
        hang_up(client)
        record = await proxy.record()
    assert (record.outcome, record.basis, record.output_tokens) == (Outcome.COMPLETED, Basis.COUNTED, 4)


@hang_ups
async def test_after_the_final_usage_is_completed_and_reported(start: StartProxy, hang_up: HangUp) -> None:
    """The reported usage is the bill, though [DONE] never came."""
    proxy, _ = await start(StallsAfter(EVENTS[:7]))
    async with await RawClient.connect(proxy.url) as client:
        await read_events(client, 7, {**ASK, "stream_options": {"include_usage": True}})
        hang_up(client)
        record = await proxy.record()
    assert (record.outcome, record.basis, record.output_tokens) == (Outcome.COMPLETED, Basis.REPORTED, 9)


@hang_ups
async def test_after_done_is_completed_and_reported(start: StartProxy, hang_up: HangUp) -> None:
    """SDKs close right after [DONE], before the last chunk."""
    proxy, _ = await start(StallsAfter(EVENTS))
    async with await RawClient.connect(proxy.url) as client:
        await read_events(client, 7)
        hang_up(client)
        record = await proxy.record()
    assert (record.outcome, record.basis, record.output_tokens) == (Outcome.COMPLETED, Basis.REPORTED, 9)


async def test_what_the_upstream_had_already_sent_is_counted(start: StartProxy) -> None:
    """Half-close, not close: events that were on their way at the hang-up were generated, and are billed."""

    async def sends_more_when_told(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await exchange.send_event(*EVENTS[:2])
        await exchange.hung_up()
        await exchange.send_event(*EVENTS[2:4])  # as if it had left before the FIN was seen
        exchange.close()

    proxy, _ = await start(sends_more_when_told)
    async with await RawClient.connect(proxy.url) as client:
        await read_events(client, 2)
        client.close_fin()
        record = await proxy.record()
    assert (record.outcome, record.basis, record.output_tokens) == (Outcome.CLIENT_DISCONNECTED, Basis.COUNTED, 3)


async def test_an_upstream_that_ignores_the_hang_up_is_left_after_250_ms(start: StartProxy) -> None:
    """The drain is bounded: then the connection is closed."""

    async def goes_on(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        while True:
            await exchange.send_event(EVENTS[1])
            await asyncio.sleep(0.02)

    proxy, upstream = await start(goes_on)
    async with await RawClient.connect(proxy.url) as client:
        await read_events(client, 1)
        client.close_fin()
        record = await proxy.record()
    assert 250 <= record.duration_ms < 1_000
    assert record.outcome is Outcome.CLIENT_DISCONNECTED
    await until(lambda: upstream.open_connections == 0, "the upstream connection to be closed")


async def test_drain_bills_the_whole_answer(start: StartProxy) -> None:
    """`on_disconnect: drain`: the upstream runs to its end, and the reported usage is the bill."""
    proceed = asyncio.Event()

    async def waits(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await exchange.send_event(*EVENTS[:2])
        await proceed.wait()
        assert not exchange.peer_hung_up
        await exchange.send_event(*EVENTS[2:])
        await exchange.end()

    proxy, _ = await start(waits, upstream={"on_disconnect": "drain"})
    async with await RawClient.connect(proxy.url) as client:
        await read_events(client, 2)
        client.close_fin()
    await until(lambda: next(iter(proxy.gateway.in_flight)).relay.client_lost, "the hang-up to be noticed")
    proceed.set()
    record = await proxy.record()
    assert (record.outcome, record.basis, record.output_tokens) == (Outcome.CLIENT_DISCONNECTED, Basis.REPORTED, 9)


async def test_drain_for_is_bounded(start: StartProxy) -> None:
    """`drain_for: 300ms`: what came until then is billed, then the upstream is told to stop."""
    proxy, upstream = await start(StallsAfter(EVENTS[:3]), upstream={"on_disconnect": {"drain_for": "300ms"}})
    async with await RawClient.connect(proxy.url) as client:
        await read_events(client, 3)
        client.close_fin()
        record = await proxy.record()
    assert record.duration_ms >= 300
    assert (record.outcome, record.basis, record.output_tokens) == (Outcome.CLIENT_DISCONNECTED, Basis.COUNTED, 2)
    await (await upstream.exchange()).hung_up()


@hang_ups
async def test_plain_call_hung_up_is_billed_if_the_answer_was_on_its_way(start: StartProxy, hang_up: HangUp) -> None:
    """Upstream cancelled and drained: what it still answers is the bill, else nothing."""

    async def answers_late(exchange: UpstreamExchange) -> None:
        await exchange.hung_up()
        await exchange.answer(answers.chat_json())

    proxy, upstream = await start(answers_late)
    async with await RawClient.connect(proxy.url) as client:
        await client.send(request_bytes("POST", CHAT, PLAIN, key=KEY))
        await upstream.exchange(0)
        hang_up(client)
        record = await proxy.record()
    assert (record.outcome, record.basis, record.output_tokens) == (Outcome.CLIENT_DISCONNECTED, Basis.REPORTED, 3)
    assert (record.input_tokens, record.status) == (9, None)


@hang_ups
async def test_plain_call_hung_up_without_answer_bills_nothing(start: StartProxy, hang_up: HangUp) -> None:
    """As a stream before its first token."""
    proxy, upstream = await start(NeverAnswers())
    async with await RawClient.connect(proxy.url) as client:
        await client.send(request_bytes("POST", CHAT, PLAIN, key=KEY))
        await upstream.exchange(0)
        hang_up(client)
        record = await proxy.record()
    assert (record.outcome, record.basis, record.input_tokens) == (Outcome.CLIENT_DISCONNECTED, Basis.NONE, 0)


async def test_a_client_that_never_reads_is_cut_after_the_stall_time(start: StartProxy) -> None:
    """The upstream is held back, memory stays bounded, and what was generated is billed."""
    proxy, upstream = await start(FloodsUntilHungUp(), limits={"client_stall": "300ms"})
    async with await RawClient.connect(proxy.url, receive_buffer_bytes=4096) as client:
        await client.send(request_bytes("POST", CHAT, ASK, key=KEY))
        record = await proxy.record()
    assert (record.outcome, record.basis) == (Outcome.CLIENT_DISCONNECTED, Basis.COUNTED)
    exchange = await upstream.exchange(0)
    await exchange.hung_up()
    assert record.output_tokens > 0
    # Kernel buffers on both sides, 64 KiB of ours and one read: far less than a flood.
    assert exchange.sent_bytes < 16_000_000


async def test_a_slow_client_is_not_cut(start: StartProxy) -> None:
    """Reading slowly is allowed; only reading nothing is not."""
    events = [answers.chat_event("x" * 20_000) for _ in range(100)]
    proxy, _ = await start(Streams([*events, answers.DONE]), limits={"client_stall": "300ms"})
    async with await RawClient.connect(proxy.url, receive_buffer_bytes=4096) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        count = 0
        while await response.next_event() is not None:
            count += 1
            if count % 10 == 0:
                await asyncio.sleep(0.1)
    assert count == 101
    assert (await proxy.record()).outcome is Outcome.COMPLETED


async def test_request_that_would_outlive_a_hang_up_loses_that_header(start: StartProxy) -> None:
    """llama.cpp goes on generating for an X-Conversation-Id: it does not get one."""
    proxy, upstream = await start(Streams(EVENTS))
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY, headers=[("X-Conversation-Id", "c1")])
        await response.read()
    assert "x-conversation-id" not in upstream.posts[0].headers
    assert "authorization" not in upstream.posts[0].headers


async def test_half_close_by_the_client_counts_as_a_hang_up(start: StartProxy) -> None:
    """A FIN behind the request says that nobody waits: documented, as in aiohttp's own server."""
    proxy, _ = await start(StallsAfter(EVENTS[:3]))
    async with await RawClient.connect(proxy.url) as client:
        await read_events(client, 3)
        client.half_close()
        record = await proxy.record()
    assert record.outcome is Outcome.CLIENT_DISCONNECTED
