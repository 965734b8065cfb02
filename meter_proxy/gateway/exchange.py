"""The story of one metered request: forward, relay, settle. (Identify and admit: `gateway.py`.)

An `Exchange` is born admitted. From then on its `record()` is valid at every instant, so no way of
ending (hang-up, time-out, cancel, shutdown, an error of ours) needs a branch of its own that could be
forgotten: whatever happens, the one `finally` settles, exactly once, without waiting for anything.

Nearly all exchanges never wait for anything but their upstream's next bytes. These are served *ahead* of the story:
`go_ahead` sends the request in the call in which it arrived, and news of the relay move it on (`_advance`), without a
task. Whatever is not plain (no connection at hand, a refusal, a break, a hang-up, a wall) is left to the story, which
takes up where that stands.

Not retried: a request whose bytes may have reached an upstream. Two exceptions: a reused connection
that died before any byte of an answer, and the one retry without a field of ours that was refused.
"""

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from meter_proxy.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from meter_proxy.gateway.client import Client, ClientGone, PlainClient, ReplyHead
from meter_proxy.gateway.headers import ReplyFields, reply_fields, request_head, request_start
from meter_proxy.gateway.http1 import Framing, ResponseHead
from meter_proxy.gateway.inbound import Call
from meter_proxy.gateway.redaction import RedactedError, WithheldError, masked
from meter_proxy.gateway.relay import QuotaReached, Relay
from meter_proxy.gateway.replies import upstream_error_answer
from meter_proxy.gateway.settlement import make_record
from meter_proxy.gateway.upstream import UpstreamConnection
from meter_proxy.ledger.admission import Admission
from meter_proxy.ledger.grants import UNBOUNDED, Grant
from meter_proxy.ledger.slots import Slot
from meter_proxy.metering.billing import outcome_of_status
from meter_proxy.metering.ending import failed, stopped
from meter_proxy.metering.injection import NOTHING_HIDDEN, RunningUsage, rewrite_body
from meter_proxy.metering.meter import Meter, meter_for, stream_of
from meter_proxy.tasks import spawn
from meter_proxy.usage import Operation, Outcome, Usage, UsageRecord

if TYPE_CHECKING:
    from meter_proxy.gateway.gateway import Gateway

_log = logging.getLogger("meter_proxy.gateway")

WITHHELD_FIELDS = ReplyFields((("content-type", "application/json"),), b"content-type: application/json\r\n", "")
_OFF = RunningUsage.OFF
SKIP_REFUSAL_S = 1.0  # a refused injection: for this long its body may pass, to keep the connection


class _Ahead(NamedTuple):
    """A request that was sent before the story began."""

    body: bytes
    include_usage: bool


class Exchange:
    """One request and its response."""

    def __init__(
        self,
        gateway: "Gateway",
        call: Call,
        admission: Admission,
        slot: Slot,
        body: bytes,
        client: Client,
        grant: Grant | None = None,
    ) -> None:
        """`grant`: what its quotas let it use; None: it has none."""
        self.id = admission.id
        self.call = call
        self.admission = admission
        self.slot = slot
        self.began_at = time.perf_counter()  # not the loop's clock: uvloop's has steps of 1 ms
        self.status: int | None = None  # of the head that the client got
        self.grant = grant
        self.relay = Relay(
            self._make_meter,
            slot,
            gateway.stats,
            client_stall_s=gateway.config.limits.client_stall_s,
            allowance=grant if call.asked.stream else None,
        )
        self._is_bounded = grant is not None and grant.granted < UNBOUNDED
        self.reached_upstream = False
        self.quota_headers: tuple[tuple[str, str], ...] = ()
        self._gateway = gateway
        self._client = client
        self._is_attached = False
        self._has_begun = False  # the head of the reply is sent
        self._ahead: _Ahead | None = None  # what was sent before the story began
        self._body = body  # the client's own bytes; dropped once the upstream answers
        self._pool = gateway.pools[admission.upstream]
        self._connection: UpstreamConnection | None = None
        self._hidden = NOTHING_HIDDEN
        self._outcome: Outcome | None = None
        self._is_settled = False

    def __repr__(self) -> str:
        call = self.call
        return f"<Exchange {self.id} key={call.caller.key_id} {call.operation} {self.outcome} status={self.status}>"

    # Ahead of the story.

    def go_ahead(self, client: PlainClient) -> None:
        """Serve the exchange of `client` to its end and settle it; what cannot be done at once goes on in a task."""
        try:
            self._attach()
            self.relay.serve(client)
            include_usage = self._may_inject()
            running = self._gateway.identities.known_running_usage(self._pool.name) if include_usage else _OFF
            connection = self._pool.take_idle() if running is not None else None
            if running is None or connection is None:
                self._tell_story()
                return
            body = self._prepare_body(include_usage, running)
            self._ahead = _Ahead(body, include_usage)
            self.relay.on_news = partial(self._advance, client)
            self._open(connection, self._request(body))
        except ClientGone:
            self.relay.on_client_lost()
            self._settle()
        except Exception:
            self._fail()

    def _advance(self, client: PlainClient) -> None:
        """News of the relay."""
        relay = self.relay
        try:
            if (
                relay.error is not None
                or relay.client_lost
                or relay.cut_by_quota
                or (relay.ended and relay.client_is_slow)
            ):
                self._tell_story()
            elif not self._has_begun:
                head = relay.response_head
                if head is None:
                    return
                if self._ahead is not None and self._ahead.include_usage and _may_be_our_fault(head):
                    self._tell_story()
                    return
                self._gateway.upstream_answered(self._pool, None)
                client.begin_now(self._reply_head(head))
                self._now_relay()
            elif relay.ended and not relay.is_at_wall:
                relay.flush()
                client.end_now()
                if relay.client_is_slow:
                    self._tell_story()  # it is to take the last of it first
                else:
                    self._settle()
        except Exception:
            self._fail()

    def _tell_story(self) -> None:
        self.relay.on_news = None
        spawn(self.run(), name=f"exchange {self.id}")

    def _fail(self) -> None:
        """A mistake of ours: bill what is known, and let nobody take the answer for whole."""
        _log.exception("%s failed", self.id)
        self._outcome = Outcome.CRASHED
        self.relay.on_news = None
        self._break_off()
        self._settle()

    # The story.

    async def run(self) -> None:
        """Serve the exchange to its end and settle it."""
        if self._is_settled:
            return  # a mistake of ours has ended it before its story began
        try:
            try:
                await self._answer()
            except QuotaReached:
                await self._end_at_wall()
        except UpstreamError as exc:
            self._upstream_failed(exc)
        except (ClientGone, ConnectionError):
            self.relay.on_client_lost()
            await self._drain()
        except asyncio.CancelledError:
            # The application has `handler_cancellation`, or is shutting down: for us, a hang-up like any other.
            if not self.relay.client_lost:
                self.relay.cut_off()
            await self._drain()
            raise
        except Exception:
            self._outcome = Outcome.CRASHED
            raise
        finally:
            self._settle()

    async def _answer(self) -> None:
        self._attach()
        if not self._has_begun:
            head = await self._ask()
            await self._client.begin(self._reply_head(head))
            self._now_relay()
        await self.relay.whole()
        await self._client.end()

    def _attach(self) -> None:
        if not self._is_attached:
            self._client.attach(self.relay)
            self._is_attached = True

    def cut_off(self) -> None:
        """Shutdown, after the drain time: end now, bill what was generated."""
        self.relay.cut_off()
        self._break_off()

    # Forward.

    async def _ask(self) -> ResponseHead:
        """The head of the answer that the client is to get. Several upstreams are tried in order."""
        error: UpstreamError = UpstreamUnavailable("no upstream is configured for this model")
        for name in self.call.model.upstreams:
            if name != self._pool.name:
                self._turn_to(name)
            try:
                head = await self._ask_with_injection()
            except UpstreamError as exc:
                self._gateway.upstream_answered(self._pool, exc)
                if self.reached_upstream:
                    raise
                error = exc
            else:
                self._gateway.upstream_answered(self._pool, None)
                return head
        raise error

    def _turn_to(self, upstream: str) -> None:
        """Nothing has reached the upstream before: the exchange is another one's."""
        self._pool = self._gateway.pools[upstream]
        always = self._pool.config.bill_prompt == "always"
        self.admission = msgspec.structs.replace(self.admission, upstream=upstream, prompt_always=always)
        slot = self._gateway.ledger.admit(self.admission)
        if slot is not None:  # else the old one stays: of all slots taken, one names the wrong upstream
            self.slot.free()
            self.slot = self.relay.slot = slot

    async def _ask_with_injection(self) -> ResponseHead:
        """Ask for usage in the client's name. A refusal is asked again once as the client did.

        Only if that is taken is our field to blame: a client's own mistake must not switch metering off.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            include_usage, running = self._may_inject(), _OFF
            if include_usage:
                async with self.relay.unless_client_lost():
                    running = await self._gateway.identities.running_usage(self._pool.name)
            ahead = _Ahead(self._prepare_body(include_usage, running), include_usage)
            head = await self._send(ahead.body)
        else:
            head = await self._send(ahead.body, is_sent=True)
        if ahead.include_usage and _may_be_our_fault(head):
            plain = self._prepare_body(False, _OFF)
            if plain != ahead.body:
                await self.relay.skip_body(SKIP_REFUSAL_S)
                head = await self._send(plain)
                if 200 <= head.status < 300:
                    self._gateway.refusals.remember(self._pool.name, self.call.model.upstream_model)
        return head

    def _may_inject(self) -> bool:
        call = self.call
        takes_fields = call.asked.stream and call.operation is not Operation.EMBEDDINGS
        return takes_fields and not self._gateway.refusals.is_known(self._pool.name, call.model.upstream_model)

    def _prepare_body(self, include_usage: bool, running: RunningUsage) -> bytes:
        call = self.call
        body, self._hidden = rewrite_body(
            self._body,
            call.asked,
            upstream_model=call.model.upstream_model,
            include_usage=include_usage,
            running=running,
            max_tokens=self.grant.max_tokens if self.grant is not None else None,
        )
        return body

    async def _send(self, body: bytes, *, is_sent: bool = False) -> ResponseHead:
        """Put the request on a connection; a reused one that turns out to be dead is replaced once.

        `is_sent`: it is on a reused one already.
        """
        pool = self._pool
        connection = None if is_sent else pool.take_idle()
        if is_sent or connection is not None:
            try:
                if connection is not None:
                    self._open(connection, self._request(body))
                return await self.relay.head()
            except UpstreamUnavailable:
                if not self.relay.broke_untouched:
                    raise
        async with self.relay.unless_client_lost():
            connection = await pool.connect()
        self._open(connection, self._request(body))
        return await self.relay.head()

    def _request(self, body: bytes) -> bytes:
        pool, path = self._pool, self.call.path
        start = pool.request_heads.get(path)
        if start is None:
            start = request_start(pool.base_path + path, pool.host_header, api_key=pool.api_key)
            pool.request_heads[path] = start
        return request_head(start, self.call.forwarded, length=len(body), request_id=self.id) + body

    def _open(self, connection: UpstreamConnection, request: bytes) -> None:
        if not self.reached_upstream:
            self.reached_upstream = True
            self.slot.forwarded()
            self._gateway.stats.observe_overhead("request", time.perf_counter() - self.began_at)
        self._connection = connection
        self.relay.open(connection, request, self._pool.times)

    # Relay.

    def _make_meter(self, head: ResponseHead) -> Meter:
        if head.status >= 400 and self._pool.api_key:
            coded = head.get("content-encoding").strip().lower() not in ("", "identity")
            return WithheldError() if coded else RedactedError(self._pool.api_key)
        return meter_for(
            self.call.operation,
            status=head.status,
            content_type=head.get("content-type"),
            content_encoding=head.get("content-encoding"),
            asked=self.call.asked,
            hidden=self._hidden,
            max_event_bytes=self._gateway.config.limits.max_event_bytes,
        )

    def _reply_head(self, head: ResponseHead) -> ReplyHead:
        """The head of the reply, about to be sent."""
        self._body = b""  # a stream may live for hours, its prompt need not
        secret = self._pool.api_key
        fields = reply_fields(head, secret=secret)
        own = (
            ("x-request-id", fields.request_id or self.id),
            ("x-meter-request-id", self.id),
            *self.quota_headers,
        )
        length: int | None = None
        if isinstance(self.relay.meter, WithheldError):
            fields = WITHHELD_FIELDS
        elif head.framing in (Framing.LENGTH, Framing.NONE) and (
            head.status >= 300 or (self._hidden == NOTHING_HIDDEN and not self._is_bounded)
        ):
            length = head.length
        self.status = head.status
        self.slot.answered(head.status)
        self._has_begun = True
        return ReplyHead(head.status, masked(head.reason, secret), fields, own, length)

    def _now_relay(self) -> None:
        """The head is sent: open the way for the body."""
        self.relay.begin(self._client)
        if self.relay.first_byte_at is not None:
            self._gateway.stats.observe_overhead("first_byte", time.perf_counter() - self.relay.first_byte_at)

    # The ways to end early.

    async def _end_at_wall(self) -> None:
        """A quota is used up: the client's stream ends here, properly; then the upstream is told."""
        client, relay = self._client, self.relay
        ending = self._ending()
        if ending is None:
            self._break_off()
        else:
            client.write(ending, None)
        relay.stop_delivery()
        if ending is not None and not relay.client_is_slow:  # who is slow must not keep the upstream at work
            await client.end()
        await self._drain()
        relay.leave_upstream()
        if ending is not None:
            await client.end()

    def _ending(self) -> bytes | None:
        """The last events of a stream that is cut here; None for a coded one, which cannot be ended in our words."""
        stream, grant = stream_of(self.relay.meter), self.grant
        if stream is None or grant is None:
            return None
        if grant.exhausted == "error":
            return failed(f"The quota {grant.cut_by.id if grant.cut_by else ''} is used up: the answer ends here.")
        usage = self._usage_so_far() if self.call.asked.asked_for_usage else None
        return stopped(self.call.operation, stream.sample, stream.open_choices, usage)

    def _upstream_failed(self, exc: UpstreamError) -> None:
        """The client sees the break: an error before the reply's head, a reply without its end after it."""
        self._outcome = Outcome.UPSTREAM_TIMEOUT if isinstance(exc, UpstreamTimeout) else Outcome.UPSTREAM_FAILED
        if self._has_begun:
            _log.warning("%s: %s", self.id, exc)
            self.relay.flush()
            self._break_off()
            return
        answer = upstream_error_answer(exc, self.id)
        self.status = answer.status
        self._client.answer(answer._replace(headers=(*answer.headers, *self.quota_headers)))

    def _break_off(self) -> None:
        if self._is_attached:
            self._client.break_off(linger_s=self._gateway.config.limits.client_stall_s)

    async def _drain(self) -> None:
        """Nobody gets any more: tell the upstream, and count what it had already sent."""
        connection, relay = self._connection, self.relay
        if connection is None or relay.ended or relay.error is not None:
            return
        policy = self._pool.config.on_disconnect
        may_finish = not (relay.cut or relay.cut_by_quota)
        if policy.kind == "drain" and may_finish:
            await relay.drained(self._pool.config.timeouts.total_s, within_quota=True)
        elif policy.kind == "drain_for" and may_finish:
            await relay.drained(policy.drain_for_s or 0.0, within_quota=True)
        if not relay.ended and relay.error is None:
            await relay.drained(connection.half_close())

    # Settle.

    @property
    def outcome(self) -> Outcome:
        """How the exchange ends if it ends now."""
        relay, meter = self.relay, self.relay.meter
        if self._outcome is not None:
            return self._outcome
        if relay.cut_by_quota:
            return Outcome.QUOTA_CUT
        if relay.client_lost and relay.finished_at_loss:
            return Outcome.COMPLETED
        failure = outcome_of_status(self.status)
        if failure is not None:
            return failure
        if relay.lost_by_cut:
            return Outcome.DRAINED
        if relay.client_lost:
            return Outcome.CLIENT_DISCONNECTED
        if meter is not None and meter.failed:
            return Outcome.UPSTREAM_FAILED
        return Outcome.COMPLETED

    @property
    def bad_usage(self) -> list[str]:
        """What was odd about the usage on the wire, for `meter_proxy_bad_usage_total`."""
        return self.relay.meter.bad_usage if self.relay.meter is not None else []

    def _usage_so_far(self) -> Usage:
        record = self.record()
        return Usage(record.input_tokens, record.output_tokens)

    def record(self) -> UsageRecord:
        """The bill, if the exchange ended now."""
        return make_record(self, now=time.perf_counter())

    def _settle(self) -> None:
        if self._is_settled:
            return
        self.relay.flush()
        record = self.record()
        self.relay.close()
        self._is_settled = True  # whatever fails from here on, nothing is billed twice
        self._gateway.settled(self, record)
        self._client.detach()


def _may_be_our_fault(head: ResponseHead) -> bool:
    """A refusal of a request with a field of ours in it."""
    return head.status in (400, 422)
