"""The story of one metered request: forward, relay, settle. (Identify and admit: `gateway.py`.)

An `Exchange` is born admitted. From then on its `record()` is valid at every instant, so no way of
ending (hang-up, time-out, cancel, shutdown, an error of ours) needs a branch of its own that could be
forgotten: whatever happens, the one `finally` settles, exactly once, without waiting for anything.

Not retried: a request whose bytes may have reached an upstream. Two exceptions: a reused connection
that died before any byte of an answer, and the one retry without a field of ours that was refused.
"""

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import msgspec
from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from meter_proxy.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from meter_proxy.gateway.client import ClientConnection, ClientGone
from meter_proxy.gateway.headers import reply_headers, request_head
from meter_proxy.gateway.http1 import Framing, ResponseHead
from meter_proxy.gateway.inbound import Call
from meter_proxy.gateway.redaction import RedactedError, WithheldError, masked
from meter_proxy.gateway.relay import QuotaReached, Relay
from meter_proxy.gateway.replies import cors_headers, upstream_error
from meter_proxy.gateway.settlement import make_record
from meter_proxy.gateway.upstream import UpstreamConnection
from meter_proxy.ledger.admission import Admission
from meter_proxy.ledger.grants import UNBOUNDED, Grant
from meter_proxy.ledger.slots import Slot
from meter_proxy.metering.billing import outcome_of_status
from meter_proxy.metering.ending import failed, stopped
from meter_proxy.metering.injection import NOTHING_HIDDEN, RunningUsage, rewrite_body
from meter_proxy.metering.meter import Meter, meter_for, stream_of
from meter_proxy.usage import Operation, Outcome, Usage, UsageRecord

if TYPE_CHECKING:
    from meter_proxy.gateway.gateway import Gateway

_log = logging.getLogger("meter_proxy.gateway")

SKIP_REFUSAL_S = 1.0  # a refused injection: for this long its body may pass, to keep the connection


class Exchange:
    """One request and its response."""

    def __init__(
        self,
        gateway: "Gateway",
        call: Call,
        admission: Admission,
        slot: Slot,
        body: bytes,
        request: web.BaseRequest,
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
        self._request = request
        self._body = body  # the client's own bytes; dropped once the upstream answers
        self._pool = gateway.pools[admission.upstream]
        self._connection: UpstreamConnection | None = None
        self._hidden = NOTHING_HIDDEN
        self._client: ClientConnection | None = None
        self._reply: web.StreamResponse | None = None
        self._outcome: Outcome | None = None

    def __repr__(self) -> str:
        call = self.call
        return f"<Exchange {self.id} key={call.caller.key_id} {call.operation} {self.outcome} status={self.status}>"

    async def run(self) -> web.StreamResponse:
        """Serve the exchange to its end and settle it; -> what aiohttp is to finish."""
        try:
            try:
                return await self._answer()
            except QuotaReached:
                return await self._end_at_wall()
        except UpstreamError as exc:
            return self._upstream_failed(exc)
        except (ClientGone, ConnectionError):
            self.relay.on_client_lost()
            await self._drain()
            return self._reply or web.Response(status=499)  # nobody reads it; the host's access log does
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

    async def _answer(self) -> web.StreamResponse:
        self._client = ClientConnection(self._request, self.relay)
        head = await self._ask()
        self._body = b""  # a stream may live for hours, its prompt need not
        reply = await self._begin_reply(head)
        await self.relay.whole()
        await reply.write_eof()
        return reply

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
        call, refusals = self.call, self._gateway.refusals
        include_usage, running = False, RunningUsage.OFF
        takes_fields = call.asked.stream and call.operation is not Operation.EMBEDDINGS
        if takes_fields and not refusals.is_known(self._pool.name, call.model.upstream_model):
            include_usage = True
            async with self.relay.unless_client_lost():
                running = await self._gateway.identities.running_usage(self._pool.name)
        body = self._prepare_body(include_usage, running)
        head = await self._send(body)
        if head.status in (400, 422) and include_usage:
            plain = self._prepare_body(False, RunningUsage.OFF)
            if plain != body:
                await self.relay.skip_body(SKIP_REFUSAL_S)
                head = await self._send(plain)
                if 200 <= head.status < 300:
                    refusals.remember(self._pool.name, call.model.upstream_model)
        return head

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

    async def _send(self, body: bytes) -> ResponseHead:
        """Put the request on a connection; a reused one that turns out to be dead is replaced once."""
        pool = self._pool
        request = request_head(
            pool.base_path + self.call.path,
            pool.host_header,
            self.call.headers,
            api_key=pool.api_key,
            length=len(body),
            request_id=self.id,
        )
        request += body
        connection = pool.take_idle()
        if connection is not None:
            try:
                return await self._first_answer(connection, request)
            except UpstreamUnavailable:
                if not self.relay.broke_untouched:
                    raise
        async with self.relay.unless_client_lost():
            connection = await pool.connect()
        return await self._first_answer(connection, request)

    async def _first_answer(self, connection: UpstreamConnection, request: bytes) -> ResponseHead:
        if not self.reached_upstream:
            self.reached_upstream = True
            self.slot.forwarded()
            self._gateway.stats.observe_overhead("request", time.perf_counter() - self.began_at)
        self._connection = connection
        timeouts = self._pool.config.timeouts
        self.relay.open(connection, request, first_byte_s=timeouts.first_byte_s, total_s=timeouts.total_s)
        return await self.relay.head()

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

    async def _begin_reply(self, head: ResponseHead) -> web.StreamResponse:
        """Send the head of the reply, and open the way past aiohttp for its body."""
        client = self._client
        assert client is not None
        secret = self._pool.api_key
        headers = CIMultiDict(reply_headers(head, self.id, secret=secret))
        headers.extend(self.quota_headers)
        headers.extend(cors_headers(self._request))
        if isinstance(self.relay.meter, WithheldError):
            del headers["Content-Encoding"]
            headers["Content-Type"] = "application/json"
        elif head.framing in (Framing.LENGTH, Framing.NONE) and (
            head.status >= 300 or (self._hidden == NOTHING_HIDDEN and not self._is_bounded)
        ):
            headers["Content-Length"] = str(head.length)
        reason = masked(head.reason, secret)
        self._reply = reply = web.StreamResponse(status=head.status, reason=reason, headers=headers)
        if self._request.version < HttpVersion11 and "Content-Length" not in headers:
            reply.force_close()  # aiohttp would keep alive what only its end can end
        self.status = head.status
        self.slot.answered(head.status)
        await reply.prepare(self._request)
        client.begin_body(reply.headers)
        self.relay.begin(client, idle_s=self._pool.config.timeouts.idle_s)
        if self.relay.first_byte_at is not None:
            self._gateway.stats.observe_overhead("first_byte", time.perf_counter() - self.relay.first_byte_at)
        return reply

    # The ways to end early.

    async def _end_at_wall(self) -> web.StreamResponse:
        """A quota is used up: the client's stream ends here, properly; then the upstream is told."""
        reply, client, relay = self._reply, self._client, self.relay
        assert reply is not None
        assert client is not None
        ending = self._ending()
        if ending is None:
            self._break_off()
        else:
            client.write(ending, None)
        relay.stop_delivery()
        if ending is not None and not relay.client_is_slow:  # who is slow must not keep the upstream at work
            await reply.write_eof()
        await self._drain()
        relay.leave_upstream()
        if ending is not None:
            await reply.write_eof()
        return reply

    def _ending(self) -> bytes | None:
        """The last events of a stream that is cut here; None for a coded one, which cannot be ended in our words."""
        stream, grant = stream_of(self.relay.meter), self.grant
        if stream is None or grant is None:
            return None
        if grant.exhausted == "error":
            return failed(f"The quota {grant.cut_by.id if grant.cut_by else ''} is used up: the answer ends here.")
        usage = self._usage_so_far() if self.call.asked.asked_for_usage else None
        return stopped(self.call.operation, stream.sample, stream.open_choices, usage)

    def _upstream_failed(self, exc: UpstreamError) -> web.StreamResponse:
        """The client sees the break: an error before the reply's head, a reply without its end after it."""
        self._outcome = Outcome.UPSTREAM_TIMEOUT if isinstance(exc, UpstreamTimeout) else Outcome.UPSTREAM_FAILED
        if self._reply is not None:
            _log.warning("%s: %s", self.id, exc)
            self.relay.flush()
            self._break_off()
            return self._reply
        reply = upstream_error(self._request, exc, self.id)
        reply.headers.extend(self.quota_headers)
        self.status = reply.status
        return reply

    def _break_off(self) -> None:
        if self._client is not None:
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
        self.relay.flush()
        record = self.record()
        self.relay.close()
        if self._client is not None:
            self._client.detach()
        self._gateway.settled(self, record)
