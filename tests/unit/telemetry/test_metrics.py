"""What is counted for which record and which snapshot."""

import shutil
import subprocess
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meter_proxy.quota.charge import Unit
from meter_proxy.telemetry.exposition import Counter
from meter_proxy.telemetry.metrics import Metrics
from meter_proxy.telemetry.servers import Server
from meter_proxy.telemetry.stats import Snapshot, WorkerStats
from meter_proxy.usage import Basis, Operation, Outcome
from tests.unit.telemetry.journal_records import journal_record
from tests.unit.telemetry.quota_configs import config_with, key

# The contract: every family with its type and its labels.
OTEL = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "server_address", "server_port")
RULE = ("key", "rule", "unit")
CONTRACT: dict[str, tuple[str, tuple[str, ...]]] = {
    "meter_proxy_requests_total": ("counter", ("key", "model", "operation", "outcome", "code")),
    "meter_proxy_tokens_total": ("counter", ("key", "model", "operation", "type")),
    "meter_proxy_token_details_total": ("counter", ("key", "model", "type")),
    "meter_proxy_cost_usd_total": ("counter", ("key", "model")),
    "meter_proxy_usage_records_total": ("counter", ("operation", "basis")),
    "meter_proxy_tokens_by_basis_total": ("counter", ("type", "basis")),
    "meter_proxy_disconnects_total": ("counter", ("model", "phase")),
    "meter_proxy_disconnected_output_tokens_total": ("counter", ("key", "model")),
    "meter_proxy_inflight_requests": ("gauge", ("model",)),
    "meter_proxy_quota_usage_ratio": ("gauge", RULE),
    "meter_proxy_quota_limit": ("gauge", RULE),
    "meter_proxy_quota_used": ("gauge", RULE),
    "meter_proxy_quota_reset_timestamp_seconds": ("gauge", RULE),
    "meter_proxy_quota_rejections_total": ("counter", ("key", "rule")),
    "meter_proxy_quota_cutoffs_total": ("counter", ("key", "rule")),
    "meter_proxy_overhead_seconds": ("histogram", ("stage",)),
    "gen_ai_server_request_duration_seconds": ("histogram", (*OTEL, "error_type")),
    "gen_ai_server_time_to_first_token_seconds": ("histogram", OTEL),
    "gen_ai_server_time_per_output_token_seconds": ("histogram", OTEL),
    "meter_proxy_redis_up": ("gauge", ()),
    "meter_proxy_redis_regressions_total": ("counter", ()),
    "meter_proxy_sync_seconds": ("histogram", ()),
    "meter_proxy_unsynced_records": ("gauge", ()),
    "meter_proxy_bad_usage_total": ("counter", ("reason",)),
    "meter_proxy_config_last_reload_successful": ("gauge", ()),
    "meter_proxy_build_info": ("gauge", ("version",)),
    "meter_proxy_key_info": ("gauge", ("key", "account")),
    "meter_proxy_state_dir_free_bytes": ("gauge", ()),
    "meter_proxy_state_dir_size_bytes": ("gauge", ()),
    "meter_proxy_draining": ("gauge", ()),
    "meter_proxy_upstream_up": ("gauge", ("upstream",)),
}


class FakeLedger:
    """The state of a ledger, to be set."""

    store_up = True
    unsynced = 0
    regressions = 0
    quota_states: list[tuple[str, str, Unit, str, int, int, int, int]] = []  # noqa: RUF012


def label(model: str, status: int | None) -> str:
    """Only names that begin with `m` have a label of their own."""
    return model if model.startswith("m") else "other"


@pytest.fixture
def metrics() -> Metrics:
    """Fresh ones; the upstream `local` is known."""
    return Metrics(version="1.2.3", servers={"local": Server("openai", "backend", "8000")})


@pytest.fixture
def stats() -> WorkerStats:
    """A worker's, with a ledger."""
    stats = WorkerStats()
    stats.watch(FakeLedger(), label)
    return stats


def everything(metrics: Metrics) -> dict[str, float]:
    """Every sample as `name{label="value",...}`, labels sorted, except buckets."""
    return {
        f"{one.name}{{{','.join(f'{name}={value}' for name, value in sorted(one.labels.items()))}}}": one.value
        for family in text_string_to_metric_families(metrics.render())
        for one in family.samples
        if not one.name.endswith("_bucket")
    }


def values_of(counter: Counter) -> dict[tuple[str, ...], int]:
    """A copy of a counter's values."""
    return dict(counter.values)


def test_the_families_are_those_of_the_contract(metrics: Metrics) -> None:
    """Names, types and labels: no more, no less."""
    assert {family.name: (family.kind, family.label_names) for family in metrics.families} == CONTRACT


def test_every_family_has_help_and_type_from_the_start(metrics: Metrics) -> None:
    """Also those that have no sample yet."""
    text = metrics.render()
    for name, (kind, _) in CONTRACT.items():
        assert f"# HELP {name} " in text
        assert f"# TYPE {name} {kind}\n" in text


def full(metrics: Metrics, stats: WorkerStats) -> Metrics:
    """Give every family that is filled in this version a sample."""
    metrics.count(journal_record(cached_input_tokens=1, reasoning_tokens=2))
    metrics.count(journal_record(outcome=Outcome.CLIENT_DISCONNECTED, ttft_ms=None, status=None))
    stats.refused("alice", "m1", Operation.CHAT, 404)
    stats.bad_usage("negative_count")
    stats.inflight_add("m1", 1)
    stats.disconnected("m1", "after_finish")
    stats.observe_overhead("chunk", 2e-5)
    stats.observe_sync(0.001)
    metrics.absorb("w0", stats.snapshot())
    metrics.disk(1, 2)
    return metrics


def test_prometheus_own_linter_has_nothing_to_say(metrics: Metrics, stats: WorkerStats) -> None:
    """`promtool check metrics` on a full exposition."""
    promtool = shutil.which("promtool")
    assert promtool is not None, "the tests need promtool: apt-get install prometheus"
    text = full(metrics, stats).render()
    result = subprocess.run([promtool, "check", "metrics"], input=text.encode(), capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_key_is_no_label_of_the_gen_ai_histograms(metrics: Metrics, stats: WorkerStats) -> None:
    """They would explode."""
    for line in full(metrics, stats).render().splitlines():
        if line.startswith("gen_ai_"):
            assert 'key="' not in line


def test_a_record_counts_its_request_tokens_and_cost(metrics: Metrics) -> None:
    """Input and output are disjoint; details are subsets of them."""
    metrics.count(
        journal_record(
            "label",
            model="asked",
            key="bob",
            input_tokens=11,
            cached_input_tokens=3,
            output_tokens=7,
            reasoning_tokens=2,
            cost_nano_usd=12_345_678_901,
            basis=Basis.RUNNING,
        )
    )
    assert values_of(metrics.requests) == {("bob", "label", "chat", "completed", "200"): 1}
    assert values_of(metrics.tokens) == {("bob", "label", "chat", "input"): 11, ("bob", "label", "chat", "output"): 7}
    assert values_of(metrics.token_details) == {
        ("bob", "label", "input_cached"): 3,
        ("bob", "label", "output_reasoning"): 2,
    }
    assert values_of(metrics.usage_records) == {("chat", "running"): 1}
    assert 'meter_proxy_cost_usd_total{key="bob",model="label"} 12.345678901\n' in metrics.render()


def test_what_was_not_reported_has_no_detail(metrics: Metrics) -> None:
    """None is not 0."""
    metrics.count(journal_record("m1", cached_input_tokens=None, reasoning_tokens=0))
    metrics.count(journal_record("m2", cached_input_tokens=0, reasoning_tokens=None))
    assert values_of(metrics.token_details) == {
        ("alice", "m1", "output_reasoning"): 0,
        ("alice", "m2", "input_cached"): 0,
    }


def test_an_exchange_without_any_answer_has_code_0(metrics: Metrics) -> None:
    """As other proxies write it."""
    metrics.count(journal_record(outcome=Outcome.CLIENT_DISCONNECTED, status=None, ttft_ms=None))
    assert values_of(metrics.requests) == {("alice", "m1", "chat", "client_disconnected", "0"): 1}


@pytest.mark.parametrize(
    ("members", "phases"),
    [
        ({"outcome": Outcome.CLIENT_DISCONNECTED, "ttft_ms": None}, {("m1", "before_first_token"): 1}),
        ({"outcome": Outcome.CLIENT_DISCONNECTED, "ttft_ms": 5.0}, {("m1", "streaming"): 1}),
        ({"outcome": Outcome.COMPLETED}, {}),
        ({"outcome": Outcome.UPSTREAM_FAILED, "ttft_ms": None}, {}),
    ],
)
def test_the_phase_of_a_hang_up_comes_from_the_record(
    metrics: Metrics, members: dict[str, Any], phases: dict[tuple[str, ...], int]
) -> None:
    """Before the first token, or while it streamed."""
    metrics.count(journal_record(**members))
    assert values_of(metrics.disconnects) == phases


def otel(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The sample `gen_ai_server_NAME` of a chat with m1 at the upstream `local`."""
    every = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "openai",
        "gen_ai_request_model": "m1",
        "server_address": "backend",
        "server_port": "8000",
        **labels,
    }
    text = ",".join(f"{name}={value}" for name, value in sorted(every.items()))
    return everything(metrics).get(f"gen_ai_server_{name}{{{text}}}")


def test_a_stream_has_its_times(metrics: Metrics) -> None:
    """Seconds; per token means per token after the first."""
    metrics.count(journal_record(ttft_ms=250.0, duration_ms=1250.0, output_tokens=5))
    assert otel(metrics, "request_duration_seconds_sum") == 1.25
    assert otel(metrics, "time_to_first_token_seconds_sum") == 0.25
    assert otel(metrics, "time_per_output_token_seconds_sum") == 0.25


@pytest.mark.parametrize(
    ("members", "has_first", "has_per_token"),
    [
        ({"output_tokens": 1}, True, False),
        ({"output_tokens": 9, "outcome": Outcome.CLIENT_DISCONNECTED}, True, False),
        ({"stream": False, "ttft_ms": 90.0}, False, False),
        ({"ttft_ms": None, "output_tokens": 0}, False, False),
    ],
    ids=["one token", "hung up", "plain", "no token"],
)
def test_times_that_would_mislead_are_left_out(
    metrics: Metrics, members: dict[str, Any], has_first: bool, has_per_token: bool
) -> None:
    """Time per token only of completed streams, time to the first token only of streams that had one."""
    metrics.count(journal_record(**members))
    text = metrics.render()
    assert ("gen_ai_server_time_to_first_token_seconds_count{" in text) is has_first
    assert ("gen_ai_server_time_per_output_token_seconds_count{" in text) is has_per_token
    assert "gen_ai_server_request_duration_seconds_count{" in text


@pytest.mark.parametrize(
    ("outcome", "status", "error_type"),
    [
        (Outcome.CLIENT_ERROR, 429, "429"),
        (Outcome.UPSTREAM_FAILED, 502, "502"),
        (Outcome.UPSTREAM_FAILED, 200, "upstream_failed"),
        (Outcome.CLIENT_DISCONNECTED, None, "client_disconnected"),
    ],
)
def test_a_bad_end_has_an_error_type(metrics: Metrics, outcome: Outcome, status: int | None, error_type: str) -> None:
    """The upstream's status where there is one, else the outcome; a good end has none."""
    metrics.count(journal_record(outcome=outcome, status=status))
    assert otel(metrics, "request_duration_seconds_count", error_type=error_type) == 1
    assert otel(metrics, "request_duration_seconds_count") is None


def test_a_record_of_a_forgotten_upstream_is_counted(metrics: Metrics) -> None:
    """The configuration changed between its exchange and now."""
    metrics.count(journal_record(upstream="gone"))
    assert "server_address" not in metrics.render()
    assert sum(metrics.requests.values.values()) == 1


def test_refusals_come_from_the_workers(metrics: Metrics, stats: WorkerStats) -> None:
    """As `denied`, with our answer's status; names that nobody configured are `other`."""
    stats.refused("unknown", "", Operation.CHAT, 401)
    stats.refused("alice", "m1", Operation.EMBEDDINGS, 413)
    stats.refused("alice", "x-1", Operation.CHAT, 404)
    stats.refused("alice", "x-2", Operation.CHAT, 404)
    metrics.absorb("w0", stats.snapshot())
    assert values_of(metrics.requests) == {
        ("unknown", "other", "chat", "denied", "401"): 1,
        ("alice", "m1", "embeddings", "denied", "413"): 1,
        ("alice", "other", "chat", "denied", "404"): 2,
    }


def test_the_same_snapshot_twice_counts_once(metrics: Metrics, stats: WorkerStats) -> None:
    """Snapshots are absolute: read one again, or miss some, and nothing is wrong."""
    full(metrics, stats)
    before = everything(metrics)
    metrics.absorb("w0", stats.snapshot())
    assert everything(metrics) == before
    stats.bad_usage("negative_count")
    stats.bad_usage("negative_count")
    metrics.absorb("w0", stats.snapshot())
    assert values_of(metrics.bad_usage) == {("negative_count",): 3}


def test_workers_add_up_and_no_counter_decreases_when_one_dies(metrics: Metrics, stats: WorkerStats) -> None:
    """What a dead worker had counted stays; its successor begins at 0 and adds to it."""
    full(metrics, stats)
    other = WorkerStats()
    other.refused("alice", "m1", Operation.CHAT, 404)
    other.observe_overhead("chunk", 2e-5)
    metrics.absorb("w1", other.snapshot())
    before = everything(metrics)
    metrics.forget("w0")
    successor = WorkerStats()
    successor.watch(FakeLedger(), label)
    metrics.absorb("w0", successor.snapshot())
    after = everything(metrics)
    decreased = {name for name, value in before.items() if after[name] < value}
    assert decreased == {"meter_proxy_inflight_requests{model=m1}"}
    successor.bad_usage("negative_count")
    metrics.absorb("w0", successor.snapshot())
    assert values_of(metrics.bad_usage) == {("negative_count",): 2}
    assert everything(metrics)["meter_proxy_overhead_seconds_count{stage=chunk}"] == 2


def test_in_flight_is_the_sum_over_live_workers(metrics: Metrics, stats: WorkerStats) -> None:
    """A model that was seen stays at 0; a dead worker has nothing in flight."""
    other = WorkerStats()
    other.watch(FakeLedger(), label)
    for each in (stats, other):
        each.inflight_add("m1", 1)
        each.inflight_add("x-1", 1)
        each.inflight_add("x-2", 1)
    metrics.absorb("w0", stats.snapshot())
    metrics.absorb("w1", other.snapshot())
    assert metrics.inflight.values == {("m1",): 2, ("other",): 4}
    metrics.forget("w1")
    stats.inflight_add("m1", -1)
    metrics.absorb("w0", stats.snapshot())
    assert metrics.inflight.values == {("m1",): 0, ("other",): 2}


def test_names_in_flight_are_forgotten_when_they_end(stats: WorkerStats) -> None:
    """Callers choose names: memory must not grow with them."""
    for number in range(1000):
        stats.inflight_add(f"x-{number}", 1)
        stats.inflight_add(f"x-{number}", -1)
    assert stats.snapshot().inflight == {}


def test_the_store_is_up_when_every_worker_reaches_it(metrics: Metrics) -> None:
    """Before the first word of a worker it is not known to be."""
    assert everything(metrics)["meter_proxy_redis_up{}"] == 0
    ledgers = [FakeLedger(), FakeLedger()]
    for number, ledger in enumerate(ledgers):
        ledger.unsynced, ledger.regressions = 5, 1
        stats = WorkerStats()
        stats.watch(ledger, label)
        metrics.absorb(f"w{number}", stats.snapshot())
    found = everything(metrics)
    assert (found["meter_proxy_redis_up{}"], found["meter_proxy_unsynced_records{}"]) == (1, 10)
    assert found["meter_proxy_redis_regressions_total{}"] == 2
    ledgers[1].store_up = False
    stats = WorkerStats()
    stats.watch(ledgers[1], label)
    metrics.absorb("w1", stats.snapshot())
    assert everything(metrics)["meter_proxy_redis_up{}"] == 0


def test_the_version_is_shown(metrics: Metrics) -> None:
    """As a label of a constant."""
    assert everything(metrics)["meter_proxy_build_info{version=1.2.3}"] == 1


def test_two_thousand_series_do_not_hold_the_loop(metrics: Metrics) -> None:
    """A few ms: the loop that renders also replaces workers. (prometheus_client's own text takes some 28 ms.)"""
    for number in range(400):
        metrics.count(journal_record(f"m{number % 20}", key=f"k{number}"))
    assert len(metrics.render().splitlines()) > 2000

    def render_s() -> float:
        began_at = time.thread_time()  # of work: others may have the machine meanwhile
        metrics.render()
        return time.thread_time() - began_at

    assert min(render_s() for _ in range(10)) < 0.015


def test_an_upstream_is_up_while_any_worker_gets_answers(metrics: Metrics) -> None:
    """Silent until it is tried; and only a change is news, for the log."""
    first, second = WorkerStats(), WorkerStats()
    assert "meter_proxy_upstream_up{" not in metrics.render()
    assert [first.upstream_answers("gpu", up) for up in (True, True, False, False, True)] == [
        False,
        False,
        True,
        False,
        True,
    ]
    first.upstream_answers("gpu", False)
    metrics.absorb("w0", first.snapshot())
    assert 'meter_proxy_upstream_up{upstream="gpu"} 0\n' in metrics.render()
    second.upstream_answers("gpu", True)
    metrics.absorb("w1", second.snapshot())
    assert 'meter_proxy_upstream_up{upstream="gpu"} 1\n' in metrics.render()


def test_a_stream_that_a_quota_ended_is_counted_under_its_rule() -> None:
    """The key's own, or its account's."""
    metrics = Metrics(version="1", servers={})
    for cut_by in ("k/daily", "a/monthly", "a/monthly", None):
        metrics.count(journal_record(key="alice", account="team", cut_by=cut_by))
    assert metrics.quota_cutoffs.values == {("alice", "daily"): 1, ("account:team", "monthly"): 2}


def test_refusals_by_a_quota_are_counted_once(metrics: Metrics, stats: WorkerStats) -> None:
    """What a worker repeats is no news."""
    stats.quota_rejected("alice", "daily")
    metrics.absorb("w0", stats.snapshot())
    stats.quota_rejected("account:acme", "pool")
    stats.quota_rejected("alice", "daily")
    for _ in range(2):
        metrics.absorb("w0", stats.snapshot())
    assert values_of(metrics.quota_rejections) == {("alice", "daily"): 2, ("account:acme", "pool"): 1}


def test_the_store_is_away_when_a_worker_says_so(metrics: Metrics) -> None:
    """Not while nobody has said anything yet, nor for a worker that is gone."""
    said = [metrics.store_is_away]
    for worker, store_up in (("w0", True), ("w1", False)):
        metrics.absorb(worker, Snapshot(incarnation=worker, store_up=store_up))
        said.append(metrics.store_is_away)
    metrics.forget("w1")
    assert [*said, metrics.store_is_away] == [False, False, True, False]


def test_an_upstream_that_is_not_configured_any_more_is_not_down(metrics: Metrics, stats: WorkerStats) -> None:
    """Else an alert would never end; also if an exchange from before the reload tries it once more."""
    for name in ("local", "old"):
        stats.upstream_answers(name, False)
    stats.configured(["local"])
    stats.upstream_answers("old", False)
    metrics.absorb("w0", stats.snapshot())
    assert metrics.upstream_up.values == {("local",): 0}


def test_tokens_are_told_apart_by_how_they_are_known(metrics: Metrics) -> None:
    """Input by its own basis; together they are all tokens."""
    metrics.count(journal_record(input_tokens=10, output_tokens=5))
    metrics.count(journal_record(input_tokens=3, input_basis=Basis.ESTIMATED, output_tokens=2, basis=Basis.COUNTED))
    assert values_of(metrics.tokens_by_basis) == {
        ("input", "reported"): 10,
        ("output", "reported"): 5,
        ("input", "estimated"): 3,
        ("output", "counted"): 2,
    }
    assert sum(metrics.tokens_by_basis.values.values()) == sum(metrics.tokens.values.values())


def test_what_was_generated_for_a_client_that_left_is_told(metrics: Metrics) -> None:
    """Only for those that left; the model and the key are those of the bill."""
    metrics.count(journal_record(key="bob", output_tokens=7))
    metrics.count(journal_record(key="bob", output_tokens=3, outcome=Outcome.CLIENT_DISCONNECTED))
    metrics.count(journal_record(key="bob", output_tokens=0, outcome=Outcome.CLIENT_DISCONNECTED, ttft_ms=None))
    assert values_of(metrics.disconnected_output) == {("bob", "m1"): 3}


def test_the_room_for_the_books_is_shown(metrics: Metrics) -> None:
    """In bytes."""
    metrics.disk(5 * 2**40, 8 * 2**40)
    text = metrics.render()
    assert "meter_proxy_state_dir_free_bytes 5497558138880\n" in text
    assert "meter_proxy_state_dir_size_bytes 8796093022208\n" in text


def test_the_first_refusal_and_the_first_cut_are_an_increase(metrics: Metrics) -> None:
    """Each rule has its counters from the start, at 0; a reload takes nothing back."""
    config = config_with(key("alice", {"name": "daily", "tokens": 5, "per": "day"}))
    metrics.configured(config, 0.0)
    assert values_of(metrics.quota_rejections) == values_of(metrics.quota_cutoffs) == {("alice", "daily"): 0}
    metrics.count(journal_record(key="alice", cut_by="k/daily"))
    metrics.configured(config, 1.0)
    assert values_of(metrics.quota_cutoffs) == {("alice", "daily"): 1}
