"""The raw front, by its bytes: what it takes, what it hands over, and in what order."""

import asyncio
from typing import Any, cast
from unittest.mock import Mock

import pytest

from meter_proxy.errors import ClientError
from meter_proxy.gateway.client import PlainClient, ReplyHead
from meter_proxy.gateway.front import HIGH_WATER_BYTES, MOST_CORKED_BYTES, Front, FrontDoor
from meter_proxy.gateway.gateway import Gateway, Waiting
from meter_proxy.gateway.headers import ReplyFields
from meter_proxy.gateway.inbound import Inbound
from meter_proxy.gateway.plain import PlainHead, PlainHeads
from meter_proxy.gateway.replies import client_error_answer
from meter_proxy.gateway.watch import Deadlines
from tests.unit.gateway.plain_requests import CONFIG, request


class Transport:
    """Keeps what is written; `closes_unheard`: the connection is gone, and nobody was told."""

    def __init__(self) -> None:
        self.written = b""
        self.closing = False
        self.aborted = False
        self.reading = True
        self.protocol: object = None

    def write(self, data: bytes) -> None:
        if self.closing:
            raise RuntimeError("the handler is closed")
        self.written += data

    def keep_writes(self) -> list[bytes]:
        """Each write from now on by itself."""
        writes: list[bytes] = []
        self.write = writes.append  # type: ignore[assignment, method-assign]
        return writes

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return 0

    def set_protocol(self, protocol: object) -> None:
        self.protocol = protocol


class SlowLane(asyncio.Protocol):
    """What gets the bytes that are not plain."""

    def __init__(self) -> None:
        self.received = b""
        self.is_connected = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.is_connected = True

    def data_received(self, data: bytes) -> None:
        self.received += data


class FakeGateway:
    """Reads heads like the real one, and keeps what it is to serve."""

    def __init__(self, stall_s: float) -> None:
        heads = PlainHeads(Inbound(CONFIG), CONFIG)
        self.late_bodies: Deadlines[Waiting] = Deadlines(stall_s, lambda waiting: waiting.body_is_late())
        self.plain_head = lambda block: heads.read(block, 0.0)
        self.may_be_plain = heads.may_begin
        self.served: list[tuple[PlainHead, bytes]] = []

    def serve_plain(self, head: PlainHead, body: bytes, client: PlainClient) -> None:
        self.served.append((head, body))

    def refuse(self, client: PlainClient, exc: ClientError, key_id: str, model: str, asked: object) -> None:
        client.answer(client_error_answer(exc))
        client.detach()


class Rig:
    """One connection."""

    def __init__(self, *, stall_s: float = 10.0, **times: float) -> None:
        self.gateway = FakeGateway(stall_s)
        self.slow = SlowLane()
        self.transport = Transport()
        options = {"header_timeout_s": 10.0, "keep_alive_s": 10.0, **times}
        self.door = FrontDoor(lambda: cast(Gateway, self.gateway), lambda: self.slow, **options)
        self.front = Front(self.door)
        self.front.connection_made(cast(asyncio.Transport, self.transport))

    def say(self, *reads: bytes) -> None:
        for read in reads:
            self.front.data_received(read)

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, body in self.gateway.served]

    def answered(self, **more: Any) -> None:
        """The request that is served gets its whole reply."""
        self.front.begin_now(ReplyHead(200, "OK", ReplyFields((), b"", ""), (), **{"length": None, **more}))
        self.front.end_now()
        self.front.detach()


async def test_a_plain_request_is_served_however_it_is_cut() -> None:
    """Whole, and one byte at a time."""
    whole, dripping = Rig(), Rig()
    whole.say(request(b'{"a":1}'))
    dripping.say(*[bytes([byte]) for byte in request(b'{"a":1}')])
    assert whole.bodies == dripping.bodies == [b'{"a":1}']
    assert not whole.slow.is_connected


@pytest.mark.parametrize("cut", [1, 20, 60, 120])
async def test_what_is_not_plain_is_handed_over_with_every_byte(cut: int) -> None:
    """And the connection for good."""
    rig = Rig()
    raw = request(b"{}").replace(b"Host: x\r\n", b"Host: x\r\nExpect: 100-continue\r\n")
    rig.say(raw[:cut], raw[cut:])
    assert rig.transport.protocol is rig.slow
    assert rig.slow.received == raw
    assert rig.gateway.served == []
    assert len(rig.door.heads) == len(rig.door.idle) == 0


async def test_requests_are_answered_one_after_the_other() -> None:
    """Those that came early wait, in order; so much of them is kept, and the rest stays in the kernel."""
    rig = Rig()
    rig.say(request(b"1") + request(b"2"), request(b"3"))
    assert rig.bodies == [b"1"]
    rig.answered()
    await asyncio.sleep(0)
    assert rig.bodies == [b"1", b"2"]
    rig.say(b"x" * HIGH_WATER_BYTES)
    assert not rig.transport.reading
    rig.answered()
    await asyncio.sleep(0)
    assert rig.bodies == [b"1", b"2", b"3"]
    assert rig.transport.reading


async def test_a_reply_is_framed_as_its_head_says() -> None:
    """Chunks without a length, plain bytes with one, nothing for a status that has no body."""
    rig = Rig()
    rig.say(request(b"1"))
    rig.front.begin_now(ReplyHead(200, "OK", ReplyFields((), b"A: b\r\n", ""), (("x-c", "d"),), None))
    rig.front.write(b"ab", None)
    rig.front.write(b"cd", b"2\r\ncd\r\n")
    rig.front.end_now()
    rig.front.end_now()
    head, _, body = rig.transport.written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nA: b\r\nx-c: d\r\nTransfer-Encoding: chunked\r\nDate: ")
    assert body == b"2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n"
    rig.front.detach()
    rig.transport.written = b""
    rig.say(request(b"2"))
    rig.answered(length=0)
    assert b"Content-Length: 0\r\n" in rig.transport.written
    assert rig.transport.written.endswith(b"\r\n\r\n")


async def test_a_reply_without_its_end_ends_the_connection() -> None:
    """Nobody shall take it for whole."""
    rig = Rig()
    rig.say(request(b"1"))
    rig.front.begin_now(ReplyHead(200, "OK", ReplyFields((), b"", ""), (), None))
    rig.front.detach()
    assert rig.transport.aborted


async def test_a_connection_that_is_gone_unheard_takes_everything_and_nothing_happens() -> None:
    """uvloop's transports raise when they are closed; the loss is told a moment later."""
    rig = Rig()
    rig.say(request(b"1"))
    rig.transport.closing = True
    rig.front.begin_now(ReplyHead(200, "OK", ReplyFields((), b"", ""), (), None))
    rig.front.write(b"a", None)
    rig.front.end_now()
    rig.front.answer(client_error_answer(ClientError(400, "a", "b")))
    assert rig.transport.written == b""


async def test_heads_bodies_and_idle_connections_have_their_time() -> None:
    """A half head is cut off; a half body gets a 408; an idle connection is closed."""
    half_head, half_body, idle = (Rig(header_timeout_s=0.01, stall_s=0.01, keep_alive_s=0.01) for _ in range(3))
    half_head.say(request(b"1")[:40])
    half_body.say(request(b"12345")[:-2])
    idle.say(request(b"1"))
    idle.answered()
    await asyncio.sleep(0.1)
    assert half_head.transport.aborted
    assert half_body.transport.written.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert half_body.transport.closing
    assert idle.transport.closing
    assert not idle.transport.aborted


async def test_a_body_waits_as_long_as_the_configuration_says_now() -> None:
    """A reload may change it; the connection is older."""
    rig = Rig()
    rig.say(request(b"1"))
    rig.answered()
    rig.gateway.late_bodies = Deadlines(0.01, lambda waiting: waiting.body_is_late())
    rig.say(request(b"12345")[:-2])
    await asyncio.sleep(0.05)
    assert rig.transport.written.count(b"HTTP/1.1 408 Request Timeout\r\n") == 1


async def test_nobody_watches_over_a_body_that_is_there_or_whose_client_is_gone() -> None:
    """What is forgotten here would be kept for ever."""
    whole, gone = Rig(), Rig()
    whole.say(request(b"12345")[:-2], b"45")
    gone.say(request(b"12345")[:-2])
    gone.front.connection_lost(None)
    assert len(whole.gateway.late_bodies) == len(gone.gateway.late_bodies) == 0
    assert whole.bodies == [b"12345"]


async def test_what_is_gathered_leaves_as_one() -> None:
    """The head of the reply, its body and its end that came in one read are one write."""
    rig = Rig()
    writes = rig.transport.keep_writes()
    rig.say(request(b"{}"))
    assert rig.front.cork()
    assert not rig.front.cork()
    rig.front.begin_now(ReplyHead(200, "OK", ReplyFields((), b"", ""), (), None))
    rig.front.write(b"one", None)
    rig.front.end_now()
    rig.front.detach()
    assert writes == []
    rig.front.uncork()
    (reply,) = writes
    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
    assert reply.endswith(b"3\r\none\r\n0\r\n\r\n")


async def test_more_than_a_client_may_take_at_once_is_not_gathered() -> None:
    """A transport must have the chance to say that its client is slow, before the reply is over."""
    rig = Rig()
    writes = rig.transport.keep_writes()
    rig.say(request(b"{}"))
    rig.front.cork()
    rig.front.write(b"a" * MOST_CORKED_BYTES, None)
    assert [len(write) for write in writes] == [MOST_CORKED_BYTES]
    rig.front.write(b"b", None)
    assert len(writes) == 1
    rig.front.uncork()
    assert writes[1:] == [b"b"]


async def test_a_client_that_is_still_slow_is_slow_for_its_next_exchange() -> None:
    """Its transport says so once only."""
    rig = Rig()
    rig.say(request(b"{}"))
    rig.front.pause_writing()
    rig.answered()
    listener = Mock()
    rig.front.attach(listener)
    listener.on_client_slow.assert_called_once_with()


async def test_what_was_gathered_leaves_before_a_break() -> None:
    """The client gets what was counted for it."""
    rig = Rig()
    rig.say(request(b"{}"))
    rig.front.cork()
    rig.front.write(b"one", None)
    rig.front.break_off(linger_s=1)
    assert rig.transport.written == b"one"
    assert rig.transport.closing
