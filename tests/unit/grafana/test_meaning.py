"""What the less obvious queries answer, evaluated by promtool on series whose answer is known."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.dashboards import DASHBOARDS, load, substituted, targets
from tests.support.servers import installed_program

OVERVIEW, BILLING, LATENCY = "meter-proxy-overview", "meter-proxy-billing", "meter-proxy-latency"
I1, I2 = 'job="j",instance="i1"', 'job="j",instance="i2"'
_SAMPLE = re.compile(r"\{(?P<labels>[^}]*)\} (?P<value>[^\s,]+)")


class Asked:
    """Queries of the dashboards, with everything chosen."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "test.yml"

    def __call__(
        self, dashboard: str, panel: str, series: dict[str, str], *, ref: str = "A", at_m: int, range_m: int = 0
    ) -> dict[str, float]:
        """Labels -> value of what the target returns `at_m` minutes after the beginning.

        `series`: name and labels -> values, one a minute, in promtool's notation. `range_m`: the time shown.
        """
        chosen = dict.fromkeys(("job", "instance", "account", "key", "model", "server"), ".+")
        values = {**chosen, "__range": f"{range_m or at_m}m", "__rate_interval": "4m"}
        found = {(one.panel, one.ref): one.expr for one in targets(load(DASHBOARDS / f"{dashboard}.json"))}
        # It is told to expect nothing, and complains with what there is.
        case = {"expr": substituted(found[panel, ref], values), "eval_time": f"{at_m}m", "exp_samples": []}
        test: dict[str, Any] = {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [case],
        }
        self._path.write_text(json.dumps({"evaluation_interval": "1m", "tests": [test]}))  # JSON is YAML
        program = installed_program("promtool")
        run = subprocess.run([program, "test", "rules", self._path], capture_output=True, text=True, check=False)
        said = run.stdout + run.stderr
        assert "SUCCESS" in said or "got:" in said, said
        samples = _SAMPLE.finditer(said.partition("got:")[2])
        return {one["labels"]: float(one["value"]) for one in samples}


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """To ask."""
    return Asked(tmp_path)


def test_a_restart_takes_nothing_from_the_cost(asked: Asked) -> None:
    """10, then a new process: 9 more."""
    series = {f'meter_proxy_cost_usd_total{{{I1},key="a",model="m"}}': "0+1x10 0+1x9"}
    assert asked(BILLING, "Cost today", series, at_m=20) == {"": 19}


def test_no_failure_is_an_error_ratio_of_0_and_no_request_is_none(asked: Asked) -> None:
    """Where nothing was asked there is no ratio: neither 0 nor 100%."""
    good = {f'meter_proxy_requests_total{{{I1},outcome="completed"}}': "0+5x10"}
    bad = {f'meter_proxy_requests_total{{{I1},outcome="upstream_failed"}}': "0+1x10"}
    refused = {f'meter_proxy_requests_total{{{I1},outcome="denied"}}': "0+9x10"}
    assert asked(OVERVIEW, "Error ratio", good, at_m=10) == {"": 0}
    assert asked(OVERVIEW, "Error ratio", {**good, **bad, **refused}, at_m=10) == pytest.approx({"": 1 / 6})
    assert asked(OVERVIEW, "Error ratio", bad, at_m=10) == {"": 1}
    assert asked(OVERVIEW, "Error ratio", refused, at_m=10) == {}


def hang_ups(*, others: int, until: int) -> dict[str, str]:
    """One hang-up and one other exchange a minute, so long; and embeddings, which generate nothing."""

    def requests(operation: str, outcome: str) -> str:
        return f'meter_proxy_requests_total{{{I1},key="a",model="m",operation="{operation}",outcome="{outcome}"}}'

    tokens = f'meter_proxy_tokens_total{{{I1},key="a",model="m",operation="chat",type="output"}}'
    left = f'meter_proxy_disconnected_output_tokens_total{{{I1},key="a",model="m"}}'
    return {
        requests("chat", "completed"): "0+1x10",
        requests("chat", "client_disconnected"): "0+1x10",
        requests("embeddings", "completed"): "0+50x10",
        tokens: f"0+{others + until}x10",
        left: f"0+{until}x10",
    }


def test_what_a_hang_up_saved_is_what_was_missing_to_the_mean_of_the_others(asked: Asked) -> None:
    """Ten hang-ups at 30 tokens, where the others had 100; none where all is drained, and never less than 0."""
    panel = "Saved by cancelling"
    assert asked(BILLING, panel, hang_ups(others=100, until=30), at_m=10) == {"": 700}
    assert asked(BILLING, panel, hang_ups(others=100, until=100), at_m=10) == {"": 0}
    assert asked(BILLING, panel, hang_ups(others=100, until=150), at_m=10) == {"": 0}
    only_tokens = {name: values for name, values in hang_ups(others=9, until=0).items() if "_tokens_total" in name}
    assert asked(BILLING, panel, only_tokens, at_m=10) == {"": 0}


def quota(name: str, values: str, *, instance: str = I1, unit: str = "tokens") -> dict[str, str]:
    """A gauge of alice's rule."""
    return {f'meter_proxy_quota_{name}{{{instance},key="alice",rule="r",unit="{unit}"}}': values}


def test_a_quota_is_full_when_its_pace_fills_it(asked: Asked) -> None:
    """60 of 100 used within the hour: 40 minutes. Two machines tell of one counter, not of two."""
    told = {**quota("used", "0+1x60"), **quota("limit", "100x60")}
    told |= {**quota("used", "0+1x60", instance=I2), **quota("limit", "100x60", instance=I2)}
    labels = 'key="alice", rule="r", unit="tokens"'
    assert asked(BILLING, "Time to exhaustion", told, at_m=60) == {labels: 40 * 60}
    assert asked(BILLING, "Quotas now", told, ref="E", at_m=60) == {labels: 40 * 60}


def test_a_new_window_is_no_negative_pace(asked: Asked) -> None:
    """40 to 69 in the old window, 0 to 30 in the new one: 59 an hour, and 70 are left."""
    told = {**quota("used", "40+1x29 0+1x30"), **quota("limit", "100x60")}
    found = asked(BILLING, "Time to exhaustion", told, at_m=60)
    assert list(found.values()) == pytest.approx([70 / 59 * 3600])


def test_an_idle_quota_and_exchanges_at_once_are_never_exhausted(asked: Asked) -> None:
    """No line at all: not infinity, and not 0."""
    idle = {**quota("used", "50x60"), **quota("limit", "100x60")}
    at_once = {**quota("used", "0 1 2 3 2 1 0", unit="concurrent"), **quota("limit", "4x60", unit="concurrent")}
    assert asked(BILLING, "Time to exhaustion", {**idle, **at_once}, at_m=5) == {}


def test_more_than_all_used_leaves_nothing(asked: Asked) -> None:
    """A bar never goes below 0."""
    found = asked(BILLING, "Left of each quota", quota("usage_ratio", "1.2x5"), at_m=5)
    assert list(found.values()) == [0]


def test_a_key_under_two_accounts_is_counted_under_one(asked: Asked) -> None:
    """While two machines have different configurations. Prometheus would refuse the query otherwise."""
    info = {
        f'meter_proxy_key_info{{{I1},key="a",account="old"}}': "1x10",
        f'meter_proxy_key_info{{{I2},key="a",account="new"}}': "1x10",
        f'meter_proxy_key_info{{{I2},key="b",account="new"}}': "1x10",
    }
    cost = {f'meter_proxy_cost_usd_total{{{I1},key="{key}",model="m"}}': "0+1x10" for key in "ab"}
    found = asked(BILLING, "Cost by account", {**info, **cost}, at_m=10)
    assert sum(found.values()) == pytest.approx(20)
    assert found.keys() <= {'account="old"', 'account="new"'}


def test_shares_of_the_bases_add_up_to_all(asked: Asked) -> None:
    """Of input and of output, each."""

    def tokens(kind: str, basis: str) -> str:
        return f'meter_proxy_tokens_by_basis_total{{{I1},type="{kind}",basis="{basis}"}}'

    told = {tokens("input", "reported"): "0+9x10", tokens("output", "counted"): "0+1x10"}
    told[tokens("output", "running")] = "0+3x10"
    assert asked(BILLING, "Tokens by basis", told, at_m=10) == {
        'basis="reported", type="input"': 1,
        'basis="counted", type="output"': 0.25,
        'basis="running", type="output"': 0.75,
    }


def test_a_hang_up_is_no_error_of_an_upstream(asked: Asked) -> None:
    """A failure is; and what was refused never came so far."""

    def count(error: str) -> str:
        where = f'{I1},server_address="h",server_port="1",gen_ai_request_model="m"'
        return f'gen_ai_server_request_duration_seconds_count{{{where},error_type="{error}"}}'

    told = {count(""): "0+6x10", count("client_disconnected"): "0+3x10", count("502"): "0+1x10"}
    labels = 'server_address="h", server_port="1"'
    assert asked(LATENCY, "Error ratio", told, at_m=10) == pytest.approx({labels: 0.1})
