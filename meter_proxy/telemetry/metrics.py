"""Every Prometheus metric, in one place: names, meanings, and from what they are computed.

What concerns an admitted exchange is computed from its usage record, in the process that serves
`/metrics`; so these figures equal the books, and a worker that dies takes nothing away. What no record
tells (refusals, what is in flight, our own overhead) is counted in each worker by `WorkerStats`, and comes
here as snapshots (publish.py).

Counters begin at 0 with the process that holds them, and never decrease.
"""

import secrets
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from meter_proxy.config.schema import Config
from meter_proxy.ledger.journal import SettledRecord
from meter_proxy.ledger.labels import OTHER
from meter_proxy.quota.charge import KEY_HOLDER, Unit
from meter_proxy.telemetry.exposition import Counter, Distribution, Family, Gauge, Histogram, Sum
from meter_proxy.telemetry.quota_board import QuotaBoard
from meter_proxy.telemetry.quota_gauges import QuotaGauges, QuotaState
from meter_proxy.telemetry.quota_rules import WatchedRules
from meter_proxy.telemetry.servers import UNKNOWN_SERVER, Server, servers_of
from meter_proxy.usage import Operation, Outcome

# The buckets that OpenTelemetry's conventions for model servers prescribe, in seconds:
# https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/#generative-ai-model-server-metrics
DURATION_BOUNDS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_BOUNDS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_BOUNDS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
# Ours: a chunk costs some 20 us, a request below 1 ms; a busy or swapping machine 1,000 times that.
OVERHEAD_BOUNDS_S = (1e-05, 2.5e-05, 5e-05, 1e-04, 2.5e-04, 5e-04, 1e-03, 2.5e-03, 5e-03, 0.01, 0.025, 0.1, 0.5)
SYNC_BOUNDS_S = (2.5e-04, 5e-04, 1e-03, 2.5e-03, 5e-03, 0.01, 0.025, 0.05, 0.1, 0.25)  # the store's time-out ends it

NO_STATUS = "0"  # `code` of an exchange whose client was gone before any head was sent

# By name, not looked up in their class: that takes 0.2 us each, for every record.
_COMPLETED, _CLIENT_DISCONNECTED, _QUOTA_CUT = Outcome.COMPLETED, Outcome.CLIENT_DISCONNECTED, Outcome.QUOTA_CUT


class LedgerState(Protocol):
    """What of a worker's ledger is shown; `ledger.Ledger` is it."""

    @property
    def store_up(self) -> bool:
        """Whether the store took the last message."""

    @property
    def unsynced(self) -> int:
        """Records that the store has not acknowledged."""

    @property
    def regressions(self) -> int:
        """How often the store turned out to have lost what it had acknowledged."""

    @property
    def quota_states(self) -> list[tuple[str, str, Unit, str, int, int, int, int]]:
        """The quota counters that the store told of lately, each in the order of `QuotaState`."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker has counted since it began. Counts are absolute, so one that is missed is made up for."""

    incarnation: str
    refused: list[tuple[str, str, str, str, int]] = []  # key, model, operation, code; count
    quota_rejected: list[tuple[str, str, int]] = []  # key, rule; count
    quotas: list[QuotaState] = []  # heard of lately
    bad_usage: dict[str, int] = {}  # by reason
    disconnected: list[tuple[str, str, int]] = []  # model, phase; count
    distributions: dict[str, tuple[list[int], float]] = {}  # by stage of the overhead, or "sync"; counts, sum
    inflight: dict[str, int] = {}  # by model
    upstreams_up: dict[str, bool] = {}  # of those that were tried
    store_up: bool = False
    unsynced: int = 0
    regressions: int = 0


class WorkerStats:
    """What the gateway counts as it goes: plain integers, cheap enough for the hot path. One per worker."""

    def __init__(self) -> None:
        self._incarnation = secrets.token_hex(8)
        self._label: Callable[[str, int | None], str] = lambda model, status: OTHER
        self._ledger: LedgerState | None = None
        self._refused: Tally[tuple[str, str, str, str]] = Tally()
        self._quota_rejected: Tally[tuple[str, str]] = Tally()
        self._bad_usage: Tally[str] = Tally()
        self._disconnected: Tally[tuple[str, str]] = Tally()
        self._inflight: dict[str, int] = {}  # by the name asked for; its label may change while it runs
        self._upstreams_up: dict[str, bool] = {}
        self._upstreams: Collection[str] | None = None  # None: all that are tried are shown
        self._quota_news: Callable[[], list[QuotaState]] = list
        self._distributions = {stage: Distribution(OVERHEAD_BOUNDS_S) for stage in ("request", "first_byte", "chunk")}
        self._distributions["sync"] = Distribution(SYNC_BOUNDS_S)

    def watch(self, ledger: LedgerState, label: Callable[[str, int | None], str]) -> None:
        """Show the state of this ledger from now on; `label` decides under which name a model is counted."""
        self._ledger = ledger
        self._label = label

    def configured(self, upstreams: Collection[str]) -> None:
        """Show no other upstreams from now on: one that is gone is not down."""
        self._upstreams = frozenset(upstreams)

    def watch_quotas(self, news: Callable[[], list[QuotaState]]) -> None:
        """Show also what `news` tells of quotas."""
        self._quota_news = news

    def refused(self, key: str, model: str, operation: Operation, code: int) -> None:
        """We answered a request with `code` without admitting it. Before authentication, `key` is `unknown`."""
        self._refused[key, self._label(model, None), operation.value, str(code)] += 1

    def quota_rejected(self, key: str, rule: str) -> None:
        """A rule of `key` (`account:NAME`: of an account) refused a request."""
        self._quota_rejected[key, rule] += 1

    def inflight_add(self, model: str, change: int) -> None:
        """An admitted exchange began (1) or ended (-1)."""
        inflight = self._inflight
        count = inflight.get(model, 0) + change
        if count:
            inflight[model] = count
        else:
            inflight.pop(model, None)  # callers choose names: keep none that is not in use

    def bad_usage(self, reason: str) -> None:
        """The upstream reported something odd."""
        self._bad_usage[reason] += 1

    def disconnected(self, model: str, phase: str) -> None:
        """A client left in a way that its record does not show: `after_finish`, which is a completed exchange."""
        self._disconnected[self._label(model, None), phase] += 1

    def upstream_answers(self, upstream: str, up: bool) -> bool:
        """The upstream was tried, and answered or not; tells whether that is news."""
        was_up = self._upstreams_up.get(upstream, True)
        self._upstreams_up[upstream] = up
        return was_up is not up

    def observe_overhead(self, stage: str, seconds: float) -> None:
        """Time that we added: to a request before it was sent on, to the first byte, or to a chunk."""
        self._distributions[stage].observe(seconds)

    def observe_sync(self, seconds: float) -> None:
        """The store took a batch of the books within this time."""
        self._distributions["sync"].observe(seconds)

    def snapshot(self) -> Snapshot:
        """All of it, as it is now."""
        inflight: Tally[str] = Tally()
        for model, count in self._inflight.items():
            inflight[self._label(model, None)] += count
        ledger = self._ledger
        return Snapshot(
            incarnation=self._incarnation,
            refused=[(*labels, count) for labels, count in self._refused.items()],
            quota_rejected=[(*labels, count) for labels, count in self._quota_rejected.items()],
            bad_usage=dict(self._bad_usage),
            disconnected=[(*labels, count) for labels, count in self._disconnected.items()],
            distributions={name: (list(one.counts), one.sum) for name, one in self._distributions.items()},
            inflight=dict(inflight),
            upstreams_up={
                name: up
                for name, up in self._upstreams_up.items()
                if self._upstreams is None or name in self._upstreams
            },
            store_up=ledger.store_up if ledger is not None else False,
            unsynced=ledger.unsynced if ledger is not None else 0,
            regressions=ledger.regressions if ledger is not None else 0,
            quotas=[
                *self._quota_news(),
                *([QuotaState(*state) for state in ledger.quota_states] if ledger is not None else []),
            ],
        )


class _Series:
    """What the records with the same labels add to, looked up once for all of them."""

    __slots__ = (
        "cached",
        "cost",
        "duration",
        "first_token",
        "inputs",
        "outputs",
        "per_token",
        "reasoning",
        "records",
        "requests",
    )

    def __init__(self, metrics: "Metrics", record: SettledRecord) -> None:
        key, model, operation = record.key, record.model_label, record.operation.value
        code = NO_STATUS if record.status is None else str(record.status)
        self.requests = metrics.requests.of((key, model, operation, record.outcome.value, code))
        self.inputs = metrics.tokens.of((key, model, operation, "input"))
        self.outputs = metrics.tokens.of((key, model, operation, "output"))
        self.cost = metrics.cost.of((key, model))
        self.records = metrics.usage_records.of((operation, record.basis.value))
        labels = metrics.model_server(record)
        self.duration = metrics.request_duration.of((*labels, error_type(record)))
        # Not before there is something to count: that they are there says that something was reported.
        self.cached: Sum | None = None
        self.reasoning: Sum | None = None
        self.first_token: Distribution | None = None
        self.per_token: Distribution | None = None


class Metrics:
    """The families. `count` records, `absorb` snapshots, `render`."""

    def __init__(self, *, version: str, servers: Mapping[str, Server]) -> None:
        """`servers`: upstream name -> where it is."""
        self.version = version
        self._servers = servers
        self._series: dict[tuple[object, ...], _Series] = {}
        self._snapshots: dict[str, Snapshot] = {}  # worker -> its last one
        self._alive: set[str] = set()  # workers whose last snapshot is still true
        model_server = (
            "gen_ai_operation_name",
            "gen_ai_provider_name",
            "gen_ai_request_model",
            "server_address",
            "server_port",
        )

        self.requests = Counter(
            "meter_proxy_requests_total",
            "Requests to metered operations, by how they ended; code 0: the client left before any answer.",
            ("key", "model", "operation", "outcome", "code"),
        )
        self.tokens = Counter("meter_proxy_tokens_total", "Tokens billed.", ("key", "model", "operation", "type"))
        self.token_details = Counter(
            "meter_proxy_token_details_total",
            "Tokens billed that are of a kind; contained in meter_proxy_tokens_total.",
            ("key", "model", "type"),
        )
        self.cost = Counter("meter_proxy_cost_usd_total", "Cost in US dollars.", ("key", "model"), nano=True)
        self.usage_records = Counter(
            "meter_proxy_usage_records_total", "Usage records, by how the output is known.", ("operation", "basis")
        )
        self.disconnects = Counter(
            "meter_proxy_disconnects_total", "Clients that left before the end of their answer.", ("model", "phase")
        )
        self.inflight = Gauge("meter_proxy_inflight_requests", "Exchanges in flight.", ("model",))
        self.quotas = QuotaGauges()
        self.quota_board = QuotaBoard()  # the same for all of them, as `/api/quotas` shows it
        self.quota_rejections = Counter(
            "meter_proxy_quota_rejections_total", "Requests refused by a quota.", ("key", "rule")
        )
        self.quota_cutoffs = Counter("meter_proxy_quota_cutoffs_total", "Streams ended by a quota.", ("key", "rule"))
        self.overhead = Histogram(
            "meter_proxy_overhead_seconds",
            "Time added by the proxy: to a request, to the first byte of its answer, to a chunk (sampled).",
            ("stage",),
            OVERHEAD_BOUNDS_S,
        )
        self.request_duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Time from admission to the end of the exchange.",
            (*model_server, "error_type"),
            DURATION_BOUNDS_S,
        )
        self.time_to_first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Time from admission to the first token of a stream.",
            model_server,
            FIRST_TOKEN_BOUNDS_S,
        )
        self.time_per_output_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time per token after the first, of completed streams.",
            model_server,
            PER_TOKEN_BOUNDS_S,
        )
        self.redis_up = Gauge("meter_proxy_redis_up", "Whether every worker reaches the store.")
        self.redis_regressions = Counter(
            "meter_proxy_redis_regressions_total", "Times that the store had lost what it had acknowledged."
        )
        self.sync = Histogram(
            "meter_proxy_sync_seconds", "Time to bring a batch of the books to the store.", (), SYNC_BOUNDS_S
        )
        self.unsynced = Gauge("meter_proxy_unsynced_records", "Settled records that the store has not acknowledged.")
        self.bad_usage = Counter("meter_proxy_bad_usage_total", "Odd usage reports of upstreams.", ("reason",))
        self.config_reload = Gauge(
            "meter_proxy_config_last_reload_successful", "Whether the last (re)load of the configuration was good."
        )
        self.build_info = Gauge("meter_proxy_build_info", "Always 1; the version is in the label.", ("version",))
        self.draining = Gauge("meter_proxy_draining", "Whether the proxy is about to end and takes no new work.")
        self.upstream_up = Gauge("meter_proxy_upstream_up", "Whether an upstream answers.", ("upstream",))

        self.config_reload.set(1)
        self.build_info.values = {(version,): 1}
        self.draining.set(0)
        self._gauge_workers()

    def configured(self, config: Config, now: float) -> None:
        """By this configuration is served from `now` on (Unix seconds)."""
        self._servers = servers_of(config.upstreams)
        self._series.clear()
        rules = WatchedRules(config)
        self.quotas.configure(rules, now)
        self.quota_board.configure(rules)

    @property
    def families(self) -> list[Family]:
        """All families, in the order of the exposition."""
        families: list[Family] = []
        for member in vars(self).values():
            if isinstance(member, Family):
                families.append(member)
            elif isinstance(member, QuotaGauges):
                families += member.families
        return families

    def count(self, record: SettledRecord) -> None:
        """Count one settled exchange. Its model goes by the label that the ledger gave it."""
        outcome, status = record.outcome, record.status
        labels = (record.key, record.model_label, record.operation, outcome, status, record.basis, record.upstream)
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series(self, record)
        series.requests.amount += 1
        series.inputs.amount += record.input_tokens
        series.outputs.amount += record.output_tokens
        series.cost.amount += record.cost_nano_usd
        series.records.amount += 1
        series.duration.observe(record.duration_ms / 1000)
        if record.cached_input_tokens is not None:
            if series.cached is None:
                series.cached = self.token_details.of((record.key, record.model_label, "input_cached"))
            series.cached.amount += record.cached_input_tokens
        if record.reasoning_tokens is not None:
            if series.reasoning is None:
                series.reasoning = self.token_details.of((record.key, record.model_label, "output_reasoning"))
            series.reasoning.amount += record.reasoning_tokens
        if record.stream and record.ttft_ms is not None:  # the first token of a plain answer cannot be seen from here
            self._observe_stream(series, record, record.ttft_ms)
        if outcome is _CLIENT_DISCONNECTED:
            phase = "before_first_token" if record.ttft_ms is None else "streaming"
            self.disconnects.add((record.model_label, phase), 1)
        if record.cut_by is not None:
            holder, _, rule = record.cut_by.partition("/")
            self.quota_cutoffs.add((record.key if holder == KEY_HOLDER else f"account:{record.account}", rule), 1)

    def _observe_stream(self, series: _Series, record: SettledRecord, ttft_ms: float) -> None:
        if series.first_token is None:
            series.first_token = self.time_to_first_token.of(self.model_server(record))
        series.first_token.observe(ttft_ms / 1000)
        if record.outcome is _COMPLETED and record.output_tokens > 1:
            if series.per_token is None:
                series.per_token = self.time_per_output_token.of(self.model_server(record))
            series.per_token.observe((record.duration_ms - ttft_ms) / 1000 / (record.output_tokens - 1))

    def model_server(self, record: SettledRecord) -> tuple[str, ...]:
        """The labels of OpenTelemetry's histograms."""
        server = self._servers.get(record.upstream, UNKNOWN_SERVER)
        return (record.operation.value, server.provider, record.model_label, server.address, server.port)

    def absorb(self, worker: str, snapshot: Snapshot) -> None:
        """Bring in what `worker` has counted; the same snapshot twice changes nothing."""
        last = self._snapshots.get(worker)
        if last is None or last.incarnation != snapshot.incarnation:
            last = Snapshot(incarnation=snapshot.incarnation)
        for key, model, operation, code, count in _grown(snapshot.refused, last.refused):
            self.requests.add((key, model, operation, Outcome.DENIED.value, code), count)
        for model, phase, count in _grown(snapshot.disconnected, last.disconnected):
            self.disconnects.add((model, phase), count)
        for key, rule, count in _grown(snapshot.quota_rejected, last.quota_rejected):
            self.quota_rejections.add((key, rule), count)
        self.quotas.absorb(snapshot.quotas)
        self.quota_board.absorb(snapshot.quotas)
        for reason, count in _grown(snapshot.bad_usage.items(), last.bad_usage.items()):
            self.bad_usage.add((reason,), count)
        for name, (counts, total) in snapshot.distributions.items():
            before, total_before = last.distributions.get(name, ([0] * len(counts), 0.0))
            series = self.sync.of(()) if name == "sync" else self.overhead.of((name,))
            series.add([now - then for now, then in zip(counts, before, strict=True)], total - total_before)
        self.redis_regressions.add((), snapshot.regressions - last.regressions)
        self._snapshots[worker] = snapshot
        self._alive.add(worker)
        self._gauge_workers()

    def forget(self, worker: str) -> None:
        """A worker is gone: nothing of it is in flight any more. What it counted stays."""
        self._alive.discard(worker)
        self._gauge_workers()

    @property
    def store_is_away(self) -> bool:
        """Whether some worker says that it does not reach the store. One that has not spoken yet says nothing."""
        return any(not self._snapshots[worker].store_up for worker in self._alive)

    def _gauge_workers(self) -> None:
        alive = [self._snapshots[worker] for worker in self._alive]
        inflight = dict.fromkeys(self.inflight.values, 0)  # a model once seen stays, at 0
        for snapshot in alive:
            for model, count in snapshot.inflight.items():
                inflight[(model,)] = inflight.get((model,), 0) + count
        self.inflight.values = inflight
        tried = {upstream for snapshot in alive for upstream in snapshot.upstreams_up}
        answering = {upstream for snapshot in alive for upstream, up in snapshot.upstreams_up.items() if up}
        self.upstream_up.values = {(upstream,): int(upstream in answering) for upstream in sorted(tried)}
        self.redis_up.set(int(bool(alive) and all(snapshot.store_up for snapshot in alive)))
        self.unsynced.set(sum(snapshot.unsynced for snapshot in alive))

    def render(self) -> str:
        """The whole exposition."""
        return "".join(family.render() for family in self.families)


def error_type(record: SettledRecord) -> str:
    """OpenTelemetry's `error.type`: empty for a good end, else the upstream's status, else the outcome."""
    if record.outcome in (_COMPLETED, _QUOTA_CUT):
        return ""
    if record.status is not None and record.status >= 400:
        return str(record.status)
    return record.outcome.value


def _grown(now: Iterable[tuple[Any, ...]], before: Iterable[tuple[Any, ...]]) -> Iterable[tuple[Any, ...]]:
    """Each (labels..., count) of `now` with what it has grown by since `before`; those that did not are left out."""
    counts = {entry[:-1]: entry[-1] for entry in before}
    for entry in now:
        grown = entry[-1] - counts.get(entry[:-1], 0)
        if grown:
            yield (*entry[:-1], grown)
