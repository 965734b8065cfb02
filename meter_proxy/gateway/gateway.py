"""The front door: identify, admit, hand over to an `Exchange`; and what costs nothing (models, preflight).

One `Gateway` per process (or per application in plugin mode) holds what exchanges share: the tables
of the configuration, the pools, the ledger, the counters.
"""

import asyncio
import logging
import random
import secrets
import time
from typing import Protocol

import msgspec
from aiohttp import HttpVersion11, web

from meter_proxy.config.rulebook import RuleBook
from meter_proxy.config.schema import Config
from meter_proxy.errors import ClientError, UpstreamError
from meter_proxy.gateway.client import AiohttpClient, Client, ClientGone, PlainClient
from meter_proxy.gateway.exchange import Exchange
from meter_proxy.gateway.fetch import fetch
from meter_proxy.gateway.headers import forwarded
from meter_proxy.gateway.identity import Identities
from meter_proxy.gateway.inbound import Call, Caller, Inbound
from meter_proxy.gateway.plain import PlainHead, PlainHeads
from meter_proxy.gateway.quotas import MUST_ASK, QuotaGate
from meter_proxy.gateway.refusals import InjectionRefusals
from meter_proxy.gateway.replies import client_error, client_error_answer, cors_headers, unavailable
from meter_proxy.gateway.routes import MODELS, Route
from meter_proxy.gateway.settlement import make_admission
from meter_proxy.gateway.upstream import UpstreamPool
from meter_proxy.gateway.watch import Deadlines
from meter_proxy.ledger import Ledger
from meter_proxy.ledger.grants import Grant
from meter_proxy.tasks import spawn
from meter_proxy.telemetry.stats import WorkerStats
from meter_proxy.usage import Operation, UsageRecord

_log = logging.getLogger("meter_proxy.gateway")

UPSTREAM_MODELS_TIMEOUT_S = 5.0
CUT_WITHIN_S = 2.0  # after a cut every exchange only drains what is in flight (<= 250 ms) and settles
UNKNOWN_KEY = "unknown"
MAX_DAYS = 92  # of one answer: a quarter


class Gateway:
    """Serves the metered operations for one configuration."""

    def __init__(self, config: Config, ledger: Ledger, stats: WorkerStats) -> None:
        self.config = config
        self.ledger = ledger
        self.stats = stats
        # Also those that a reload took away: an exchange may still turn to them.
        self.pools = {name: UpstreamPool(name, upstream) for name, upstream in config.upstreams.items()}
        self.needs_store = config.needs_store
        self.identities = Identities(self.pools, time.monotonic)
        self.refusals = InjectionRefusals(time.monotonic)
        self.draining = False
        self.quotas = QuotaGate(RuleBook(config), ledger, stats)
        self._inbound = Inbound(config)
        self._plain_heads = PlainHeads(self._inbound, config)
        self.late_bodies = _late_bodies(config)
        self._random_bits = random.Random(secrets.randbits(256)).getrandbits  # ids are no secrets
        self.in_flight: set[Exchange] = set()
        self._all_settled = asyncio.Event()
        ledger.place_keys({key.id: key.account_id for key in config.keys})

    def reconfigure(self, config: Config) -> None:
        """Serve by another configuration from now on; what is in flight goes on as it was admitted."""
        for name, upstream in config.upstreams.items():
            pool = self.pools.get(name)
            if pool is None or pool.config != upstream:
                self.pools[name] = UpstreamPool(name, upstream)
                self.identities.forget(name)
                if pool is not None:
                    pool.close()
        for name in self.pools.keys() - config.upstreams.keys():
            self.pools[name].close()
        self.config = config
        self.needs_store = config.needs_store
        self._inbound = Inbound(config)
        self._plain_heads = PlainHeads(self._inbound, config)
        self.late_bodies = _late_bodies(config)
        self.quotas = QuotaGate(RuleBook(config), self.ledger, self.stats)
        if self.ledger.quotas is not None:
            self.ledger.quotas.bounded_tokens = config.redis.bounded_tokens
        self.ledger.labels.configured = frozenset(config.models) - {"*"}
        self.ledger.place_keys({key.id: key.account_id for key in config.keys})

    async def post(self, request: web.Request, route: Route) -> web.StreamResponse:
        """A metered operation that aiohttp has read the head of, from its key to its record."""
        key_id, model = UNKNOWN_KEY, ""
        client = AiohttpClient(request)
        try:
            caller = self._inbound.identify(request, time.time())
            key_id = caller.key_id
            self._inbound.check_head(request)
            body = await self._inbound.read_body(request)
            asked = self._inbound.parse(route, body)
            model = asked.model
            resolved = self._inbound.allow(caller, asked)
            client_request_id = request.headers.get("X-Request-Id")
            forwards = forwarded(request.headers.items())
            call = Call(caller, route.operation, route.path, asked, resolved, forwards, client_request_id)
            exchange = await self._admit(call, body, client)
        except ClientError as exc:
            self.stats.refused(key_id, model, route.operation, exc.status)
            return client_error(request, exc)
        except ClientGone:
            return web.Response(status=499)  # left while sending its body: nothing was asked yet
        del body  # this frame lives as long as the stream
        await exchange.run()
        return client.response

    def plain_head(self, block: bytes) -> PlainHead | None:
        """A request head (without its blank line) of the plain case, from a known caller; else None."""
        return self._plain_heads.read(block, time.time())

    def may_be_plain(self, beginning: bytes) -> bool:
        """Whether a request that begins so, before its head is whole, may have such a head."""
        return self._plain_heads.may_begin(beginning)

    def serve_plain(self, head: PlainHead, body: bytes, client: PlainClient) -> None:
        """A metered operation of the plain case, without waiting: it goes on by itself, to its record."""
        caller, model = head.caller, ""
        try:
            asked = self._inbound.parse(head.route, body)
            model = asked.model
            resolved = self._inbound.allow(caller, asked)
            call = Call(
                caller, head.route.operation, head.route.path, asked, resolved, head.forwarded, head.client_request_id
            )
            self._refuse_while_draining()
            grant = self.quotas.grant_now(call)
            if grant is MUST_ASK:
                spawn(self._serve_asking(call, body, client), name="ask for a grant")
                return
            exchange = self._open(call, body, client, grant)
        except ClientError as exc:
            self.refuse(client, exc, caller.key_id, model, head.route.operation)
            return
        exchange.go_ahead(client)

    async def _serve_asking(self, call: Call, body: bytes, client: PlainClient) -> None:
        try:
            exchange = await self._admit(call, body, client)
        except ClientError as exc:
            self.refuse(client, exc, call.caller.key_id, call.asked.model, call.operation)
            return
        except BaseException:
            client.detach()  # without an answer: that ends the connection
            raise
        exchange.go_ahead(client)

    def refuse(self, client: Client, exc: ClientError, key_id: str, model: str, operation: Operation) -> None:
        """Answer a request of the plain case that is not admitted."""
        self.stats.refused(key_id, model, operation, exc.status)
        client.answer(client_error_answer(exc))
        client.detach()

    async def _admit(self, call: Call, body: bytes, client: Client) -> Exchange:
        """Reserve its quota, and write the call into the books as in flight.

        429 by a rule; 503 when no new work can be taken, or not be recorded.
        """
        self._refuse_while_draining()
        grant = await self.quotas.grant(call)
        try:
            self._refuse_while_draining()
            return self._open(call, body, client, grant)
        except BaseException:
            if grant is not None:
                grant.release()
            raise

    def _refuse_while_draining(self) -> None:
        if self.draining:
            raise unavailable("draining", "The server is about to restart. Try again in a moment.", retry_after_s=1)

    def _open(self, call: Call, body: bytes, client: Client, grant: Grant | None) -> Exchange:
        upstream = call.model.upstreams[0]
        admission = make_admission(
            call,
            f"req_{self._random_bits(96):024x}",
            admitted_at=self.ledger.now(),
            upstream=upstream,
            prompt_always=self.config.upstreams[upstream].bill_prompt == "always",
            charges=grant.charges if grant is not None else (),
        )
        slot = self.ledger.admit(admission) if self.ledger.can_write else None
        if slot is None:
            raise unavailable("metering_unavailable", "Usage cannot be recorded at the moment.", retry_after_s=5)
        exchange = Exchange(self, call, admission, slot, body, client, grant)
        if grant is not None:
            exchange.quota_headers = self.quotas.headers(grant)
        self.in_flight.add(exchange)
        self.stats.inflight_add(call.asked.model, 1)
        return exchange

    def upstream_answered(self, pool: UpstreamPool, error: UpstreamError | None) -> None:
        """An upstream answered, or did not: a change is worth a line in the log, every failure is in the metrics."""
        if self.stats.upstream_answers(pool.name, error is None):
            if error is None:
                _log.warning("upstream %s answers again", pool.name)
            else:
                _log.warning("%s (%s)", error, pool.config.base_url)

    def settled(self, exchange: Exchange, record: UsageRecord) -> None:
        """The one call at the end of every exchange: the record is written, the counters are moved."""
        self.in_flight.discard(exchange)
        admission, grant = exchange.admission, exchange.grant
        cut_by: str | None = None
        if grant is not None:
            grant.used_tokens = record.input_tokens + record.output_tokens
            if exchange.relay.cut_by_quota and grant.cut_by is not None:
                cut_by = f"{grant.cut_by.holder}/{grant.cut_by.id}"
        self.ledger.settle(
            record,
            exchange.slot,
            charges=admission.charges if exchange.reached_upstream else (),
            cut_by=cut_by,
            grant=grant,
        )
        self.stats.inflight_add(record.model, -1)
        for reason in exchange.bad_usage:
            self.stats.bad_usage(reason)
        if exchange.relay.client_lost and exchange.relay.finished_at_loss:
            self.stats.disconnected(record.model, "after_finish")
        if not self.in_flight:
            self._all_settled.set()

    async def expect(self, request: web.Request, route: Route) -> web.StreamResponse | None:
        """`Expect: 100-continue`: say "go on" only to somebody whose body will be read."""
        key_id = UNKNOWN_KEY
        try:
            key_id = self._inbound.identify(request, time.time()).key_id
            self._inbound.check_head(request)
        except ClientError as exc:
            self.stats.refused(key_id, "", route.operation, exc.status)
            return client_error(request, exc)
        if request.transport is not None and request.version >= HttpVersion11:  # RFC 9110 §10.1.1
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    async def models(self, request: web.Request) -> web.StreamResponse:
        """The names that this caller may ask for, in the shape of OpenAI's list."""
        try:
            caller = self._inbound.identify(request, time.time())
            names = await self._model_names(caller)
            wanted = request.match_info.get("model")
            if wanted is not None and wanted not in names:
                raise ClientError(404, "model_not_found", "The model does not exist or you do not have access to it.")
        except ClientError as exc:
            return client_error(request, exc)
        entries = [{"id": name, "object": "model", "created": 0, "owned_by": "meter-proxy"} for name in names]
        document = (
            {"object": "list", "data": entries} if wanted is None else next(e for e in entries if e["id"] == wanted)
        )
        response = web.Response(body=msgspec.json.encode(document), content_type="application/json")
        response.headers.extend(cors_headers(request))
        return response

    def identify(self, request: web.BaseRequest) -> Caller:
        """Who asks. Raises `ClientError`: 401."""
        return self._inbound.identify(request, time.time())

    async def usage(self, request: web.Request) -> web.StreamResponse:
        """The caller's own usage and quotas; with `?days=30` also those days."""
        try:
            caller = self.identify(request)
            days = _days(request.query.get("days", "1"))
        except ClientError as exc:
            return client_error(request, exc)
        document = await self.quotas.statement(caller, days)
        response = web.Response(body=msgspec.json.encode(document), content_type="application/json")
        response.headers["Cache-Control"] = "no-store"
        response.headers.extend(cors_headers(request))
        return response

    async def _model_names(self, caller: Caller) -> list[str]:
        table = self._inbound.models
        names = dict.fromkeys(table.list(caller.key))
        for upstream in table.passthrough_upstreams:
            for name in await self._upstream_models(upstream):
                if table.resolve(name, caller.key) is not None:
                    names.setdefault(name)
        return list(names)

    async def _upstream_models(self, name: str) -> list[str]:
        """What the upstream lists behind a "*"; nothing if it does not answer."""
        pool = self.pools[name]
        try:
            status, body = await fetch(pool, pool.base_path + MODELS, timeout_s=UPSTREAM_MODELS_TIMEOUT_S)
            listed = msgspec.json.decode(body, type=_ModelList) if status == 200 else _ModelList()
        except (UpstreamError, msgspec.MsgspecError, ValueError, RecursionError):
            return []
        return [entry.id for entry in listed.data]

    async def drain(self, timeout_s: float) -> None:
        """Take no new work; wait for what is in flight; cut what is left after `timeout_s`, and bill it.

        Cancelled while it waits, it cuts at once: whoever cancels a shutdown is in a hurry, not careless.
        """
        self.draining = True
        try:
            all_settled = await self._wait_settled(timeout_s)
        except asyncio.CancelledError:
            all_settled = False
        if not all_settled:
            for exchange in list(self.in_flight):
                exchange.cut_off()
            await self._wait_settled(CUT_WITHIN_S)
        for pool in self.pools.values():
            pool.close()

    async def _wait_settled(self, timeout_s: float) -> bool:
        self._all_settled.clear()
        if not self.in_flight:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_settled.wait()
        except TimeoutError:
            return False
        return True


class Waiting(Protocol):
    """What waits for the rest of a body."""

    def body_is_late(self) -> None:
        """It did not come in time."""


def _days(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= MAX_DAYS):
        raise ClientError(400, "invalid_type", f"days must be a whole number from 1 to {MAX_DAYS}.", param="days")
    return int(text)


def _late_bodies(config: Config) -> Deadlines[Waiting]:
    return Deadlines(config.limits.client_stall_s, lambda waiting: waiting.body_is_late())


class _ModelEntry(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelEntry] = []
