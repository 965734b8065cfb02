"""Upstreams and the connections to them: which is asked, which is used again, and what never is."""

import gzip
import json
from functools import partial
from pathlib import Path

import pytest

from meter_proxy.usage import Basis, Outcome
from tests.integration.conftest import StartProxy
from tests.support import answers
from tests.support.config import KEY
from tests.support.harms import Answers, FloodsUntilHungUp, HangsUpAfter, HangsUpBeforeAnswer, Streams
from tests.support.httpraw import RawClient, request_bytes
from tests.support.inprocess import in_process_proxy
from tests.support.upstream import ScriptedUpstream, UpstreamExchange
from tests.support.waiting import until

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "12345678"}], "stream": True}
PLAIN = {**ASK, "stream": False}
EVENTS = answers.chat_stream("a", "b", "c", "d", output_tokens=9)
WITHOUT_USAGE = b"".join(EVENTS[:-2] + EVENTS[-1:])
NOBODY = "http://127.0.0.1:1/v1"  # no one listens there
QUICK = {"timeouts": {"first_byte": "2s"}}


def http_1_0(ask: dict[str, object], *headers: str) -> bytes:
    """A request of the days before chunks."""
    body = json.dumps(ask).encode()
    lines = [f"POST {CHAT} HTTP/1.0", f"Authorization: Bearer {KEY}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def has_sent_most(exchange: UpstreamExchange) -> bool:
    """Of the 3 MB that the slow client's test sends."""
    return exchange.sent_bytes > 2_000_000


# Which upstream.


async def test_upstreams_are_tried_in_order_until_one_can_be_reached(tmp_path: Path, shared_store: str) -> None:
    """Nothing of the request had reached the first; the record names the second, and the model as it is there."""
    async with ScriptedUpstream(Streams(EVENTS)) as second:
        upstreams = {"down": {"base_url": NOBODY}, "up": {"base_url": second.url}}
        models = {"auto": {"upstream": ["down", "up"], "name": "qwen"}}
        async with in_process_proxy("", tmp_path, shared_store, upstreams=upstreams, models=models) as proxy:
            async with await RawClient.connect(proxy.url) as client:
                response = await client.request("POST", CHAT, {**ASK, "model": "auto"}, key=KEY)
                assert await response.read() == WITHOUT_USAGE
            record = await proxy.record()
        assert (record.upstream, record.model, record.upstream_model) == ("up", "auto", "qwen")
        assert (record.output_tokens, record.outcome) == (9, Outcome.COMPLETED)
        assert [post.json()["model"] for post in second.posts] == ["qwen"]


async def test_a_request_that_an_upstream_took_is_not_given_to_the_next(tmp_path: Path, shared_store: str) -> None:
    """It may have been paid for there."""
    async with ScriptedUpstream(HangsUpBeforeAnswer()) as first, ScriptedUpstream(Streams(EVENTS)) as second:
        fresh = {"running_usage": "off"}  # no look at who it is leaves a connection that would be used again
        upstreams = {"a": {"base_url": first.url, **fresh}, "b": {"base_url": second.url, **fresh}}
        models = {"m": {"upstream": ["a", "b"]}}
        async with in_process_proxy("", tmp_path, shared_store, upstreams=upstreams, models=models) as proxy:
            async with await RawClient.connect(proxy.url) as client:
                assert (await client.request("POST", CHAT, ASK, key=KEY)).status == 502
            assert (await proxy.record()).upstream == "a"
        assert (len(first.posts), len(second.posts)) == (1, 0)


async def test_all_upstreams_down_is_one_502_and_one_record_of_nothing(tmp_path: Path, shared_store: str) -> None:
    """The error names neither of them."""
    upstreams = {"inner-a": {"base_url": NOBODY}, "inner-b": {"base_url": NOBODY}}
    models = {"m": {"upstream": ["inner-a", "inner-b"]}}
    async with in_process_proxy("", tmp_path, shared_store, upstreams=upstreams, models=models) as proxy:
        async with await RawClient.connect(proxy.url) as client:
            response = await client.request("POST", CHAT, PLAIN, key=KEY)
            assert response.status == 502
            assert b"inner" not in await response.read()
        record = await proxy.record()
    assert (record.upstream, record.input_basis, record.basis) == ("inner-b", Basis.NONE, Basis.NONE)


# A connection used again.


async def test_a_connection_is_used_again_after_a_large_answer(start: StartProxy) -> None:
    """One read brought head and body before our own head was out: reading was held back, and must go on."""
    proxy, upstream = await start(Answers(answers.chat_json("x" * 150_000)), upstream=QUICK)
    async with await RawClient.connect(proxy.url) as client:
        for _ in range(4):
            response = await client.request("POST", CHAT, PLAIN, key=KEY)
            assert response.status == 200
            await response.read()
    assert upstream.connections == 1


async def test_a_connection_is_used_again_after_a_client_that_read_slowly(start: StartProxy) -> None:
    """The client's back-pressure held the upstream back in the read that ended the answer."""
    proxy, upstream = await start(Answers(answers.chat_json("x" * 3_000_000)), upstream=QUICK)
    for count in range(1, 4):
        async with await RawClient.connect(proxy.url, receive_buffer_bytes=4096) as client:
            await client.send(request_bytes("POST", CHAT, PLAIN, key=KEY))
            exchange = await upstream.exchange(count - 1)
            await until(partial(has_sent_most, exchange), "the answer to be stuck at the client")
            response = await client.response()
            assert response.status == 200
            await response.read()
        await proxy.record(count)
    assert upstream.connections == 1


@pytest.mark.parametrize(
    "first_bytes",
    [b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n", b"H"],
    ids=["a head that is none", "1xx only", "one byte"],
)
async def test_a_request_is_not_written_again_once_a_byte_of_an_answer_came(
    start: StartProxy, first_bytes: bytes
) -> None:
    """On a kept connection, too: somebody has read the request, and may be working on it."""

    async def says_something_and_leaves(exchange: UpstreamExchange) -> None:
        await exchange.send(first_bytes)
        exchange.close()

    proxy, upstream = await start(Streams(EVENTS))
    async with await RawClient.connect(proxy.url) as client:
        await (await client.request("POST", CHAT, ASK, key=KEY)).read()
        upstream.then(says_something_and_leaves)
        assert (await client.request("POST", CHAT, ASK, key=KEY)).status == 502
    assert len(upstream.posts) == 2
    assert (await proxy.record(2)).basis is Basis.NONE


async def test_unsolicited_bytes_on_a_kept_connection_drop_it(start: StartProxy) -> None:
    """They belong to no request, least of all to the next one."""

    async def says_too_much(exchange: UpstreamExchange) -> None:
        await exchange.answer(answers.chat_json())
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")

    proxy, upstream = await start(Answers(answers.chat_json()))
    upstream.then(says_too_much)
    async with await RawClient.connect(proxy.url) as client:
        for _ in range(2):
            response = await client.request("POST", CHAT, PLAIN, key=KEY)
            assert await response.read() == answers.chat_json()
            await until(lambda: upstream.open_connections <= 1, "a spoilt connection to be dropped")
    assert (await proxy.record(2)).output_tokens == 3


# Answers that are none.


@pytest.mark.parametrize("line", [b"X-A: \x07", b"X-A: a\x7f", b"X-A: a\x1b[0m"])
async def test_control_characters_in_a_header_are_502(start: StartProxy, line: bytes) -> None:
    """RFC 9110 §5.5; passed on, they would be our own 500."""

    async def sends_them(exchange: UpstreamExchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n%b\r\n\r\n{}" % line)

    proxy, _ = await start(sends_them)
    async with await RawClient.connect(proxy.url) as client:
        assert (await client.request("POST", CHAT, PLAIN, key=KEY)).status == 502
    assert (await proxy.record()).outcome is Outcome.UPSTREAM_FAILED


async def test_a_redirect_is_passed_on_and_bills_nothing(start: StartProxy) -> None:
    """Nothing was generated; it is the operator's `base_url` that is wrong."""
    proxy, _ = await start(Answers(b"", 307, [("Location", "/elsewhere")]))
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, PLAIN, key=KEY)
        assert (response.status, await response.read()) == (307, b"")
    record = await proxy.record()
    assert (record.outcome, record.input_tokens, record.input_basis) == (Outcome.UPSTREAM_FAILED, 0, Basis.NONE)


async def test_a_compressed_error_does_not_carry_the_credential_out(start: StartProxy) -> None:
    """It cannot be searched: the client gets the status, and an error of ours that it can read."""
    secret = "sk-operator-0123456789"
    body = gzip.compress(answers.error_json(f"Incorrect API key provided: {secret}"))
    proxy, _ = await start(Answers(body, 401, [("Content-Encoding", "gzip")]), upstream={"api_key": secret})
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, PLAIN, key=KEY)
        assert response.status == 401
        assert "content-encoding" not in response.headers
        assert set((await response.json())["error"]) == {"message", "type", "param", "code"}
    assert (await proxy.record()).outcome is Outcome.CLIENT_ERROR


async def test_a_list_of_models_that_cannot_be_read_is_no_list(start: StartProxy) -> None:
    """However deep it is nested, and whatever its bytes are: an error of the upstream is not one of ours."""
    proxy, upstream = await start(Streams(EVENTS))
    async with await RawClient.connect(proxy.url) as client:
        for body in (b'{"x":%b%b}' % (b"[" * 100_000, b"]" * 100_000), b'{"data":[{"id":"\xff"}]}', b"", b"<html>"):
            upstream.on_get("/v1/models", Answers(body))
            response = await client.request("GET", "/v1/models", key=KEY)
            assert (await response.json())["data"] == []


# The client's end.


async def test_an_http_1_0_client_that_wants_to_keep_alive_sees_the_end(start: StartProxy) -> None:
    """Only the end of the connection can end its stream, whatever it asked for."""
    proxy, _ = await start(Streams(EVENTS))
    async with await RawClient.connect(proxy.url) as client:
        await client.send(http_1_0(ASK, "Connection: keep-alive"))
        head, _, payload = (await client.read_to_end()).partition(b"\r\n\r\n")
    assert payload == WITHOUT_USAGE
    assert b"keep-alive" not in head.lower()
    await proxy.record()


async def test_an_http_1_0_client_cannot_take_a_broken_stream_for_whole(start: StartProxy) -> None:
    """A FIN would say so: it gets a reset."""
    proxy, _ = await start(HangsUpAfter(EVENTS[:3]))
    async with await RawClient.connect(proxy.url) as client:
        await client.send(http_1_0(ASK))
        with pytest.raises(ConnectionError):
            await client.read_to_end()
    assert (await proxy.record()).outcome is Outcome.UPSTREAM_FAILED


async def test_requests_sent_ahead_are_answered_in_order(start: StartProxy) -> None:
    """They wait in aiohttp while the first streams; none of their bytes get lost."""
    proxy, _ = await start(Streams(EVENTS))
    async with await RawClient.connect(proxy.url) as client:
        await client.send(request_bytes("POST", CHAT, ASK, key=KEY) * 3)
        for _ in range(3):
            assert await (await client.response()).read() == WITHOUT_USAGE
    await proxy.record(3)


async def test_a_client_that_stalls_does_not_stall_its_drain(start: StartProxy) -> None:
    """`on_disconnect: drain`: the upstream was held back for a client that is now gone, and is read again."""
    events = [answers.chat_event("x" * 20_000) for _ in range(600)]
    proxy, _ = await start(
        Streams([*events, *EVENTS[-3:]]), limits={"client_stall": "300ms"}, upstream={"on_disconnect": "drain"}
    )
    async with await RawClient.connect(proxy.url, receive_buffer_bytes=4096) as client:
        await client.send(request_bytes("POST", CHAT, ASK, key=KEY))
        record = await proxy.record()
    assert (record.outcome, record.basis, record.output_tokens) == (Outcome.CLIENT_DISCONNECTED, Basis.REPORTED, 9)


async def test_a_client_that_stalls_when_its_stream_breaks_is_let_go(start: StartProxy) -> None:
    """What is written may still leave, for `client_stall`; then the connection goes, or it would stay for ever."""
    proxy, _ = await start(
        FloodsUntilHungUp(), limits={"client_stall": "500ms"}, upstream={"timeouts": {"total": "300ms"}}
    )
    async with await RawClient.connect(proxy.url, receive_buffer_bytes=4096) as client:
        await client.send(request_bytes("POST", CHAT, ASK, key=KEY))
        await until(lambda: proxy.gateway.in_flight, "the request to be admitted")
        connection = next(iter(proxy.gateway.in_flight))._client
        assert connection is not None
        assert (await proxy.record()).outcome is Outcome.UPSTREAM_TIMEOUT
        await until(lambda: not connection.transport.get_write_buffer_size(), "what nobody reads to be dropped")


async def test_a_hang_up_while_a_refusal_is_skipped_is_settled_at_once(start: StartProxy) -> None:
    """With `on_disconnect: drain` as well: of an answer that was given up nothing more comes."""

    async def refuses_slowly(exchange: UpstreamExchange) -> None:
        await exchange.start(422, [("Content-Length", "100"), ("Content-Type", "application/json")])
        await exchange.hung_up(within_s=60)

    proxy, upstream = await start(refuses_slowly, upstream={"on_disconnect": "drain"})
    async with await RawClient.connect(proxy.url) as client:
        await client.send(request_bytes("POST", CHAT, ASK, key=KEY))
        await upstream.exchange(0)
        await until(lambda: next(iter(proxy.gateway.in_flight)).relay.first_byte_at, "the head of the refusal")
        client.close_fin()
        record = await proxy.record()
    assert (record.outcome, record.basis) == (Outcome.CLIENT_DISCONNECTED, Basis.NONE)


async def test_an_outage_is_one_line_in_the_log_and_its_end_another(
    start: StartProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator reads which upstream, where, and why; not a line for every request."""
    proxy, upstream = await start(HangsUpBeforeAnswer())
    async with await RawClient.connect(proxy.url) as client:
        for count in (1, 2, 3):
            await (await client.request("POST", CHAT, ASK, key=KEY)).read()
            await proxy.record(count)
        upstream.script = Streams(EVENTS)
        await (await client.request("POST", CHAT, ASK, key=KEY)).read()
        await proxy.record(4)
    lines = [record.getMessage() for record in caplog.records if record.name == "meter_proxy.gateway"]
    assert len(lines) == 2
    assert upstream.url in lines[0]
    assert lines[1] == "upstream local answers again"
