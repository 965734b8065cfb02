"""All news of one exchange arrive at its relay (`on_...`), in any order, and there its story waits for them.

The story waits for `head`, `whole`, `drained`. A wait ends by what it waits for, by `UpstreamError`, by `ClientGone`,
or by `QuotaReached`. While nobody waits, news go to `on_news`. What passes, passes through the `Tee`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from time import perf_counter

from meter_proxy.errors import UpstreamError, UpstreamTimeout
from meter_proxy.gateway.client import Client, ClientGone, PlainClient
from meter_proxy.gateway.http1 import ResponseHead
from meter_proxy.gateway.tee import Tee
from meter_proxy.gateway.upstream import UpstreamConnection
from meter_proxy.gateway.wall import Allowance
from meter_proxy.gateway.watch import IDLE_TICKS, Deadlines, Timed, Times
from meter_proxy.ledger.slots import Slot
from meter_proxy.metering.meter import Meter
from meter_proxy.telemetry.stats import WorkerStats

HIGH_WATER_BYTES = 65_536  # of body that arrived before the reply's head is out
SAMPLE_EVERY = 64  # reads; of these the time in our hands is measured

MeterFactory = Callable[[ResponseHead], Meter]


class QuotaReached(Exception):
    """The last granted token is delivered, and there will be no more."""


class Relay(Tee):
    """What passes, and what has happened so far, in one exchange."""

    __slots__ = (
        "_client_stall_s",
        "_connection",
        "_corks",
        "_drain_over",
        "_early",
        "_early_bytes",
        "_flushed",
        "_idle_ticks",
        "_interrupt",
        "_make_meter",
        "_reads",
        "_reads_at_tick",
        "_stall_timer",
        "_stats",
        "_times",
        "_total",
        "_wake",
        "broke_untouched",
        "client_is_slow",
        "client_lost",
        "cut",
        "ended",
        "error",
        "finished_at_loss",
        "first_byte_at",
        "lost_by_cut",
        "on_news",
        "response_head",
    )

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
        super().__init__(slot, allowance)
        self.on_news: Callable[[], None] | None = None
        self.error: UpstreamError | None = None
        self.broke_untouched = False
        self.ended = False
        self.client_lost = False
        self.finished_at_loss = False  # the client had seen the finish, or the whole body, when it left
        self.cut = False
        self.lost_by_cut = False  # the client was there until the cut
        self.response_head: ResponseHead | None = None  # of the answer, once it is there
        self.client_is_slow = False  # it has not taken yet what was written
        self.first_byte_at: float | None = None
        self._make_meter = make_meter
        self._stats = stats
        self._client_stall_s = client_stall_s
        self._connection: UpstreamConnection | None = None
        self._early: list[tuple[bytes, bytes | None]] | None = []  # body that came before the reply was begun
        self._early_bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._interrupt: asyncio.Timeout | None = None
        self._times: Times | None = None  # of the upstream that is asked
        self._total: Deadlines[Timed] | None = None
        self._reads = 0
        self._reads_at_tick = 0
        self._idle_ticks = 0
        self._flushed = False
        self._drain_over = False
        self._corks: PlainClient | None = None

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
        self._client = self._to = client
        if self.client_is_slow:  # still with its last reply, or with the head of this one
            self._pause_upstream()
            self._watch_stall(client.unsent_bytes())
        early, self._early = self._early, None
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
        self._to = None
        early, self._early = self._early or [], None
        for payload, _ in early:
            self._pass(payload, None)
        super().stop_delivery()

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
        if self._flushed or self.meter is None:
            return
        self._flushed = True
        if self.is_at_wall:  # what stands behind it is not what comes next
            self.stop_delivery()
        self._hand_out_rest()

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
        self._connection = self._client = self._to = None

    def cut_off(self) -> None:
        """Shutdown: end the exchange now, as if the client had hung up; if it has, drain no longer."""
        self.cut = True
        if self.client_lost:
            self._end_drain()
        else:
            self.lost_by_cut = True
            self.on_client_lost()

    # News of the upstream.

    def cork(self) -> bool:
        return self._corks is not None and self._corks.cork()

    def uncork(self) -> None:
        if self._corks is not None:
            self._corks.uncork()

    def serve(self, client: PlainClient) -> None:
        """`client` gets as one write what comes of one read."""
        self._corks = client

    def on_head(self, head: ResponseHead) -> None:
        self.first_byte_at = perf_counter()
        if self._times is not None:
            self._times.first_byte.discard(self)
        self.response_head = head
        self._measure_with(self._make_meter(head))
        self._notify()

    def on_body(self, payload: bytes, framed: bytes | None) -> None:
        reads = self._reads = self._reads + 1
        if self._early is not None:
            self._keep_early(payload, framed)
        elif not reads % SAMPLE_EVERY:
            began_at = perf_counter()
            self._forward(payload, framed)
            self._stats.observe_overhead("chunk", perf_counter() - began_at)
        elif self._allowance is None:  # as `_forward`, for each chunk, without a call
            self._pass(payload, framed)
        else:
            self._pass_within(self._allowance, payload, framed)

    def _forward(self, payload: bytes, framed: bytes | None) -> None:
        if self._allowance is None:
            self._pass(payload, framed)
        else:
            self._pass_within(self._allowance, payload, framed)

    def _keep_early(self, payload: bytes, framed: bytes | None) -> None:
        assert self._early is not None
        self._early.append((payload, framed))
        self._early_bytes += len(payload)
        if self._early_bytes > HIGH_WATER_BYTES and self._connection is not None:
            self._connection.transport.pause_reading()

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
        self._client = self._to = None
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        if self._interrupt is not None:
            self._interrupt.reschedule(asyncio.get_running_loop().time())
        self._notify()

    def on_client_slow(self) -> None:
        self.client_is_slow = True
        if self._to is not None or self._early is not None:
            self._pause_upstream()
        self._watch_stall(self._client.unsent_bytes() if self._client else 0)

    def on_client_ready(self) -> None:
        self.client_is_slow = False
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._resume_upstream()

    def _pause_upstream(self) -> None:
        if self._connection is not None and not self.ended and self.error is None:
            self._connection.transport.pause_reading()

    def _left_wall(self) -> None:
        if not self.client_is_slow:
            self._resume_upstream()
        self._notify()

    def _is_whole(self) -> bool:
        return self.ended

    def _resume_upstream(self) -> None:
        if self.is_at_wall:
            return
        if self._connection is not None and not self.ended and self.error is None:
            self._connection.transport.resume_reading()

    def _watch_stall(self, unsent_before: int) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
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
