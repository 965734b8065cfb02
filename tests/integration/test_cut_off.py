"""The cut-off over real HTTP: what the client gets, what the upstream is told, what is billed.

What a grant says is scripted here (`ScriptedAllowance`); grants of the ledger stand in test_quotas.py.
"""

import asyncio
import contextlib
import json
import socket
import zlib
from typing import Any

import openai
import pytest

from meter_proxy.gateway.quotas import MUST_ASK
from meter_proxy.usage import Basis, Outcome
from tests.integration.conftest import StartProxy
from tests.support import answers
from tests.support.allowance import ScriptedAllowance
from tests.support.config import KEY
from tests.support.harms import FloodsUntilHungUp, StallsAfter, Streams, StreamsWithoutLength
from tests.support.httpraw import BrokenOff, RawClient, RawResponse
from tests.support.inprocess import InProcessProxy
from tests.support.upstream import ScriptedUpstream, UpstreamExchange
from tests.support.waiting import until

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "12345678"}], "stream": True}
ASK_USAGE = {**ASK, "stream_options": {"include_usage": True}}
WORDS = answers.chat_stream(*"abcdefgh", output_tokens=8)
FINISH = {
    "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "m",
    "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}],
}  # fmt: skip


def under(proxy: InProcessProxy, grant: ScriptedAllowance) -> ScriptedAllowance:
    """Every call of `proxy` gets `grant`."""
    quotas = proxy.gateway.quotas
    quotas.grant_now = lambda call: MUST_ASK  # type: ignore[method-assign]
    quotas.grant = grant.given  # type: ignore[assignment, method-assign]
    quotas.headers = lambda grant: ()  # type: ignore[method-assign]
    return grant


def stops_after(proxy: InProcessProxy, tokens: int, how: str = "stop") -> ScriptedAllowance:
    return under(proxy, ScriptedAllowance(tokens, how, at_once=True))


def json_of(event: bytes) -> Any:
    return json.loads(event.removeprefix(b"data: "))


def split_ending(body: bytes, delivered: list[bytes]) -> list[bytes]:
    """The events that we added, after checking that `delivered` came first, byte for byte."""
    whole = b"".join(delivered)
    assert body[: len(whole)] == whole
    return [event + b"\n\n" for event in body[len(whole) :].split(b"\n\n")[:-1]]


@pytest.mark.parametrize("in_one_write", [True, False])
async def test_the_client_gets_its_finish_and_done_and_the_connection_is_kept(
    start: StartProxy, in_one_write: bool
) -> None:
    """The upstream's bytes up to the last granted token, `length`, `[DONE]`, the end of the body; the next call."""
    proxy, _ = await start(Streams(WORDS, in_one_write=in_one_write))
    async with await RawClient.connect(proxy.url) as client:
        for count in (1, 2, 3):
            stops_after(proxy, 3)
            response = await client.request("POST", CHAT, ASK, key=KEY)
            finish, done = split_ending(await response.read(), WORDS[:4])
            assert json_of(finish) == FINISH
            assert done == answers.DONE
            record = await proxy.record(count)
            assert (record.outcome, record.status) == (Outcome.QUOTA_CUT, 200)


async def test_all_that_the_upstream_had_sent_is_billed_and_it_is_told(start: StartProxy) -> None:
    """Its whole answer stood in one read: 3 tokens delivered, 8 generated. `on_disconnect` is about clients only."""
    proxy, upstream = await start(StallsAfter([b"".join(WORDS[:9])]), upstream={"on_disconnect": "drain"})
    stops_after(proxy, 3)
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        split_ending(await response.read(), WORDS[:4])
        await (await upstream.exchange()).hung_up()
    record = await proxy.record()
    assert (record.outcome, record.basis, record.output_tokens) == (Outcome.QUOTA_CUT, Basis.COUNTED, 8)


async def test_what_arrives_after_the_upstream_was_told_is_billed(start: StartProxy) -> None:
    """It was in flight, or generated before the upstream looked: also its final usage."""

    async def finishes_all_the_same(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await exchange.send_event(*WORDS[:5])
        await exchange.hung_up()
        await exchange.send_event(*WORDS[5:])
        await exchange.end()

    proxy, _ = await start(finishes_all_the_same)
    stops_after(proxy, 3)
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        split_ending(await response.read(), WORDS[:4])
    record = await proxy.record()
    assert (record.outcome, record.basis, record.output_tokens) == (Outcome.QUOTA_CUT, Basis.REPORTED, 8)


@pytest.mark.alone
async def test_an_upstream_that_ignores_the_hang_up_is_left_after_a_quarter_of_a_second(start: StartProxy) -> None:
    """Whatever `on_disconnect` says: that is about clients."""

    async def goes_on(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        while True:
            await exchange.send_event(answers.chat_event("x"))
            await asyncio.sleep(0.01)

    proxy, _ = await start(goes_on, upstream={"on_disconnect": "drain"})
    stops_after(proxy, 3)
    loop = asyncio.get_running_loop()
    async with await RawClient.connect(proxy.url) as client:
        await (await client.request("POST", CHAT, ASK, key=KEY)).read()
        cut_at = loop.time()
        record = await proxy.record()
    assert loop.time() - cut_at < 1.5
    assert record.outcome is Outcome.QUOTA_CUT
    assert 3 <= record.output_tokens < 100


async def test_the_client_has_its_end_before_the_upstream_has_reacted(start: StartProxy) -> None:
    """Last chunk included: it does not wait for the drain."""
    release = asyncio.Event()

    async def reacts_late(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await exchange.send_event(*WORDS[:6])
        await release.wait()

    proxy, _ = await start(reacts_late)
    stops_after(proxy, 2)
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        await response.read()
        assert not proxy.records
        release.set()
        await proxy.record()


async def test_the_usage_is_what_was_delivered_for_who_asked(start: StartProxy) -> None:
    """The bill may be higher: the client is told what it got."""
    proxy, _ = await start(Streams(answers.running_chat_stream(*"abcdefgh"), in_one_write=True))
    stops_after(proxy, 3)
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK_USAGE, key=KEY)
        events = (await response.read()).split(b"\n\n")
    usage = json_of(events[-3])
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    assert usage["id"] == "chatcmpl-1"
    record = await proxy.record()
    assert (record.input_tokens, record.output_tokens) == (9, 16)


async def test_who_did_not_ask_sees_no_usage_at_all(start: StartProxy) -> None:
    """Neither the running one that we asked for, nor one of our own."""
    proxy, _ = await start(
        Streams(answers.running_chat_stream(*"abcdefgh"), in_one_write=True), upstream={"running_usage": "vllm"}
    )
    stops_after(proxy, 3)
    async with await RawClient.connect(proxy.url) as client:
        body = await (await client.request("POST", CHAT, ASK, key=KEY)).read()
    assert b"usage" not in body
    assert body.count(b'"content"') == 3  # the first is empty; two tokens an event
    assert body.endswith(answers.DONE)
    assert (await proxy.record()).output_tokens == 16


async def test_an_error_ends_the_stream_in_its_own_event(start: StartProxy) -> None:
    proxy, _ = await start(Streams(WORDS))
    stops_after(proxy, 3, "error")
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK_USAGE, key=KEY)
        error, done = split_ending(await response.read(), WORDS[:4])
    assert {**json_of(error)["error"], "message": ""} == {
        "message": "", "type": "insufficient_quota", "param": None, "code": "insufficient_quota",
    }  # fmt: skip
    assert done == answers.DONE
    assert (await proxy.record()).outcome is Outcome.QUOTA_CUT


async def test_a_stream_goes_on_when_its_renewal_comes(start: StartProxy) -> None:
    """It stands meanwhile, and not a byte is lost or changed."""
    proxy, _ = await start(Streams(WORDS, in_one_write=True))
    grant = under(proxy, ScriptedAllowance(2, 3, 100))
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK_USAGE, key=KEY)
        for reached in (3, 6):
            await grant.asked()
            for event in WORDS[len(bytes(response.received).split(b"\n\n")) - 1 : reached]:
                assert await response.next_event() == event
            assert not proxy.records
            grant.answer()
        assert await response.read() == b"".join(WORDS)
    record = await proxy.record()
    assert (record.outcome, record.basis, record.output_tokens) == (Outcome.COMPLETED, Basis.REPORTED, 8)


@pytest.mark.parametrize("renewal", [100, "stop"])
async def test_a_client_that_hangs_up_at_the_wall_is_a_hang_up(start: StartProxy, renewal: int | str) -> None:
    """Whatever the renewal then says; all that was sent is billed, and the upstream told."""
    proxy, upstream = await start(StallsAfter([b"".join(WORDS[:7])]))
    grant = under(proxy, ScriptedAllowance(2, renewal))
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        await response.next_event()
        await grant.asked()
        client.close_rst()
        await (await upstream.exchange()).hung_up()
        grant.answer()
    record = await proxy.record()
    assert (record.outcome, record.output_tokens) == (Outcome.CLIENT_DISCONNECTED, 6)


@pytest.mark.parametrize("hang_up", [RawClient.close_fin, RawClient.close_rst], ids=["FIN", "RST"])
async def test_a_client_that_leaves_right_after_the_cut_was_cut(start: StartProxy, hang_up: Any) -> None:
    """While the rest is still being counted."""
    proxy, _ = await start(StallsAfter([b"".join(WORDS[:7])]))
    stops_after(proxy, 2)
    async with await RawClient.connect(proxy.url) as client:
        await (await client.request("POST", CHAT, ASK, key=KEY)).read()
        hang_up(client)
        record = await proxy.record()
    assert (record.outcome, record.output_tokens) == (Outcome.QUOTA_CUT, 6)


async def test_a_hung_up_stream_that_is_drained_ends_with_its_quota(start: StartProxy) -> None:
    """`on_disconnect: drain` generates for nobody, but not beyond the quota; and nothing stays open."""
    proxy, upstream = await start(FloodsUntilHungUp(answers.chat_event("x")), upstream={"on_disconnect": "drain"})
    stops_after(proxy, 2000)
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        await response.next_event()
        client.close_rst()
        await (await upstream.exchange()).hung_up()
    record = await proxy.record()
    assert record.outcome is Outcome.CLIENT_DISCONNECTED
    assert record.output_tokens >= 2000


async def stalled_at_the_cut(
    start: StartProxy, stack: contextlib.AsyncExitStack, **members: Any
) -> tuple[InProcessProxy, ScriptedUpstream, RawResponse]:
    """A client that has not begun to read when the event arrives with which its quota ends.

    A meter that takes usage out hands out whole events only: so the write that makes the client slow is the last one.
    """
    may_send = asyncio.Event()

    async def sends_a_big_event(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await may_send.wait()
        await exchange.send_event(answers.chat_event("x" * 900_000), *WORDS[1:4])
        await exchange.hung_up()
        while True:  # and goes on all the same, until the connection is closed
            await exchange.send_event(WORDS[4])
            await asyncio.sleep(0.01)

    proxy, upstream = await start(sends_a_big_event, **members)
    stops_after(proxy, 1)
    client = await stack.enter_async_context(await RawClient.connect(proxy.url, receive_buffer_bytes=4096))
    response = await client.request("POST", CHAT, ASK, key=KEY)
    (exchange,) = proxy.gateway.in_flight
    sock = exchange._client.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    may_send.set()
    return proxy, upstream, response


@pytest.mark.alone
async def test_a_client_that_does_not_read_does_not_keep_the_upstream_at_work(start: StartProxy) -> None:
    """The upstream is told and left at once; the client gets all of its end when it reads on."""
    async with contextlib.AsyncExitStack() as stack:
        proxy, upstream, response = await stalled_at_the_cut(start, stack)
        exchange = await upstream.exchange()
        await exchange.hung_up(within_s=2)
        await until(lambda: exchange.peer_reset, "the upstream to be left", within_s=2)
        assert not proxy.records
        body = await response.read()
        record = await proxy.record()
    assert body.endswith(answers.DONE)
    assert body.count(b'"content"') == 1
    assert record.outcome is Outcome.QUOTA_CUT
    assert 4 <= record.output_tokens < 100


async def test_a_client_that_never_reads_its_end_is_given_up(start: StartProxy) -> None:
    """`client_stall`: the exchange is settled as what it was, with all that the upstream sent."""
    async with contextlib.AsyncExitStack() as stack:
        proxy, _, _ = await stalled_at_the_cut(start, stack, limits={"client_stall": "300ms"})
        record = await proxy.record()
    assert record.outcome is Outcome.QUOTA_CUT
    assert 4 <= record.output_tokens < 100


async def test_an_http_1_0_client_has_its_end_with_the_connection(start: StartProxy) -> None:
    proxy, _ = await start(StreamsWithoutLength(WORDS))
    stops_after(proxy, 3)
    body = json.dumps(ASK).encode()
    async with await RawClient.connect(proxy.url) as client:
        await client.send(
            f"POST {CHAT} HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head, _, answer = (await client.read_to_end()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"content-length" not in head.lower()
    finish, done = split_ending(answer, WORDS[:4])
    assert (json_of(finish), done) == (FINISH, answers.DONE)
    assert (await proxy.record()).outcome is Outcome.QUOTA_CUT


async def test_a_stream_with_a_length_loses_it(start: StartProxy) -> None:
    """Some upstreams know how long their stream is; once it may be cut, nobody does."""

    async def with_length(exchange: UpstreamExchange) -> None:
        await exchange.answer(b"".join(WORDS), headers=[("Content-Type", "text/event-stream")])

    proxy, _ = await start(with_length)
    stops_after(proxy, 3)
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK_USAGE, key=KEY)
        assert "content-length" not in response.headers
        usage_and_all = split_ending(await response.read(), WORDS[:4])
    assert usage_and_all[-1] == answers.DONE
    assert (await proxy.record()).output_tokens == 8


async def test_a_compressed_stream_is_broken_off(start: StartProxy) -> None:
    """It cannot be ended in our words; a client must not take it for whole. The bill is right all the same."""

    async def compresses(exchange: UpstreamExchange) -> None:
        await exchange.start_stream(headers=[("Content-Encoding", "gzip")])
        coder = zlib.compressobj(wbits=31)
        for event in WORDS[:6]:
            await exchange.send_event(coder.compress(event) + coder.flush(zlib.Z_SYNC_FLUSH))
        await exchange.hung_up()

    proxy, _ = await start(compresses)
    stops_after(proxy, 3)
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        with pytest.raises(BrokenOff):
            await response.read()
    record = await proxy.record()
    assert (record.outcome, record.output_tokens) == (Outcome.QUOTA_CUT, 5)


@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"])
async def test_streams_with_other_line_ends_are_cut_between_events(start: StartProxy, line_end: bytes) -> None:
    events = [event.replace(b"\n", line_end) for event in WORDS]
    proxy, _ = await start(Streams(events, in_one_write=True))
    stops_after(proxy, 3)
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        finish, done = split_ending(await response.read(), events[:4])
    assert (json_of(finish), done) == (FINISH, answers.DONE)


async def test_the_shutdown_at_the_wall_drains_and_settles(start: StartProxy) -> None:
    """Cut off by us, not by the quota."""
    proxy, _ = await start(StallsAfter([b"".join(WORDS[:7])]))
    grant = under(proxy, ScriptedAllowance(2, 100))
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        await response.next_event()
        await grant.asked()
        await proxy.gateway.drain(0)
        record = await proxy.record()
    assert (record.outcome, record.output_tokens) == (Outcome.DRAINED, 6)


# The SDK's own ways to read a stream.


def sdk(proxy: InProcessProxy) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=proxy.url, api_key=KEY, max_retries=0)


def tool_call(choice: int, arguments: str, name: str | None = None) -> bytes:
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    call = {"index": 0, "function": function}
    if name is not None:
        call |= {"id": f"call_{choice}", "type": "function"}
    delta = {"tool_calls": [call]}
    return answers.event({
        "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": choice, "delta": delta, "finish_reason": None}],
    })  # fmt: skip


async def test_the_sdks_stream_helper_ends_with_an_unfinished_tool_call(start: StartProxy) -> None:
    """n = 2, both calls in flight: each choice is accumulated as far as it came, and ends with `length`."""
    events = [tool_call(0, "", "f"), tool_call(1, "", "g"), *(tool_call(n % 2, '{"a"') for n in range(8))]
    proxy, _ = await start(Streams(events, in_one_write=True))
    stops_after(proxy, 4)
    async with (
        sdk(proxy) as client,
        client.chat.completions.stream(
            model="m", messages=[{"role": "user", "content": "x"}], n=2, stream_options={"include_usage": True}
        ) as stream,
    ):
        async for _ in stream:
            pass
        whole = stream.current_completion_snapshot
        with pytest.raises(openai.LengthFinishReasonError):  # of every `length`, the model's own too
            await stream.get_final_completion()
    assert [choice.finish_reason for choice in whole.choices] == ["length", "length"]
    arguments = [choice.message.tool_calls[0].function.arguments for choice in whole.choices]  # type: ignore[index]
    assert arguments == ['{"a"', '{"a"']
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 4


async def test_the_sdks_stream_helper_ends_with_the_text_so_far(start: StartProxy) -> None:
    proxy, _ = await start(Streams(WORDS))
    stops_after(proxy, 3)
    async with (
        sdk(proxy) as client,
        client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "x"}]) as stream,
    ):
        kinds = [event.type async for event in stream]
        whole = stream.current_completion_snapshot
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("abc", "length")
    assert "content.done" in kinds


async def test_the_sdks_loop_over_completions_ends_for_every_prompt(start: StartProxy) -> None:
    """Two prompts are two choices."""

    def text(index: int) -> bytes:
        return answers.event({
            "id": "c", "object": "text_completion", "created": 1, "model": "m",
            "choices": [{"index": index, "text": "x", "finish_reason": None, "logprobs": None}],
        })  # fmt: skip

    proxy, _ = await start(Streams([text(n % 2) for n in range(9)], in_one_write=True))
    stops_after(proxy, 5)
    async with sdk(proxy) as client:
        stream = await client.completions.create(model="m", prompt=["one", "two"], stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "xxxxx"
    assert {chunk.choices[0].index: chunk.choices[0].finish_reason for chunk in chunks} == {0: "length", 1: "length"}
    assert {chunk.object for chunk in chunks} == {"text_completion"}


async def test_curl_ends_well(start: StartProxy) -> None:
    """Exit 0: the body has its end."""
    proxy, _ = await start(Streams(WORDS))
    stops_after(proxy, 3)
    curl = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-N", "--max-time", "10", "-H", f"Authorization: Bearer {KEY}",
        "-H", "Content-Type: application/json", "-d", json.dumps(ASK), f"{proxy.url}/chat/completions",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    body, _ = await curl.communicate()
    assert curl.returncode == 0
    finish, done = split_ending(body, WORDS[:4])
    assert (json_of(finish), done) == (FINISH, answers.DONE)
