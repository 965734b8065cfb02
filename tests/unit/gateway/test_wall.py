"""The wall: which bytes a stream delivers under an allowance, however they were cut, and what is counted behind it."""

import asyncio
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from meter_proxy.errors import UpstreamUnavailable
from meter_proxy.gateway.client import Client as AnyClient
from meter_proxy.gateway.client import ClientGone
from meter_proxy.gateway.http1 import Framing, ResponseHead
from meter_proxy.gateway.relay import QuotaReached, Relay
from meter_proxy.gateway.upstream import UpstreamConnection
from meter_proxy.gateway.wall import events_in
from meter_proxy.gateway.watch import Times
from meter_proxy.ledger.grants import UNBOUNDED
from meter_proxy.ledger.slots import SlotTable, read_live
from meter_proxy.metering.injection import NOTHING_HIDDEN, Hidden
from meter_proxy.metering.meter import Meter, meter_for
from meter_proxy.metering.request import parse_body
from meter_proxy.telemetry.stats import WorkerStats
from meter_proxy.usage import Basis, Operation
from tests.support import answers
from tests.support.allowance import ScriptedAllowance

ASKED = parse_body(b'{"model":"m","stream":true}', Operation.CHAT)
HIDING = Hidden(usage_event=True, running_usage=True)
SSE = "text/event-stream"
WORDS = answers.chat_stream(*"abcdefgh", output_tokens=8)


class Client:
    """Takes everything."""

    def __init__(self) -> None:
        self.received = b""
        self.framed: list[bytes | None] = []

    def write(self, payload: bytes, framed: bytes | None) -> None:
        assert framed is None or framed == payload
        self.received += payload
        self.framed.append(framed)

    def unsent_bytes(self) -> int:
        return 0


class Connection:
    """An upstream's connection that knows whether it is read."""

    def __init__(self) -> None:
        self._is_read = True
        self.pool = SimpleNamespace(name="local")
        self.transport = SimpleNamespace(pause_reading=self._pause, resume_reading=self._resume)

    def send(self, request: bytes, sink: object) -> None:
        pass

    def close(self) -> None:
        pass

    def is_read(self) -> bool:
        return self._is_read

    def _pause(self) -> None:
        self._is_read = False

    def _resume(self) -> None:
        self._is_read = True


class Rig:
    """A relay between the two; `say` is what the upstream sends."""

    def __init__(
        self, directory: Path, allowance: ScriptedAllowance, hidden: Hidden = NOTHING_HIDDEN, coding: str = ""
    ) -> None:
        self._directory = directory
        self._hidden = hidden
        self._coding = coding
        slot = SlotTable(directory, slots=1).take(b"{}")
        assert slot is not None
        self.relay = Relay(self._meter, slot, WorkerStats(), client_stall_s=60, allowance=allowance)
        self.client = Client()
        self.connection = Connection()
        self.relay.open(cast(UpstreamConnection, self.connection), b"", Times(first_byte_s=60, idle_s=60, total_s=60))

    def _meter(self, head: ResponseHead) -> Meter:
        return meter_for(
            Operation.CHAT,
            status=200,
            content_type=head.get("content-type"),
            content_encoding=self._coding,
            asked=ASKED,
            hidden=self._hidden,
            max_event_bytes=1_000_000,
        )

    def head(self, content_type: str = SSE) -> None:
        self.relay.on_head(ResponseHead(200, "OK", (("content-type", content_type),), Framing.CHUNKED, 0, True))

    def begin(self, content_type: str = SSE) -> None:
        self.head(content_type)
        self.relay.begin(cast(AnyClient, self.client))

    def say(self, *reads: bytes) -> None:
        for read in reads:
            self.relay.on_body(read, read)

    @property
    def counted(self) -> int | None:
        """What the books would say if we were killed now."""
        (progress,) = read_live(self._directory)
        usage = progress.reading.usage
        return usage.output_tokens if usage.output_tokens is not None else progress.content_events

    async def is_cut(self) -> bool:
        """Whether the story ends now because of the quota."""
        try:
            async with asyncio.timeout(0):
                await self.relay.whole()
        except QuotaReached:
            return True
        except TimeoutError:
            pass
        return False


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Makes a fresh Rig; the one before ends."""
    made: list[Rig] = []

    def end() -> None:
        for each in made:
            each.relay.close()
        made.clear()
        (tmp_path / "slots").unlink(missing_ok=True)

    def make(allowance: ScriptedAllowance, **options: Any) -> Rig:
        end()
        made.append(Rig(tmp_path, allowance, **options))
        return made[-1]

    yield make
    end()


def every_way(events: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The same bytes, cut differently."""
    whole = b"".join(events)
    yield [whole]
    yield list(events)
    for size in (1, 7, 77, 300):
        yield [whole[at : at + size] for at in range(0, len(whole), size)]
    chance = random.Random(7)
    for _ in range(20):
        at = sorted({0, *(chance.randrange(len(whole)) for _ in range(chance.randrange(1, 12)))})
        yield [whole[start:end] for start, end in zip(at, [*at[1:], len(whole)], strict=True)]


def with_line_ends(events: Sequence[bytes], line_end: bytes) -> list[bytes]:
    return [event.replace(b"\n", line_end) for event in events]


STREAMS = {
    "LF": (WORDS, 1),
    "CRLF": (with_line_ends(WORDS, b"\r\n"), 1),
    "CR": (with_line_ends(WORDS, b"\r"), 1),
    "LF and CRLF": ([event.replace(b"\n\n", b"\n\r\n") for event in WORDS], 1),
    "comments": ([b": ping\n\n" + event for event in WORDS], 1),
    "several fields": ([b"event: message\nid: 1\n" + event for event in WORDS], 1),
    "2 tokens an event": (answers.running_chat_stream(*"abcdefgh"), 2),
    "3 tokens an event": (answers.running_chat_stream(*"abcdefgh", tokens_per_event=3), 3),
}


@pytest.mark.parametrize("refused_at", [1, None], ids=["refused before", "refused at the wall"])
@pytest.mark.parametrize("granted", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("kind", STREAMS)
async def test_the_event_that_uses_up_the_last_token_is_the_last_one(
    rig: Callable[..., Rig], kind: str, granted: int, refused_at: int | None
) -> None:
    """However the bytes were cut: that event is delivered, not a byte of what follows; and all is counted.

    Whether the renewal was asked for, and refused, before the wall or at it.
    """
    events, tokens_each = STREAMS[kind]
    last = -(-granted // tokens_each)  # of the words; the role event stands before them
    delivered = b"".join(events[: last + 1])
    for reads in every_way(events):
        one = rig(ScriptedAllowance(granted, "stop", at_once=True, top_up_at=refused_at))
        one.begin()
        one.say(*reads)
        assert await one.is_cut()
        # A CR ends the line; the LF that belongs to it may come with the next read.
        ends = (delivered, delivered[:-1]) if delivered.endswith(b"\r\n") else (delivered,)
        assert one.client.received in ends
        assert one.counted == last * tokens_each
        one.relay.stop_delivery()
        assert one.counted == 8 * tokens_each
        one.relay.flush()
        assert one.client.received in ends


@pytest.mark.parametrize("granted", [1, 3, 6])
async def test_what_was_not_asked_for_stays_hidden_up_to_the_cut(rig: Callable[..., Rig], granted: int) -> None:
    """Running usage that we asked for is counted, cut out, and decides where the stream ends."""
    last = -(-granted // 2)
    visible = b"".join([answers.chat_event(""), *answers.chat_stream(*"abcdefgh")[1 : last + 1]])
    for reads in every_way(answers.running_chat_stream(*"abcdefgh")):
        one = rig(ScriptedAllowance(granted, "stop", at_once=True), hidden=HIDING)
        one.begin()
        one.say(*reads)
        assert await one.is_cut()
        one.relay.flush()
        assert one.client.received == visible
        assert one.counted == 16


async def test_a_renewal_that_is_there_in_time_is_not_noticed(rig: Callable[..., Rig]) -> None:
    """Asked for before the last slice is used up: the upstream is never paused."""
    allowance = ScriptedAllowance(2, 2, 2, 100, at_once=True, top_up_at=1)
    one = rig(allowance)
    one.begin()
    one.say(b"".join(WORDS[:4]), *WORDS[4:])
    assert one.client.received == b"".join(WORDS)
    assert one.connection.is_read()
    assert allowance.spent[0] == 1


async def test_while_a_renewal_is_pending_the_rest_waits_in_order(rig: Callable[..., Rig]) -> None:
    """The upstream is paused; with the renewal everything goes on where it stood."""
    allowance = ScriptedAllowance(2, 3, 100)
    one = rig(allowance)
    one.begin()
    one.say(b"".join(WORDS[:5]), WORDS[5], WORDS[6][:9])
    assert one.client.received == b"".join(WORDS[:3])
    assert not one.connection.is_read()
    allowance.answer()
    assert one.client.received == b"".join(WORDS[:6])
    assert not one.connection.is_read()
    one.say(WORDS[6][9:], *WORDS[7:])
    allowance.answer()
    assert one.client.received == b"".join(WORDS)
    assert one.connection.is_read()
    one.relay.on_end()
    await one.relay.whole()


async def test_a_renewal_that_is_refused_ends_the_stream(rig: Callable[..., Rig]) -> None:
    allowance = ScriptedAllowance(2, "error")
    one = rig(allowance)
    one.begin()
    one.say(*WORDS)
    assert not await one.is_cut()
    allowance.answer()
    assert await one.is_cut()
    assert one.client.received == b"".join(WORDS[:3])


async def test_a_renewal_smaller_than_the_last_event_is_asked_for_again(rig: Callable[..., Rig]) -> None:
    """Three tokens an event: of the second, two more than were granted."""
    events = answers.running_chat_stream("a", "b", "c", tokens_per_event=3)
    allowance = ScriptedAllowance(4, 1, 2)
    one = rig(allowance)
    one.begin()
    one.say(*events)
    assert one.client.received == b"".join(events[:3])
    allowance.answer()
    assert allowance.is_pending
    assert one.client.received == b"".join(events[:3])
    allowance.answer()
    assert one.client.received == b"".join(events[:4])


async def test_a_count_that_jumps_ends_the_stream_with_its_read(rig: Callable[..., Rig]) -> None:
    """Tokens without text: an event may count for more than its read has bytes. Nothing of the next read passes."""
    one = rig(ScriptedAllowance(500, "stop", at_once=True))
    one.begin()
    one.say(answers.chat_event("a", usage=answers.usage(9, 700)), answers.chat_event("b"))
    assert await one.is_cut()
    assert one.client.received.count(b'"content"') == 1


async def test_many_events_far_from_the_wall_pass_in_one_piece(rig: Callable[..., Rig]) -> None:
    """Each event is at most one token where nobody tells otherwise: nothing is cut, framing passes as it came."""
    one = rig(ScriptedAllowance(60))
    one.begin()
    one.say(WORDS[0] + WORDS[1])
    read = b"".join(answers.chat_event("x") for _ in range(50))
    one.say(read)
    assert one.client.framed[-1] == read


async def test_a_first_read_passes_in_one_piece_behind_its_first_content(rig: Callable[..., Rig]) -> None:
    """That tells what events are worth; what is in front of it, and itself, pass each alone."""
    one = rig(ScriptedAllowance(60))
    one.begin()
    one.say(b"".join(WORDS))
    assert one.client.received == b"".join(WORDS)
    assert len(one.client.framed) == 3  # the role, "a", all the rest


async def test_a_first_read_of_events_worth_several_tokens_is_cut_at_the_wall(rig: Callable[..., Rig]) -> None:
    one = rig(ScriptedAllowance(15, "stop", at_once=True))
    one.begin()
    one.say(b"".join(answers.running_chat_stream(*"abcdefgh", tokens_per_event=3)))
    assert await one.is_cut()
    assert one.client.received.endswith(answers.running_chat_stream(*"abcde", tokens_per_event=3)[5])
    one.relay.stop_delivery()
    assert one.counted == 24  # what the upstream had sent is billed


async def test_the_end_of_a_stream_is_noted_with_its_last_count(rig: Callable[..., Rig], tmp_path: Path) -> None:
    """In the slot before the client has it: a count that nothing follows any more is the final one."""
    one = rig(ScriptedAllowance(500))
    one.begin()
    events = answers.running_chat_stream(*"abcdefgh")
    one.say(*events[:8], events[8] + answers.DONE)
    (progress,) = read_live(tmp_path)
    assert (progress.done, progress.reading.basis, one.counted) == (True, Basis.REPORTED, 16)


async def test_an_event_that_began_before_counts_among_those_of_a_read(rig: Callable[..., Rig]) -> None:
    """A read may end one event more than it begins."""
    one = rig(ScriptedAllowance(8, "stop", at_once=True))
    one.begin()
    half = len(WORDS[3]) // 2
    one.say(WORDS[0] + WORDS[1], WORDS[2] + WORDS[3][:half])
    one.say(WORDS[3][half:] + b"".join(answers.chat_event("x") for _ in range(6)))
    assert await one.is_cut()
    assert one.client.received.count(b'"content"') == 1 + 8  # the role event has an empty one


async def test_an_answer_that_has_ended_by_itself_is_not_cut(rig: Callable[..., Rig]) -> None:
    """The last token of the quota was the last of the answer, with its finish; nor is more asked for."""
    allowance = ScriptedAllowance(8)
    one = rig(allowance)
    one.begin()
    one.say(*WORDS[:8], answers.chat_event("h", finish="stop"), answers.usage_event(9, 500), answers.DONE)
    one.relay.on_end()
    await one.relay.whole()
    assert one.client.received.endswith(answers.DONE)
    assert allowance.spent == []


@pytest.mark.parametrize("renewal", [100, "stop"])
async def test_an_upstream_that_ended_behind_the_wall_waits_for_the_grant(
    rig: Callable[..., Rig], renewal: int | str
) -> None:
    """Whether its rest comes out is the grant's word; billed it is in any case."""
    allowance = ScriptedAllowance(3, renewal)
    one = rig(allowance)
    one.begin()
    one.say(b"".join(WORDS))
    one.relay.on_end()
    assert one.client.received == b"".join(WORDS[:4])
    assert not await one.is_cut()
    allowance.answer()
    assert await one.is_cut() is (renewal == "stop")
    one.relay.flush()
    assert one.client.received == b"".join(WORDS[:4] if renewal == "stop" else WORDS)
    assert one.counted == 8


async def test_an_upstream_that_breaks_behind_the_wall_is_billed_and_not_delivered(rig: Callable[..., Rig]) -> None:
    """Nor is half an event from behind it: the client would take it for the next one."""
    one = rig(ScriptedAllowance(3), hidden=HIDING)
    one.begin()
    one.say(b"".join(WORDS[:6]) + WORDS[6][:30])
    one.relay.on_broken(UpstreamUnavailable("gone"), untouched=False)
    with pytest.raises(UpstreamUnavailable):
        await one.relay.whole()
    one.relay.flush()
    assert one.client.received == b"".join(WORDS[:4])
    assert one.counted == 5


async def test_nothing_is_written_after_the_cut(rig: Callable[..., Rig]) -> None:
    """Not even half an event that the meter held: the reply has ended."""
    one = rig(ScriptedAllowance(3, "stop", at_once=True), hidden=HIDING)
    one.begin()
    one.say(b"".join(WORDS[:6]) + WORDS[6][:30])
    one.relay.on_end()
    assert await one.is_cut()
    one.relay.stop_delivery()
    one.relay.flush()
    assert one.client.received == b"".join(WORDS[:4])


async def test_what_came_before_the_reply_began_is_cut_too(rig: Callable[..., Rig]) -> None:
    one = rig(ScriptedAllowance(2, "stop", at_once=True))
    one.head()
    one.say(b"".join(WORDS[:2]), *WORDS[2:])
    one.relay.begin(cast(AnyClient, one.client))
    assert await one.is_cut()
    assert one.client.received == b"".join(WORDS[:3])


@pytest.mark.parametrize("client_first", [True, False])
async def test_a_slow_client_at_the_wall_keeps_the_upstream_paused(rig: Callable[..., Rig], client_first: bool) -> None:
    """It is read again when the client takes more and the grant allows more, whichever comes last."""
    allowance = ScriptedAllowance(2, 100)
    one = rig(allowance)
    one.begin()
    one.say(*WORDS[:4])
    one.relay.on_client_slow()
    steps = [one.relay.on_client_ready, allowance.answer]
    for step in steps if client_first else reversed(steps):
        assert not one.connection.is_read()
        step()
    assert one.connection.is_read()
    assert one.client.received == b"".join(WORDS[:4])


@pytest.mark.parametrize("renewal", [100, "stop"])
async def test_a_client_that_leaves_at_the_wall_has_hung_up(rig: Callable[..., Rig], renewal: int | str) -> None:
    """The grant's word comes too late, in either sense; what is held is counted, and the upstream read again."""
    allowance = ScriptedAllowance(2, renewal)
    one = rig(allowance)
    one.begin()
    one.say(*WORDS[:5])
    one.relay.on_client_lost()
    allowance.answer()
    with pytest.raises(ClientGone):
        await one.relay.whole()
    await one.relay.drained(0)
    assert not one.relay.cut_by_quota
    assert one.connection.is_read()
    assert one.counted == 4


async def test_a_drain_after_a_hang_up_ends_with_the_quota(rig: Callable[..., Rig]) -> None:
    """`on_disconnect: drain`: the upstream does not know, and generates; nobody may generate more than the quota."""
    one = rig(ScriptedAllowance(3, "stop", at_once=True))
    one.begin()
    one.say(*WORDS[:2])
    one.relay.on_client_lost()
    asyncio.get_running_loop().call_soon(one.say, *WORDS[2:6])
    async with asyncio.timeout(5):
        await one.relay.drained(60, within_quota=True)
    assert not one.relay.cut_by_quota
    assert one.connection.is_read()
    assert one.counted == 5


async def test_what_had_been_sent_is_counted_beyond_the_quota(rig: Callable[..., Rig]) -> None:
    """The upstream knows, and this is in flight: generated, and billed; in the slot read by read, for we may die."""
    one = rig(ScriptedAllowance(3, "stop", at_once=True))
    one.begin()
    one.say(*WORDS[:6])
    assert await one.is_cut()
    asyncio.get_running_loop().call_soon(one.say, *WORDS[6:8])
    await one.relay.drained(0.05)
    assert one.counted == 7
    assert one.client.received == b"".join(WORDS[:4])


async def test_the_real_input_is_told_once(rig: Callable[..., Rig]) -> None:
    allowance = ScriptedAllowance(100)
    one = rig(allowance)
    one.begin()
    one.say(*answers.running_chat_stream("a", "b", input_tokens=31))
    assert allowance.inputs == [31]


async def test_a_coded_stream_is_cut_between_reads(rig: Callable[..., Rig]) -> None:
    """Its events cannot be told apart from outside: the read that uses up the last token passes whole."""
    coder = zlib.compressobj(level=0, wbits=31)  # stored: blank lines stand in it as they are
    pairs = [WORDS[1] + WORDS[2], WORDS[3] + WORDS[4], WORDS[5] + WORDS[6]]
    reads = [coder.compress(pair) + coder.flush(zlib.Z_SYNC_FLUSH) for pair in pairs]
    one = rig(ScriptedAllowance(3, "stop", at_once=True), coding="gzip")
    one.begin()
    one.say(*reads)
    assert await one.is_cut()
    assert one.client.received == b"".join(reads[:2])
    one.relay.flush()
    assert one.counted == 6


async def test_a_plain_answer_is_never_cut(rig: Callable[..., Rig]) -> None:
    """JSON to a request for a stream."""
    allowance = ScriptedAllowance(1)
    one = rig(allowance)
    one.begin("application/json")
    body = answers.chat_json(output_tokens=300)
    one.say(body[:40], body[40:])
    one.relay.on_end()
    await one.relay.whole()
    assert one.client.received == body
    assert allowance.spent == []


async def test_what_nothing_bounds_passes_whole(rig: Callable[..., Rig]) -> None:
    allowance = ScriptedAllowance(UNBOUNDED)
    one = rig(allowance)
    one.begin()
    one.say(b"".join(WORDS))
    assert one.client.received == b"".join(WORDS)
    assert allowance.spent == []


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_events_in_a_read_are_found_wherever_it_begins(line_end: bytes) -> None:
    """Joined they are the read; each ends with its blank line, which of the first may have begun before."""
    whole = b"".join(with_line_ends(WORDS, line_end))
    for start in range(400):
        read = whole[start:]
        pieces = [read[begin:end] for begin, end in events_in(read)]
        assert b"".join(pieces) == read
        assert all(piece.endswith(2 * line_end) for piece in pieces[1:])
        assert all(piece.count(b"data:") <= 1 for piece in pieces)
