"""Every Prometheus metric, in one place: names, meanings, and from what they are computed.

What concerns an admitted exchange is computed from its usage record, in the process that serves
`/metrics`; so these figures equal the books, and a worker that dies takes nothing away. What no record
tells (refusals, what is in flight, our own overhead) is counted in each worker (stats.py), and comes here
as snapshots (publish.py).

Counters begin at 0 with the process that holds them, and never decrease.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from meter_proxy.config.schema import Config
from meter_proxy.ledger.journal import SettledRecord
from meter_proxy.quota.charge import KEY_HOLDER
from meter_proxy.telemetry.exposition import Counter, Distribution, Family, Gauge, Histogram, Sum
from meter_proxy.telemetry.key_info import KeyInfo
from meter_proxy.telemetry.quota_board import QuotaBoard
from meter_proxy.telemetry.quota_gauges import QuotaGauges
from meter_proxy.telemetry.quota_rules import WatchedRules
from meter_proxy.telemetry.servers import UNKNOWN_SERVER, Server, servers_of
from meter_proxy.telemetry.stats import OVERHEAD_BOUNDS_S, SYNC_BOUNDS_S, Snapshot
from meter_proxy.usage import Outcome

# The buckets that OpenTelemetry's conventions for model servers prescribe, in seconds:
# https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/#generative-ai-model-server-metrics
DURATION_BOUNDS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_BOUNDS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_BOUNDS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)

NO_STATUS = "0"  # `code` of an exchange whose client was gone before any head was sent

# By name, not looked up in their class: that takes 0.2 us each, for every record.
_COMPLETED, _CLIENT_DISCONNECTED, _QUOTA_CUT = Outcome.COMPLETED, Outcome.CLIENT_DISCONNECTED, Outcome.QUOTA_CUT


class _Series:
    """What the records with the same labels add to, looked up once for all of them."""

    __slots__ = (
        "cached",
        "cost",
        "disconnected",
        "duration",
        "first_token",
        "inputs",
        "inputs_by_basis",
        "outputs",
        "outputs_by_basis",
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
        self.inputs_by_basis = metrics.tokens_by_basis.of(("input", record.input_basis.value))
        self.outputs_by_basis = metrics.tokens_by_basis.of(("output", record.basis.value))
        labels = metrics.model_server(record)
        self.duration = metrics.request_duration.of((*labels, error_type(record)))
        # Not before there is something to count: that they are there says that something was reported.
        self.disconnected: Sum | None = None
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
        self.tokens_by_basis = Counter(
            "meter_proxy_tokens_by_basis_total",
            "Tokens billed, by how their number is known; the same tokens as meter_proxy_tokens_total.",
            ("type", "basis"),
        )
        self.disconnects = Counter(
            "meter_proxy_disconnects_total", "Clients that left before the end of their answer.", ("model", "phase")
        )
        self.disconnected_output = Counter(
            "meter_proxy_disconnected_output_tokens_total",
            "Output tokens billed of exchanges that the client left; contained in meter_proxy_tokens_total.",
            ("key", "model"),
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
        self.key_info = KeyInfo()
        self.state_free = Gauge(
            "meter_proxy_state_dir_free_bytes", "What is free for the books on the disk of the state directory."
        )
        self.state_size = Gauge("meter_proxy_state_dir_size_bytes", "How large the disk of the state directory is.")
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
        self.key_info.configure(config)
        rules = WatchedRules(config)
        self.quotas.configure(rules, now)
        self.quota_board.configure(rules)
        for rule in rules.listed:  # from 0 on: of a series that begins with 1, Prometheus never sees the increase
            self.quota_rejections.of((rule.key, rule.rule))
            self.quota_cutoffs.of((rule.key, rule.rule))

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
            self.key_info.show(record.key, record.account)
        series.requests.amount += 1
        series.inputs.amount += record.input_tokens
        series.outputs.amount += record.output_tokens
        series.cost.amount += record.cost_nano_usd
        series.records.amount += 1
        series.inputs_by_basis.amount += record.input_tokens
        series.outputs_by_basis.amount += record.output_tokens
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
            if series.disconnected is None:
                series.disconnected = self.disconnected_output.of((record.key, record.model_label))
            series.disconnected.amount += record.output_tokens
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

    def disk(self, free_bytes: int, size_bytes: int) -> None:
        """So much room have the books, on a disk of this size."""
        self.state_free.set(free_bytes)
        self.state_size.set(size_bytes)

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
