"""Every query of every panel, asked of a real Prometheus that scraped the real proxy under a mixed load.

Rendering is not tested: no Grafana is at hand.
"""

import asyncio
import math
import subprocess
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support import answers
from tests.support.config import KEY, basic_config, write_config
from tests.support.dashboards import (
    DASHBOARDS,
    RULES,
    all_of,
    dashboard_files,
    label_values,
    load,
    panels,
    substituted,
    targets,
    variables,
)
from tests.support.harms import Streams
from tests.support.httpraw import BrokenOff, RawClient
from tests.support.proc import ProxyProcess, running_mock_backend, running_proxy
from tests.support.servers import PrometheusServer, StoreServer, free_port, installed_program
from tests.support.upstream import ScriptedUpstream, UpstreamExchange
from tests.support.waiting import until_async

SCRAPE_S = 1
RATE_INTERVAL = f"{4 * SCRAPE_S}s"  # what Grafana makes of $__rate_interval when it is zoomed in: four scrapes
ROUNDS = 4

MAY_BE_EMPTY: frozenset[str] = frozenset()
"""Targets of which the load below cannot promise data."""

MAY_BE_ZERO = {"meter-proxy-overview / State / C", "meter-proxy-overview / Records not in the store yet / A"}
"""Those that are 0 all the time where nothing is draining and the store keeps up."""

PRICE = {"input": 2.5, "cached_input": 1.25, "output": 10}


def config(mock: str, scripted: str, directory: Path, **members: Any) -> dict[str, Any]:
    """Three keys, one of them soon at the end of its quota; upstreams good, odd and away."""
    upstreams = {
        "mock": {"base_url": mock},
        "odd": {"base_url": scripted},
        "away": {"base_url": f"http://127.0.0.1:{free_port()}/v1"},
    }
    models = {
        "small": {"upstream": "mock", "price": PRICE},
        "large": {"upstream": "mock", "price": PRICE},
        "cached": {"upstream": "odd", "price": PRICE},
        "silent": {"upstream": "odd"},
        "away": {"upstream": "away"},
    }
    keys = [
        {"id": "alice", "secret": {"env": "ALICE_KEY"}, "account": "team", "quotas": "unlimited"},
        {"id": "bob.b", "secret": {"env": "BOB_KEY"}, "quotas": [{"output_tokens": 40, "per": "month"}]},
        {"id": "carol", "secret": {"env": "CAROL_KEY"}, "quotas": [{"concurrent": 5}, {"cost_usd": 5, "per": "total"}]},
    ]
    accounts = {"team": {"quotas": [{"tokens": "1M", "per": "month"}]}}
    return basic_config(
        mock, directory, upstreams=upstreams, models=models, keys=keys, accounts=accounts, workers=2, **members
    )


async def odd_upstream(exchange: UpstreamExchange) -> None:
    """`silent`: a stream without usage; else one that reports cached and reasoning tokens."""
    events = [answers.chat_event("a"), answers.chat_event("b"), answers.chat_event(finish="stop")]
    if exchange.request.json()["model"] != "silent":
        details = {
            "prompt_tokens_details": {"cached_tokens": 15},
            "completion_tokens_details": {"reasoning_tokens": 4},
        }
        events.append(answers.event({"choices": [], "usage": {**answers.usage(20, 10), **details}}))
    await Streams([*events, answers.DONE])(exchange)


async def ask(
    url: str,
    model: str = "small",
    *,
    key: str = KEY,
    path: str = "chat/completions",
    stream: bool = True,
    hang_up_after: int | None = None,
    **wishes: str,
) -> None:
    """One exchange, whatever comes of it. `wishes`: `x-mock-*` headers, with `_` for `-`."""
    body = {"messages": [{"role": "user", "content": "hello there"}], "input": "hello there", "stream": stream}
    if path == "embeddings":
        del body["messages"], body["stream"]
    else:
        del body["input"]
    headers = [(f"x-mock-{name.replace('_', '-')}", value) for name, value in wishes.items()]
    async with await RawClient.connect(url) as client:
        try:
            response = await client.request("POST", f"/v1/{path}", {"model": model, **body}, key=key, headers=headers)
            if hang_up_after is None:
                await response.read()
            else:
                for _ in range(hang_up_after):
                    await response.next_event()
                client.close_rst()
        except BrokenOff:
            pass  # the upstream broke off


async def load_of_every_kind(url: str) -> None:
    """Good streams and plain answers, hang-ups, a cut-off, refusals, failures of every kind: all at once."""
    await asyncio.gather(
        ask(url),
        ask(url, "large", key="sk-carol"),
        ask(url, stream=False),
        ask(url, path="embeddings"),
        ask(url, hang_up_after=2, tokens="200"),
        ask(url, "large", hang_up_after=4, tokens="200"),
        ask(url, hang_up_after=0, first_byte_ms="300"),
        ask(url, key="sk-bob", tokens="100"),  # cut off, and from then on refused
        ask(url, key="sk-wrong"),
        ask(url, status="500"),
        ask(url, status="400"),
        ask(url, fault="reset@2"),
        ask(url, fault="error@2"),
        ask(url, "cached"),
        ask(url, "silent"),
        ask(url, "away"),
        ask(url, "unknown"),
    )


KEYS = {"ALICE_KEY": KEY, "BOB_KEY": "sk-bob", "CAROL_KEY": "sk-carol"}
EXCHANGES = 17  # of one round


async def scraped(prometheus: PrometheusServer, requests: int) -> bool:
    """Whether Prometheus has seen so many requests, and once more after that."""
    # Before the first request, that counter has no series: the other one says that it was scraped.
    counted = f"sum(meter_proxy_requests_total offset {2 * SCRAPE_S}s)"
    found = await asyncio.to_thread(prometheus.query, f"{counted} or 0 * sum(meter_proxy_draining offset {SCRAPE_S}s)")
    return list(found.values()) == [requests]


def values_of_variables(prometheus: PrometheusServer, path: Path, since: float) -> dict[str, str]:
    """Every variable of a dashboard, asked of Prometheus as Grafana does, with "All" chosen; the built-in ones, too."""
    values = {
        "__rate_interval": RATE_INTERVAL,
        "__interval": f"{SCRAPE_S}s",
        "__range": f"{math.ceil(time.time() - since)}s",
    }
    for variable in variables(load(path)):
        series, label = label_values(variable["query"])
        found = prometheus.get(f"label/{label}/values", **{"match[]": substituted(series, values), "start": since})
        assert found, f"{path.name}: there is nothing to choose for {variable['name']}"
        values[variable["name"]] = all_of(variable, found)
    return values


def ask_everything(prometheus: PrometheusServer, since: float) -> dict[str, list[float]]:
    """All targets, with the numbers that they returned over all the time; NaN (0/0) is none."""
    found = {}
    for path in dashboard_files():
        values = values_of_variables(prometheus, path, since)
        for target in targets(load(path)):
            expr = substituted(target.expr, values)
            series = prometheus.query_range(expr, since, time.time(), SCRAPE_S)
            found[str(target)] = [value for one in series for value in one if math.isfinite(value)]
    return found


def check_tables(prometheus: PrometheusServer, since: float) -> int:
    """All columns of a table have its labels, and no others: else its lines do not merge. How many there were."""
    count = 0
    for path in dashboard_files():
        values = values_of_variables(prometheus, path, since)
        for panel in (one for one in panels(load(path)) if one["type"] == "table"):
            organize = panel["transformations"][1]["options"]
            labels = organize["indexByName"].keys() - organize["renameByName"].keys()
            for target in panel["targets"]:
                lines = prometheus.query(substituted(target["expr"], values))
                assert lines, f"{panel['title']}: no line"
                assert {name for line in lines for name, _ in line} == labels, panel["title"]
                count += 1
    return count


@pytest.mark.timeout(180)
async def test_every_query_of_every_panel_returns_data(redis_server: StoreServer, tmp_path: Path) -> None:
    """Or stands on the list of those that may be empty; and the alert rules can be evaluated on the same data."""
    async with (
        running_mock_backend("--dialect", "vllm", "--rate", "200") as mock,
        ScriptedUpstream(odd_upstream) as odd,
    ):
        path = write_config(tmp_path, config(mock, odd.url, tmp_path, redis={"url": redis_server.url}))
        async with running_proxy(path, env=KEYS) as proxy:
            admin = urlsplit(proxy.admin_url).netloc
            rules = [RULES / "alerts.yml"]
            with PrometheusServer(tmp_path, [admin], interval=f"{SCRAPE_S}s", rules=rules) as prometheus:
                await under_load(proxy, prometheus, redis_server)


async def under_load(proxy: ProxyProcess, prometheus: PrometheusServer, store: StoreServer) -> None:
    """Round after round, so that every counter grows between two scrapes; beside them one long stream."""
    await until_async(partial(scraped, prometheus, 0), "Prometheus to see the beginning")
    since = time.time()
    long_stream = asyncio.create_task(ask(proxy.url, tokens="100000"))
    try:
        for number in range(1, ROUNDS + 1):
            await load_of_every_kind(proxy.url)
            await until_async(partial(scraped, prometheus, number * EXCHANGES), f"Prometheus to see round {number}")
            if number == 2:
                with store.client() as client:
                    client.flushall()  # it has lost everything; the workers tell it again
        await asyncio.to_thread(check, prometheus, since)
        await asyncio.to_thread(check_exposition, proxy.admin_url)
    finally:
        long_stream.cancel()


def check_choice(prometheus: PrometheusServer, since: float) -> None:
    """The account that is chosen decides which keys there are, and these what is shown."""
    path = DASHBOARDS / "meter-proxy-billing.json"
    values = values_of_variables(prometheus, path, since)
    of_key = next(one for one in variables(load(path)) if one["name"] == "key")
    series, label = label_values(of_key["query"])
    for account, keys in {"team": ["alice"], "bob.b": ["bob.b"], "(team|carol)": ["alice", "carol"]}.items():
        chosen = {**values, "account": account}
        found = prometheus.get(f"label/{label}/values", **{"match[]": substituted(series, chosen), "start": since})
        assert found == keys
        chosen["key"] = all_of(of_key, found)
        asked = {one.ref: one.expr for one in targets(load(path)) if one.panel == "Keys today"}
        lines = prometheus.query(substituted(asked["D"], chosen))
        assert sorted(dict(line)["key"] for line in lines) == keys
        asked = {one.ref: one.expr for one in targets(load(path)) if one.panel == "Quotas now"}
        holders = {dict(line)["key"] for line in prometheus.query(substituted(asked["A"], chosen))}
        assert holders <= {*keys, "account:team"}
        assert ("account:team" in holders) is ("alice" in keys)


def check_exposition(admin_url: str) -> None:
    """Prometheus' own linter has nothing to say of what the proxy exposes by now."""
    with urllib.request.urlopen(f"{admin_url}/metrics", timeout=5) as exposition:
        text = exposition.read()
    run = subprocess.run(
        [installed_program("promtool"), "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")


def check(prometheus: PrometheusServer, since: float) -> None:
    """Ask, and compare with the lists above."""
    found = ask_everything(prometheus, since)
    empty = {name for name, numbers in found.items() if not numbers}
    zero = {name for name, numbers in found.items() if numbers and not any(numbers)}
    print(f"{len(found)} targets, {len(empty)} empty, {len(zero)} always 0")
    assert len(found) > 80
    assert empty <= MAY_BE_EMPTY
    assert zero <= MAY_BE_ZERO
    assert check_tables(prometheus, since) > 10
    check_choice(prometheus, since)
    groups = prometheus.get("rules")["groups"]
    health = {rule["name"]: (rule["health"], rule.get("lastError")) for group in groups for rule in group["rules"]}
    assert len(health) > 10
    assert {name: state for name, state in health.items() if state != ("ok", None)} == {}
