"""One stream through the whole data path: what the client gets, what the upstream got, what is billed."""

import asyncio

import pytest

from meter_proxy.usage import Basis, Outcome
from tests.integration.conftest import StartProxy
from tests.support import answers
from tests.support.config import KEY
from tests.support.harms import (
    Answers,
    CompressesUnasked,
    HangsUpAfter,
    HangsUpBeforeAnswer,
    NeverAnswers,
    RefusesMember,
    ResetsMidEvent,
    SendsByteByByte,
    StallsAfter,
    Streams,
    StreamsOnlyWhatIsAcknowledged,
    StreamsWithoutLength,
)
from tests.support.httpraw import BrokenOff, RawClient

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "write a poem"}]
ASK = {"model": "m", "messages": MESSAGES, "stream": True}
ASK_USAGE = {**ASK, "stream_options": {"include_usage": True}}
EVENTS = answers.chat_stream("Hel", "lo", output_tokens=5)
WITHOUT_USAGE = EVENTS[:-2] + EVENTS[-1:]


async def test_a_stream_is_billed_as_reported(start: StartProxy) -> None:
    """The final usage is the bill; the client that did not ask for it does not see it."""
    proxy, upstream = await start(Streams(EVENTS))
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        assert response.status == 200
        assert await response.read() == b"".join(WITHOUT_USAGE)
    record = await proxy.record()
    assert (record.input_tokens, record.output_tokens) == (9, 5)
    assert (record.basis, record.input_basis, record.outcome) == (Basis.REPORTED, Basis.REPORTED, Outcome.COMPLETED)
    assert (record.key, record.model, record.response_model, record.stream) == ("alice", "m", "m", True)
    assert record.ttft_ms is not None
    assert upstream.posts[0].json() == ASK_USAGE


async def test_usage_that_the_client_asked_for_is_never_touched(start: StartProxy) -> None:
    """Same bytes as the upstream's, request and answer."""
    proxy, upstream = await start(Streams(EVENTS))
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK_USAGE, key=KEY)
        assert await response.read() == b"".join(EVENTS)
    assert (await proxy.record()).output_tokens == 5
    assert upstream.posts[0].json() == ASK_USAGE


async def test_a_client_cannot_switch_metering_off(start: StartProxy) -> None:
    """`include_usage: false` is answered as wished, and metered all the same."""
    proxy, upstream = await start(Streams(EVENTS))
    async with await RawClient.connect(proxy.url) as client:
        ask = {**ASK, "stream_options": {"include_usage": False}}
        response = await client.request("POST", CHAT, ask, key=KEY)
        assert await response.read() == b"".join(WITHOUT_USAGE)
    assert (await proxy.record()).basis is Basis.REPORTED
    assert upstream.posts[0].json()["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("ask", [ASK, ASK_USAGE], ids=["usage taken out", "as it comes"])
async def test_no_event_waits_for_the_next(start: StartProxy, ask: dict[str, object]) -> None:
    """An upstream that sends on only when the client has the last event never stands still."""
    script = StreamsOnlyWhatIsAcknowledged(EVENTS)
    proxy, _ = await start(script)
    expected = EVENTS if ask is ASK_USAGE else WITHOUT_USAGE
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ask, key=KEY)
        for event in expected:
            if event == answers.DONE and ask is ASK:
                script.acknowledged.release()  # the usage event, which this client never sees
            assert await response.next_event() == event
            script.acknowledged.release()
        assert await response.next_event() is None
    await proxy.record()


@pytest.mark.parametrize(
    "script",
    [SendsByteByByte(EVENTS), Streams(EVENTS, in_one_write=True), StreamsWithoutLength(EVENTS)],
    ids=["byte by byte", "in one write", "closed at its end"],
)
async def test_however_the_upstream_writes_the_client_gets_the_same(start: StartProxy, script: Streams) -> None:
    """Payload and bill do not depend on how bytes were cut or framed."""
    proxy, _ = await start(script)
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        assert await response.read() == b"".join(WITHOUT_USAGE)
    record = await proxy.record()
    assert (record.output_tokens, record.basis, record.outcome) == (5, Basis.REPORTED, Outcome.COMPLETED)


async def test_connections_are_kept_on_both_sides(start: StartProxy) -> None:
    """Three exchanges on one client connection use one upstream connection."""
    proxy, upstream = await start(Streams(EVENTS))
    async with await RawClient.connect(proxy.url) as client:
        for count in (1, 2, 3):
            response = await client.request("POST", CHAT, ASK, key=KEY)
            await response.read()
            await proxy.record(count)
    assert upstream.connections == 1


async def test_a_dead_kept_connection_is_replaced_unnoticed(start: StartProxy) -> None:
    """The one case in which a written request is written again: no byte of an answer had come."""
    proxy, upstream = await start(Streams(EVENTS))
    async with await RawClient.connect(proxy.url) as client:
        await (await client.request("POST", CHAT, ASK, key=KEY)).read()
        upstream.then(HangsUpBeforeAnswer())
        response = await client.request("POST", CHAT, ASK, key=KEY)
        assert response.status == 200
        await response.read()
    assert (await proxy.record(2)).outcome is Outcome.COMPLETED
    assert len(upstream.posts) == 3


async def test_a_fresh_connection_that_dies_is_not_asked_again(start: StartProxy) -> None:
    """A request that may have been read is never sent twice: 502, and nothing billed."""
    proxy, upstream = await start(HangsUpBeforeAnswer())
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        assert response.status == 502
        assert (await response.json())["error"]["code"] == "upstream_unavailable"
    record = await proxy.record()
    assert (record.outcome, record.status, record.basis) == (Outcome.UPSTREAM_FAILED, 502, Basis.NONE)
    assert (record.input_tokens, record.output_tokens, record.cost_nano_usd) == (0, 0, 0)
    assert len(upstream.posts) == 1


@pytest.mark.parametrize("streamed", [True, False])
async def test_http_1_0_clients_are_served(start: StartProxy, streamed: bool) -> None:
    """No chunks for them: the end of the stream is the end of the connection."""
    proxy, _ = await start(Streams(EVENTS) if streamed else Answers(answers.chat_json()))
    async with await RawClient.connect(proxy.url) as client:
        body = b'{"model":"m","messages":[],"stream":%s}' % (b"true" if streamed else b"false")
        await client.send(
            b"POST /v1/chat/completions HTTP/1.0\r\nAuthorization: Bearer %b\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (KEY.encode(), len(body), body)
        )
        raw = await client.read_to_end()
    head, _, payload = raw.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert payload == (b"".join(WITHOUT_USAGE) if streamed else answers.chat_json())
    await proxy.record()


async def test_upstream_break_is_seen_by_the_client_and_billed_as_far_as_it_came(start: StartProxy) -> None:
    """Never a faked end: the client's body breaks off where the upstream's did."""
    proxy, _ = await start(HangsUpAfter(EVENTS[:3]))
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        with pytest.raises(BrokenOff):
            await response.read()
        assert response.received == b"".join(EVENTS[:3])
    record = await proxy.record()
    assert (record.outcome, record.basis, record.output_tokens) == (Outcome.UPSTREAM_FAILED, Basis.COUNTED, 2)
    assert record.status == 200


async def test_upstream_reset_inside_an_event_bills_the_whole_events(start: StartProxy) -> None:
    """Half an event is no token."""
    script = ResetsMidEvent(EVENTS[:3])
    proxy, _ = await start(script)
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        for event in EVENTS[:3]:
            assert await response.next_event() == event
        script.proceed.set()
        with pytest.raises(BrokenOff):
            await response.read()
    record = await proxy.record()
    assert (record.outcome, record.output_tokens) == (Outcome.UPSTREAM_FAILED, 2)


async def test_upstream_down_is_502_and_a_record_of_nothing(start: StartProxy) -> None:
    """The exchange was admitted, so it has a record; it cost nothing."""
    proxy, _ = await start(NeverAnswers(), upstream={"base_url": "http://127.0.0.1:1"})
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        assert response.status == 502
    record = await proxy.record()
    assert (record.outcome, record.basis, record.input_basis) == (Outcome.UPSTREAM_FAILED, Basis.NONE, Basis.NONE)


async def test_upstream_without_answer_is_504_after_first_byte_timeout(start: StartProxy) -> None:
    """Slow is 504, and the upstream is told to stop."""
    proxy, upstream = await start(NeverAnswers(), upstream={"timeouts": {"first_byte": "100ms"}})
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        assert response.status == 504
        assert (await response.json())["error"]["code"] == "upstream_timeout"
    assert (await proxy.record()).outcome is Outcome.UPSTREAM_TIMEOUT
    await (await upstream.exchange()).hung_up()


async def test_upstream_that_falls_silent_is_cut_after_idle_timeout(start: StartProxy) -> None:
    """What was generated is billed; the client sees the break."""
    proxy, _ = await start(StallsAfter(EVENTS[:3]), upstream={"timeouts": {"idle": "200ms"}})
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        with pytest.raises(BrokenOff):
            await response.read()
    record = await proxy.record()
    assert (record.outcome, record.output_tokens) == (Outcome.UPSTREAM_TIMEOUT, 2)


async def test_a_refused_injection_is_asked_again_once_and_remembered(start: StartProxy) -> None:
    """The client never sees the refusal; the next request is not tried with the field again."""
    proxy, upstream = await start(RefusesMember(WITHOUT_USAGE))
    async with await RawClient.connect(proxy.url) as client:
        for count in (1, 2):
            response = await client.request("POST", CHAT, ASK, key=KEY)
            assert response.status == 200
            assert await response.read() == b"".join(WITHOUT_USAGE)
            record = await proxy.record(count)
            assert (record.basis, record.output_tokens, record.outcome) == (Basis.COUNTED, 2, Outcome.COMPLETED)
    assert ["stream_options" in post.json() for post in upstream.posts] == [True, False, False]


async def test_a_clients_own_mistake_does_not_switch_metering_off(start: StartProxy) -> None:
    """Refused with and without our field: the client gets its 400, and the next request is metered."""
    proxy, upstream = await start(Streams(EVENTS))
    mistake = Answers(answers.error_json("bad temperature"), status=400)
    upstream.then(mistake, mistake)
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        assert response.status == 400
        assert "bad temperature" in (await response.json())["error"]["message"]
        record = await proxy.record()
        assert (record.outcome, record.status, record.basis) == (Outcome.CLIENT_ERROR, 400, Basis.NONE)
        await (await client.request("POST", CHAT, ASK, key=KEY)).read()
    assert (await proxy.record(2)).basis is Basis.REPORTED
    assert ["stream_options" in post.json() for post in upstream.posts] == [True, False, True]


async def test_coded_answer_is_metered_and_goes_on_intact(start: StartProxy) -> None:
    """We ask for identity; what comes coded all the same passes byte for byte, and is counted."""
    script = CompressesUnasked(EVENTS)
    proxy, upstream = await start(script)
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY, headers=[("Accept-Encoding", "gzip")])
        assert response.headers["content-encoding"] == "gzip"
        await response.read()
    record = await proxy.record()
    assert (record.output_tokens, record.basis) == (5, Basis.REPORTED)
    assert upstream.posts[0].headers["accept-encoding"] == "identity"


async def test_plain_answer_passes_with_its_length(start: StartProxy) -> None:
    """Same bytes, Content-Length kept, usage billed."""
    proxy, _ = await start(Answers(answers.chat_json()))
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, {"model": "m", "messages": MESSAGES}, key=KEY)
        assert response.headers["content-length"] == str(len(answers.chat_json()))
        assert await response.read() == answers.chat_json()
    record = await proxy.record()
    assert (record.input_tokens, record.output_tokens, record.basis, record.stream) == (9, 3, Basis.REPORTED, False)


async def test_two_hundred_streams_at_once_do_not_mix(start: StartProxy) -> None:
    """Each client gets its own stream, each record its own count."""
    proxy, _ = await start(Streams(EVENTS))

    async def one() -> bytes:
        async with await RawClient.connect(proxy.url) as client:
            return await (await client.request("POST", CHAT, ASK, key=KEY)).read()

    assert set(await asyncio.gather(*(one() for _ in range(200)))) == {b"".join(WITHOUT_USAGE)}
    await proxy.record(200)
    assert {record.output_tokens for record in proxy.records} == {5}
    assert len({record.id for record in proxy.records}) == 200
