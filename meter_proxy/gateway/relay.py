"""The tee: upstream bytes -> meter -> client.

Nothing else happens in that loop: no task switch, no queue, no log line, no metric look-up. What was
generated is counted before it is forwarded: a killed process must not have given tokens away.

The relay also is where all news of one exchange arrive (`on_...`), in any order, and where its story
waits for them (`head`, `whole`, `drained`). A wait ends by what it waits for, by `UpstreamError`, by `ClientGone`,
or by `QuotaReached`. While nobody waits, news go to `on_news`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from time import perf_counter

from meter_proxy.errors import UpstreamError, UpstreamTimeout
from meter_proxy.gateway.client import Client, ClientGone
from meter_proxy.gateway.http1 import ResponseHead
from meter_proxy.gateway.upstream import UpstreamConnection
from meter_proxy.gateway.wall import Allowance, events_in
from meter_proxy.gateway.watch import IDLE_TICKS, Deadlines, Timed, Times
from meter_proxy.ledger.slots import Slot
from meter_proxy.metering.meter import CodedMeter, Meter
from meter_proxy.telemetry.metrics import WorkerStats

HIGH_WATER_BYTES = 65_536  # of body that arrived before the reply's head is out
SAMPLE_EVERY = 64  # reads; of these the time in our hands is measured

MeterFactory = Callable[[ResponseHead], Meter]


class QuotaReached(Exception):
    """The last granted token is delivered, and there will be no more."""


class Relay:
    """What passes, and what has happened so far, in one exchange."""

    # Most exchanges change few of these: what stands here costs nothing to begin with.
    on_news: Callable[[], None] | None = None
    error: UpstreamError | None = None
    broke_untouched = False
    ended = False
    client_lost = False
    finished_at_loss = False  # the client had seen the finish, or the whole body, when it left
    cut = False
    lost_by_cut = False  # the client was there until the cut
    cut_by_quota = False
    meter: Meter | None = None
    response_head: ResponseHead | None = None  # of the answer, once it is there
    client_is_slow = False  # it has not taken yet what was written
    is_at_wall = False  # all that is granted is delivered; `_held` is what came after
    first_byte_at: float | None = None
    first_token_at: float | None = None
    _connection: UpstreamConnection | None = None
    _client: Client | None = None
    _early_bytes = 0
    _wake: asyncio.Future[None] | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _interrupt: asyncio.Timeout | None = None
    _times: Times | None = None  # of the upstream that is asked
    _total: Deadlines[Timed] | None = None
    _reads = 0
    _reads_at_tick = 0
    _idle_ticks = 0
    _flushed = False
    _last_read: tuple[bytes, bytes | None] | None = None  # held back: see _pass
    _drain_over = False
    _spent = 0  # output tokens so far: as the upstream counts them, else one per content event
    _delivers = True  # else what comes is only counted
    _drains_within_quota = False
    _is_coded = False  # its events cannot be told apart where a read is cut
    _input_told = False

    def __init__(
        self,
        make_meter: MeterFactory,
        slot: Slot,
        stats: WorkerStats,
        *,
        client_stall_s: float,
        allowance: Allowance | None = None,
    ) -> None:
        """`allowance` None: nothing limits the output."""
        self._make_meter = make_meter
        self.slot = slot
        self._stats = stats
        self._client_stall_s = client_stall_s
        self._allowance = allowance
        if allowance is not None:
            allowance.on_change = self._on_allowance
        self._held: list[bytes] = []
        self._early: list[tuple[bytes, bytes | None]] | None = []  # body that came before the reply was begun

    # The story's waits.

    @contextlib.asynccontextmanager
    async def unless_client_lost(self) -> AsyncIterator[None]:
        """Run the block, which awaits something else than news; a hang-up ends it with ClientGone."""
        try:
            async with asyncio.timeout(None) as self._interrupt:
                if self.client_lost:
                    raise ClientGone
                yield
        except TimeoutError as exc:
            raise ClientGone from exc
        finally:
            self._interrupt = None

    def open(self, connection: UpstreamConnection, request: bytes, times: Times) -> None:
        """Send the request; from here on the answer arrives."""
        self._connection = connection
        self.response_head = self.error = None
        self.ended = False
        if self._total is None:
            self._total = times.total
            times.total.add(self)
        self._times = times
        times.first_byte.add(self)
        connection.send(request, self)

    async def head(self) -> ResponseHead:
        while self.response_head is None:
            self._raise_ending()
            await self._news()
        return self.response_head

    async def skip_body(self, timeout_s: float) -> None:
        """Let a refused answer pass unread, so that its connection can be used again."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.ended and self.error is None and not self.client_lost:
                    await self._news()
        except TimeoutError:
            pass
        self.leave_upstream()
        self._early, self._early_bytes = [], 0
        if self.client_lost:
            raise ClientGone

    def begin(self, client: Client) -> None:
        """The head of the reply is out: forward what has come, and from now on all that comes."""
        self._client = client
        early, self._early = self._early or [], None
        if early:
            if len(early) == 1:
                self._forward(*early[0])
            else:
                self._forward(b"".join(payload for payload, _ in early), None)
            if self._early_bytes > HIGH_WATER_BYTES and not self.client_is_slow:
                self._resume_upstream()
        if self._times is not None and not self.ended:
            self._reads_at_tick, self._idle_ticks = self._reads, 1
            self._times.idle.add(self)

    async def whole(self) -> None:
        """Wait until all of the answer has passed, and what the meter still held has been sent."""
        while not self.ended or self.is_at_wall:
            self._raise_ending()
            await self._news()
        self._raise_ending()
        self.flush()

    def stop_delivery(self) -> None:
        """Nobody gets any more of the answer: what is held, and what still comes, is only counted."""
        self._delivers = self.is_at_wall = False
        early, self._early = self._early or [], None
        for payload, _ in early:
            self._count(payload)
        self._count_held()

    async def drained(self, seconds: float, *, within_quota: bool = False) -> None:
        """Nobody gets any more: count what the upstream still sends, for at most `seconds`.

        `within_quota`: the upstream does not know yet, and goes on generating; end when that is used up.
        """
        self.stop_delivery()
        self._drains_within_quota = within_quota
        self._resume_upstream()  # what it was paused for is over
        self._drain_over = False
        deadline = asyncio.get_running_loop().call_later(seconds, self._end_drain)
        try:
            while not (self.ended or self.error is not None or self._drain_over):
                await self._news()
        finally:
            deadline.cancel()

    def _end_drain(self) -> None:
        self._drain_over = True
        self._notify()

    def leave_upstream(self) -> None:
        """Nothing more comes from it, and nobody may wait for more."""
        if not self.ended and self._connection is not None:
            self._connection.close()
            self.ended = True

    def flush(self) -> None:
        """Nothing more will come: send what the meter still held back."""
        meter = self.meter
        if meter is not None and not self._flushed:
            self._flushed = True
            if self.is_at_wall:  # what stands behind it is not what comes next
                self.stop_delivery()
            # Half of a JSON document is not one that cannot be read: it has no end to be read at.
            rest = meter.finish() if self.ended or not meter.reads_at_end else b""
            self._note()
            if self._client is not None and self._delivers:
                if self._last_read is not None:
                    self._client.write(*self._last_read)
                if rest:
                    self._client.write(rest, None)

    def close(self) -> None:
        """No more timers, no more news; a connection that is still in use is closed."""
        if self._times is not None and self._total is not None:
            self._times.first_byte.discard(self)
            self._times.idle.discard(self)
            self._total.discard(self)
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self.on_news = None
        self._make_meter = _no_meter  # the exchange's: else both would wait for the garbage collector
        if self._connection is not None and not self.ended and self.error is None:
            self._connection.close()
        self._connection = None
        self._client = None

    def cut_off(self) -> None:
        """Shutdown: end the exchange now, as if the client had hung up; if it has, drain no longer."""
        self.cut = True
        if self.client_lost:
            self._end_drain()
        else:
            self.lost_by_cut = True
            self.on_client_lost()

    # News of the upstream.

    def on_head(self, head: ResponseHead) -> None:
        self.first_byte_at = perf_counter()
        if self._times is not None:
            self._times.first_byte.discard(self)
        self.response_head = head
        self.meter = self._make_meter(head)
        self._is_coded = isinstance(self.meter, CodedMeter)
        self._notify()

    def on_body(self, payload: bytes, framed: bytes | None) -> None:
        self._reads += 1
        if self._early is not None:
            self._early.append((payload, framed))
            self._early_bytes += len(payload)
            if self._early_bytes > HIGH_WATER_BYTES and self._connection is not None:
                self._connection.transport.pause_reading()
        elif self._reads % SAMPLE_EVERY:
            self._forward(payload, framed)
        else:
            began_at = perf_counter()
            self._forward(payload, framed)
            self._stats.observe_overhead("chunk", perf_counter() - began_at)

    def on_end(self) -> None:
        self.ended = True
        self._notify()

    def on_broken(self, error: UpstreamError, *, untouched: bool) -> None:
        self.error = error
        self.broke_untouched = untouched
        self._notify()

    def too_slow(self, what: str, seconds: float) -> None:
        """The upstream's time is over."""
        connection = self._connection
        if connection is None or self.ended or self.error is not None:
            return
        self.error = UpstreamTimeout(f"upstream {connection.pool.name} {what} within {seconds:g} s")
        connection.close()
        self._notify()

    def idle_tick(self, idle_s: float) -> None:
        """A part of the idle time is over."""
        if self.ended or self.error is not None or self._times is None:
            return
        if self._reads != self._reads_at_tick or self.client_is_slow or self.is_at_wall:
            self._reads_at_tick, self._idle_ticks = self._reads, 0
        if self._idle_ticks > IDLE_TICKS:
            self.too_slow("sent nothing", idle_s)
            return
        self._idle_ticks += 1
        self._times.idle.add(self)

    # News of the client.

    def on_client_lost(self) -> None:
        if self.client_lost:
            return
        meter = self.meter
        self.client_lost = True
        seen_all = self._early is None and not self.client_is_slow
        self.finished_at_loss = seen_all and meter is not None and (meter.finished or meter.done)
        self.client_is_slow = False
        self._client = None
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        if self._interrupt is not None:
            self._interrupt.reschedule(asyncio.get_running_loop().time())
        self._notify()

    def on_client_slow(self) -> None:
        self.client_is_slow = True
        if self._delivers and self._connection is not None and not self.ended and self.error is None:
            self._connection.transport.pause_reading()
        self._watch_stall(self._client.unsent_bytes() if self._client else 0)

    def on_client_ready(self) -> None:
        self.client_is_slow = False
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._resume_upstream()

    def _resume_upstream(self) -> None:
        if self.is_at_wall:
            return
        if self._connection is not None and not self.ended and self.error is None:
            self._connection.transport.resume_reading()

    def _watch_stall(self, unsent_before: int) -> None:
        self._stall_timer = asyncio.get_running_loop().call_later(self._client_stall_s, self._on_stall, unsent_before)

    def _on_stall(self, unsent_before: int) -> None:
        client = self._client
        if client is None or not self.client_is_slow:
            return
        unsent = client.unsent_bytes()
        if unsent < unsent_before:  # slow, but alive
            self._watch_stall(unsent)
        else:
            client.transport.abort()
            self.on_client_lost()

    # The tee itself.

    def _forward(self, payload: bytes, framed: bytes | None) -> None:
        if self._allowance is None:
            self._pass(payload, framed)
        elif self.is_at_wall:
            self._held.append(payload)
        elif self._delivers:
            self._pass_within(self._allowance, payload, framed)
        else:
            self._count_within(self._allowance, payload)

    def _pass_within(self, allowance: Allowance, payload: bytes, framed: bytes | None) -> None:
        """Forward up to the event that uses up the last granted token."""
        room = allowance.granted - self._spent
        if room > len(payload) or self._is_coded or self._cannot_use_up(room, payload):
            self._pass(payload, framed)
            if self._spent >= allowance.top_up_at and self._is_used_up(allowance):
                self._stop_at_wall(b"")
            return
        for start, end in events_in(payload):
            whole = end - start == len(payload)
            self._pass(payload if whole else payload[start:end], framed if whole else None)
            if self._spent >= allowance.top_up_at and self._is_used_up(allowance):
                self._stop_at_wall(payload[end:])
                return

    def _cannot_use_up(self, room: int, payload: bytes) -> bool:
        """A read of many events cannot reach the wall, though a token takes a byte at least.

        Where the first content told no running usage none will, and each event is one: those that end here have their
        `data:` here, but for the one that began before.
        """
        meter = self.meter
        return self._spent > 0 and meter is not None and not meter.has_usage and room > payload.count(b"data:") + 1

    def _is_used_up(self, allowance: Allowance) -> bool:
        """See to more, where the answer needs more; whether nothing of what is granted is left."""
        meter = self.meter
        if meter is None or meter.finished or meter.done or meter.failed or meter.reads_at_end:
            return False  # it has come to its end by itself
        allowance.top_up(self._spent)
        return self._spent >= allowance.granted

    def _count_within(self, allowance: Allowance, payload: bytes) -> None:
        """Nobody gets it any more; but nobody may generate more than the quota either."""
        self._count(payload)
        if not self._drains_within_quota or self._spent < allowance.top_up_at:
            return
        if self._is_used_up(allowance) and allowance.exhausted is not None:
            self._end_drain()

    def _stop_at_wall(self, rest: bytes) -> None:
        """All that is granted is delivered. Wait for more, if more may come."""
        self._held = [rest] if rest else []
        if self._connection is not None and not self.ended and self.error is None:
            self._connection.transport.pause_reading()
        self.is_at_wall = True
        if self._allowance is not None and self._allowance.exhausted is not None:
            self._cut()

    def _on_allowance(self) -> None:
        """More was granted, or there will be no more."""
        allowance = self._allowance
        if allowance is None or not self.is_at_wall or self.client_lost or self.cut_by_quota:
            return
        if self._spent < allowance.granted:
            self.is_at_wall = False
            held, self._held = self._held, []
            for payload in held:
                self._forward(payload, None)
            if not self.is_at_wall:
                if not self.client_is_slow:
                    self._resume_upstream()
                self._notify()
        elif allowance.exhausted is not None:
            self._cut()
        else:  # what was granted was not enough for the last event
            allowance.top_up(self._spent)
            if self._spent < allowance.granted or allowance.exhausted is not None:
                self._on_allowance()

    def _cut(self) -> None:
        self.cut_by_quota = True
        self._notify()

    def _count_held(self) -> None:
        """What came after the wall is generated, and billed, though nobody gets it."""
        held, self._held = self._held, []
        for payload in held:
            self._count(payload)

    def _pass(self, payload: bytes, framed: bytes | None) -> None:
        out = self._count(payload)
        client = self._client
        if client is None:
            return
        if self.meter.reads_at_end:  # type: ignore[union-attr]
            # The last read of a plain answer waits until its usage is in the slot: a client that has a whole
            # answer has a whole bill. Which read is the last is known when another comes, or the end.
            before, self._last_read = self._last_read, (payload, framed)
            if before is not None:
                client.write(*before)
        elif out is payload:
            client.write(payload, framed)
        elif out:
            client.write(out, None)

    def _count(self, payload: bytes) -> bytes:
        meter = self.meter
        assert meter is not None
        out = meter.feed(payload)
        content_events = meter.content_events
        if content_events and self.first_token_at is None:
            self.first_token_at = perf_counter()
            self.slot.first_token(self.first_token_at)
        # Count before forwarding: a killed process must not have given tokens away.
        if meter.has_usage or meter.finished or meter.failed:
            self._note()
        else:
            self._spent = content_events
            self.slot.count(content_events)
        return out

    def _note(self) -> None:
        """Store everything that the meter knows in the slot."""
        meter = self.meter
        assert meter is not None
        reading = meter.usage_so_far()
        self._spent = reading.usage.output_tokens or 0
        if not self._input_told and self._allowance is not None and reading.usage.input_tokens is not None:
            self._input_told = True
            self._allowance.input_is(reading.usage.input_tokens)
        self.slot.note(
            reading,
            content_events=meter.content_events,
            finished=meter.finished,
            done=meter.done,
            failed=meter.failed,
        )

    def _raise_ending(self) -> None:
        if self.cut_by_quota:
            raise QuotaReached
        if self.client_lost:
            raise ClientGone
        if self.error is not None:
            raise self.error

    async def _news(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _notify(self) -> None:
        if self._wake is not None:
            if not self._wake.done():
                self._wake.set_result(None)
        elif self.on_news is not None:
            self.on_news()


def _no_meter(head: ResponseHead) -> Meter:
    raise AssertionError("nothing is relayed any more")
