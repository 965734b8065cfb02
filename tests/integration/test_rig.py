"""The rig does to a peer what it says: a test that trusts a broken fake proves nothing."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.support import answers, harms
from tests.support.httpraw import RawClient
from tests.support.servers import MissingServer, PrometheusServer, StoreServer, installed_program, ports_of
from tests.support.upstream import PeerGone, ScriptedUpstream, UpstreamExchange
from tests.support.waiting import until, until_async
from tests.support.wire import BrokenOff, split_events

CHAT = "/v1/chat/completions"
EVENTS = answers.chat_stream("Hel", "lo")


async def test_events_arrive_as_they_were_sent_and_the_connection_is_kept() -> None:
    """Payload bytes are exact, event by event, and a second request goes over the same connection."""
    async with ScriptedUpstream(harms.Streams(EVENTS)) as upstream, await RawClient.connect(upstream.url) as client:
        for _ in range(2):
            response = await client.request("POST", CHAT, {"model": "m"}, key="sk-1")
            assert [await response.next_event() for _ in EVENTS] == EVENTS
            assert await response.next_event() is None
            assert bytes(response.received) == b"".join(EVENTS)
        assert upstream.connections == 1
        assert [request.json() for request in upstream.posts] == [{"model": "m"}, {"model": "m"}]
        assert upstream.posts[0].headers["authorization"] == "Bearer sk-1"


async def test_next_event_leaves_later_events_for_later() -> None:
    """Events that came in one read are handed out one by one; read() gives all of them."""
    script = harms.Streams(EVENTS, in_one_write=True)
    async with ScriptedUpstream(script) as upstream, await RawClient.connect(upstream.url) as client:
        response = await client.request("POST", CHAT, {})
        assert await response.next_event() == EVENTS[0]
        assert await response.next_event() == EVENTS[1]
        assert split_events(await response.read()) == EVENTS


async def test_bodies_end_by_length_or_with_the_connection() -> None:
    """Content-Length and close-delimited answers are read to their ends."""
    async with ScriptedUpstream(harms.Answers(b"{}", 503)) as upstream:
        upstream.then(harms.Answers(b"{}", 503), harms.StreamsWithoutLength(EVENTS))
        async with await RawClient.connect(upstream.url) as client:
            plain = await client.request("POST", CHAT, {})
            assert (plain.status, await plain.json()) == (503, {})
            stream = await client.request("POST", CHAT, {})
            assert await stream.read() == b"".join(EVENTS)


@pytest.mark.parametrize("how", ["fin", "rst", "half"])
async def test_the_upstream_sees_how_the_client_hung_up(how: str) -> None:
    """FIN, RST and half-close are told apart, and sends to a peer that is gone end the script."""
    ended_by: list[type[BaseException]] = []

    async def script(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await exchange.send_event(EVENTS[0])
        await exchange.hung_up()
        try:
            while how != "half":
                await exchange.send_event(EVENTS[1])
                await asyncio.sleep(0)
        except PeerGone:
            ended_by.append(PeerGone)
            raise
        await exchange.send_event(EVENTS[1])
        await exchange.end()

    async with ScriptedUpstream(script) as upstream, await RawClient.connect(upstream.url) as client:
        response = await client.request("POST", CHAT, {})
        await response.next_event()
        exchange = await upstream.exchange()
        assert not exchange.peer_hung_up
        if how == "half":
            client.half_close()
            assert await response.next_event() == EVENTS[1]
            assert not exchange.peer_reset
        elif how == "fin":
            client.close_fin()
            await exchange.hung_up()
            await until(lambda: ended_by, "PeerGone in the script")
        else:
            client.close_rst()
            await exchange.hung_up()
            assert exchange.peer_reset
            await until(lambda: ended_by, "PeerGone in the script")


async def test_client_fin_is_not_a_reset_although_bytes_were_unread() -> None:
    """close_fin() sends FIN even when bytes lie unread in the socket."""
    big = answers.chat_event("x" * 70_000)  # more than one read takes
    async with ScriptedUpstream(harms.StallsAfter([big])) as upstream, await RawClient.connect(upstream.url) as client:
        await client.request("POST", CHAT, {})
        exchange = await upstream.exchange()
        await until(lambda: exchange.sent_bytes > len(big), "everything sent")
        client.close_fin()
        await exchange.hung_up()
        assert not exchange.peer_reset


async def test_broken_answers_are_seen_as_broken() -> None:
    """FIN without the last chunk and RST inside an event both raise, with what came before kept."""
    mid_event = harms.ResetsMidEvent(EVENTS[:2])
    async with ScriptedUpstream(harms.HangsUpAfterFirstEvent()) as upstream:
        async with await RawClient.connect(upstream.url) as client:
            response = await client.request("POST", CHAT, {})
            with pytest.raises(BrokenOff) as fin:
                await response.read()
            assert not fin.value.was_reset
            assert bytes(response.received) == answers.chat_event("Hello")
        upstream.then(mid_event)
        async with await RawClient.connect(upstream.url) as client:
            response = await client.request("POST", CHAT, {})
            for _ in range(3):  # two events, and half of one
                await response.next_piece()
            mid_event.proceed.set()
            with pytest.raises(BrokenOff) as rst:
                await response.read()
            assert rst.value.was_reset
            assert bytes(response.received).startswith(b"".join(EVENTS[:2]))
        upstream.then(harms.HangsUpBeforeAnswer())
        async with await RawClient.connect(upstream.url) as client:
            with pytest.raises(BrokenOff):
                await client.request("POST", CHAT, {})


async def test_a_client_that_ceases_to_read_stops_the_flood() -> None:
    """The upstream's sends wait for the reader: what it could send is bounded by the kernel's buffers."""
    flood = harms.FloodsUntilHungUp(answers.chat_event("x" * 60_000))
    async with ScriptedUpstream(flood, send_buffer_bytes=16_384) as upstream:
        client = await RawClient.connect(upstream.url, receive_buffer_bytes=16_384)
        await client.request("POST", CHAT, {})
        exchange = await upstream.exchange()
        seen = -1
        while seen != (seen := exchange.sent_bytes):
            await asyncio.sleep(0.05)
        assert seen < 1_000_000
        client.close_rst()


async def test_a_failing_script_fails_the_test() -> None:
    """An assertion inside a script is raised where the upstream is left."""

    async def script(exchange: UpstreamExchange) -> None:
        raise AssertionError("wrong header")

    with pytest.raises(AssertionError, match="wrong header"):
        async with ScriptedUpstream(script) as upstream, await RawClient.connect(upstream.url) as client:
            with pytest.raises(BrokenOff):
                await client.request("POST", CHAT, {})


async def test_scripts_are_taken_in_order_and_gets_apart() -> None:
    """then() serves POSTs only; an unscripted GET is a 404, a scripted one what it was given."""
    async with ScriptedUpstream(harms.Answers(b"last")) as upstream, await RawClient.connect(upstream.url) as client:
        upstream.then(harms.Answers(b"first"))
        upstream.on_get("/version", harms.Answers(b'{"version":"1"}'))
        assert (await (await client.request("GET", "/props")).read()).startswith(b'{"error"')
        assert await (await client.request("GET", "/version")).read() == b'{"version":"1"}'
        bodies = [await (await client.request("POST", CHAT, {})).read() for _ in range(3)]
        assert bodies == [b"first", b"last", b"last"]
        assert len(upstream.requests) == 5


async def test_an_answer_may_begin_before_the_request_has_ended() -> None:
    """With `reads_body_first=False` the script runs on the head, and reads a chunked body when it likes."""

    async def script(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        assert await exchange.read_body() == b"abc"
        await exchange.end()

    upstream = ScriptedUpstream(script, reads_body_first=False)
    async with upstream, await RawClient.connect(upstream.url) as client:
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        response = await client.response()
        await client.send(b"2\r\nbc\r\n0\r\n\r\n")
        assert await response.read() == b""


def test_stores_keep_their_data_over_a_restart(store_server: StoreServer) -> None:
    """stop() and start() keep port, pid bookkeeping and data; a paused store neither answers nor refuses."""
    with store_server.client() as client:
        client.set("a", "1")
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    store_server.stop()
    assert not store_server.answers()
    store_server.start()
    with store_server.client() as client:
        assert client.get("a") == "1"
    pid = store_server.pid
    store_server.pause()
    store_server.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


async def test_prometheus_scrapes_what_it_was_given(tmp_path: Path) -> None:
    """A sample exposed on a target can be queried."""
    exposition = harms.Answers(b"# TYPE x counter\nx_total 3\n", headers=[("Content-Type", "text/plain")])
    async with ScriptedUpstream(exposition) as upstream:
        upstream.on_get("/metrics", exposition)
        target = upstream.url.removeprefix("http://").removesuffix("/v1")
        server = PrometheusServer(tmp_path, [target])
        await asyncio.to_thread(server.start)
        try:

            async def values() -> list[float]:
                return list((await asyncio.to_thread(server.query, "x_total")).values())

            assert await until_async(values, "a sample of x_total") == [3.0]
        finally:
            await asyncio.to_thread(server.kill)


def test_workers_side_by_side_hand_out_different_ports() -> None:
    """Each port is one worker's, with as many workers as there may be."""
    for count in (1, 2, 3):
        shares = [set(ports_of(f"gw{number}", count)) for number in range(count)]
        assert set.union(*shares) == set(range(11_000, 21_000))
        assert sum(map(len, shares)) == 10_000


def test_a_missing_server_says_how_to_get_it() -> None:
    """Nothing is skipped: the message names the package and the command."""
    with pytest.raises(MissingServer, match="apt-get install no-such-server"):
        installed_program("no-such-server")
