"""The admin listener over HTTP: its routes, parameters and answers."""

import csv
import io
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from meter_proxy.admin.app import About, WorkerState, build
from meter_proxy.errors import ConfigError
from meter_proxy.gateway.settlement import rfc3339
from meter_proxy.ledger.journal import encode_line
from meter_proxy.ledger.slots import SlotTable
from meter_proxy.quota.charge import Unit
from meter_proxy.quota.windows import window_at
from meter_proxy.tasks import spawn
from meter_proxy.telemetry.feed import RecordFeed
from meter_proxy.telemetry.metrics import Metrics
from meter_proxy.telemetry.quota_gauges import QuotaState
from meter_proxy.telemetry.stats import WorkerStats
from tests.support.httpraw import RawClient
from tests.support.journals import open_journal
from tests.support.records import usage_record
from tests.support.waiting import until_async
from tests.unit.telemetry.quota_configs import config_with, key
from tests.unit.telemetry.test_live import admission as live_admission


class FakeProxy:
    """A proxy with one worker, as ready as the test says."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.notes: list[str] = []
        self.faults: list[str] = []
        self.uptime_s = 12.5
        self.state = "ready"

    def reasons_not_ready(self) -> list[str]:
        """What the test put there."""
        return self.reasons

    def notes_on_readiness(self) -> list[str]:
        """What the test put there."""
        return self.notes

    def worker_states(self) -> Sequence[WorkerState]:
        """One."""
        return [WorkerState(index=0, pid=4711, state=self.state, restarts=2)]

    def about(self) -> About:
        """As it is."""
        return About(version="1", base_url="http://127.0.0.1:8080/v1", models=["m1"], needs_key=True)

    async def reload(self) -> None:
        """As good as the test says."""
        if self.faults:
            raise ConfigError(self.faults)


@pytest.fixture
def proxy() -> FakeProxy:
    """The proxy that the client's admin listener belongs to."""
    return FakeProxy()


@pytest.fixture
def metrics() -> Metrics:
    """The metrics that the client's admin listener shows."""
    return Metrics(version="1", servers={})


@pytest.fixture
async def client(tmp_path: Path, proxy: FakeProxy, metrics: Metrics) -> AsyncIterator[TestClient[Any, Any]]:
    """A client of an admin listener whose books hold 250 records: 125 of each alice and bob."""
    (tmp_path / "w0").mkdir()
    journal = open_journal(tmp_path / "w0")
    for number in range(250):
        time = f"2026-03-0{1 + number // 100}T12:{number % 60:02d}:00.000Z"
        record = usage_record(id=f"r{number}", time=time, key="bob" if number % 2 else "alice")
        journal.append(encode_line(record, "other" if number < 50 else "m1"))
    feed = RecordFeed(tmp_path, metrics, workers=1)
    following = spawn(feed.run(), name="feed")
    async with TestClient(TestServer(build(metrics, feed, proxy, admin_token=None))) as client:
        yield client
    following.cancel()


async def get(client: TestClient[Any, Any], path: str, expected: int = 200) -> Any:
    """The JSON at `path`."""
    async with client.get(path) as response:
        assert response.status == expected
        assert response.content_type == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
        assert "Server" not in response.headers
        return await response.json()


async def test_records_are_the_newest_oldest_first(client: TestClient[Any, Any]) -> None:
    """100 unless asked otherwise."""
    everything = (await get(client, "/api/records?limit=100000"))["data"]
    assert len(everything) == 250
    assert everything == sorted(everything, key=lambda record: record["time"])
    assert (await get(client, "/api/records"))["data"] == everything[-100:]
    assert (await get(client, "/api/records?limit=1"))["data"] == everything[-1:]
    of_bob = [record for record in everything if record["key"] == "bob"]
    assert (await get(client, "/api/records?limit=7&key=bob"))["data"] == of_bob[-7:]
    since = [record for record in everything if record["time"] >= "2026-03-03"]
    assert (await get(client, "/api/records?since=2026-03-03T00:00:00Z"))["data"] == since


async def test_no_record_is_an_empty_list(client: TestClient[Any, Any]) -> None:
    """Valid JSON all the same."""
    assert await get(client, "/api/records?key=nobody") == {"data": []}


async def test_a_record_has_the_fields_of_the_contract(client: TestClient[Any, Any]) -> None:
    """In their order; what is more comes after them."""
    (record,) = (await get(client, "/api/records?limit=1"))["data"]
    fields = list(msgspec.structs.asdict(usage_record()))
    assert list(record)[: len(fields)] == fields


async def test_usage_is_totalled_as_asked(client: TestClient[Any, Any]) -> None:
    """Rows in the order of their columns; all figures are integers."""
    rows = (await get(client, "/api/usage?by=model,key"))["data"]
    assert [(row["model"], row["key"], row["requests"]) for row in rows] == [
        ("m1", "alice", 100),
        ("m1", "bob", 100),
        ("other", "alice", 25),
        ("other", "bob", 25),
    ]
    assert rows[0] == {
        "model": "m1",
        "key": "alice",
        "requests": 100,
        "input_tokens": 1000,
        "output_tokens": 500,
        "cached_input_tokens": 0,
        "reasoning_tokens": 0,
        "cost_nano_usd": 7_500_000,
    }
    assert len((await get(client, "/api/usage"))["data"]) == 8
    (row,) = (await get(client, "/api/usage?by=day&since=2026-03-03"))["data"]
    assert (row["day"], row["requests"]) == ("2026-03-03", 50)


async def test_usage_of_one_key(client: TestClient[Any, Any]) -> None:
    """With any columns."""
    rows = (await get(client, "/api/usage?by=key,day&key=bob"))["data"]
    assert {row["key"] for row in rows} == {"bob"}
    assert sum(row["requests"] for row in rows) == 125
    (row,) = (await get(client, "/api/usage?by=model&key=bob&since=2026-03-03"))["data"]
    assert (row["model"], row["requests"]) == ("m1", 25)
    assert (await get(client, "/api/usage?key=nobody"))["data"] == []


async def exported(client: TestClient[Any, Any], path: str, name: str, content_type: str) -> str:
    async with client.get(path) as response:
        assert (response.status, response.content_type, response.charset) == (200, content_type, "utf-8")
        assert response.headers["Content-Disposition"] == f'attachment; filename="{name}"'
        return await response.text()


async def test_reports_as_csv_say_the_same(client: TestClient[Any, Any], metrics: Metrics) -> None:
    """A heading, then a line for each row of the JSON."""
    metrics.configured(config_with(key("alice", {"tokens": 9, "per": "day", "models": ["a", "b"]})), time.time())
    for path, name in (
        ("/api/usage?by=day,key", "usage"),
        ("/api/records?limit=3", "records"),
        ("/api/quotas", "quotas"),
    ):
        text = await exported(client, f"{path}{'&' if '?' in path else '?'}format=csv", f"{name}.csv", "text/csv")
        rows = list(csv.DictReader(io.StringIO(text)))
        data = (await get(client, path))["data"]
        assert list(rows[0]) == list(data[0])
        assert rows == [{column: csv_text(value) for column, value in row.items()} for row in data]
        assert text.endswith("\n") and "\r" not in text


def csv_text(value: Any) -> str:
    """As the documentation says."""
    if isinstance(value, list):
        return " ".join(value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("query", ["", "?format=csv"])
@pytest.mark.parametrize("path", ["/api/records", "/api/usage", "/api/quotas"])
async def test_a_report_without_its_body(client: TestClient[Any, Any], path: str, query: str) -> None:
    """HEAD: not a byte more, or it would begin the next answer."""
    raw = await RawClient.connect(str(client.make_url("/")).rstrip("/"))
    async with raw:
        response = await raw.request("HEAD", path + query)
        assert (response.status, await response.read()) == (200, b"")
        response = await raw.request("GET", "/healthz")
        assert (response.status, await response.read()) == (200, b'{"status":"ok"}')


async def test_records_as_json_lines(client: TestClient[Any, Any]) -> None:
    """For programs that read line by line; without records, no line."""
    text = await exported(client, "/api/records?limit=300&format=jsonl", "records.jsonl", "application/jsonl")
    assert [json.loads(line) for line in text.splitlines()] == (await get(client, "/api/records?limit=300"))["data"]
    assert await exported(client, "/api/records?key=x&format=jsonl", "records.jsonl", "application/jsonl") == ""


async def test_a_name_that_callers_made_up_is_no_formula(client: TestClient[Any, Any], tmp_path: Path) -> None:
    """Model names are theirs; a spreadsheet would run them."""
    worker = tmp_path / "w5"
    worker.mkdir()
    record = usage_record(model="=cmd|' /C calc'!A0", time="2026-03-05T12:00:00.000Z")
    open_journal(worker).append(encode_line(record, "other"))

    async def look() -> str | None:
        text = await exported(client, "/api/records?limit=1&format=csv", "records.csv", "text/csv")
        return text if record.id in text else None

    text = await until_async(look, "the record")
    assert next(csv.DictReader(io.StringIO(text)))["model"] == "'=cmd|' /C calc'!A0"


async def test_quotas_are_those_of_the_configuration(client: TestClient[Any, Any], metrics: Metrics) -> None:
    """With what workers say is used of them; see `QuotaBoard`."""
    assert await get(client, "/api/quotas") == {"total": 0, "data": []}
    keys = [key(name, {"name": "daily", "tokens": 200, "per": "day"}) for name in ("alice", "bob", "carl")]
    metrics.configured(config_with(*keys), time.time())
    window = window_at("day", "UTC", time.time())
    state = QuotaState("bob", "daily", Unit.TOKENS, window.id, window.ends_at, 200, 50, 0)
    metrics.absorb("w0", msgspec.structs.replace(WorkerStats().snapshot(), quotas=[state]))
    answer = await get(client, "/api/quotas")
    assert answer["total"] == 3
    assert [(row["key"], row["used"]) for row in answer["data"]] == [("bob", 50), ("alice", 0), ("carl", 0)]
    assert (await get(client, "/api/quotas?limit=1&offset=1"))["data"] == answer["data"][1:2]
    assert [row["key"] for row in (await get(client, "/api/quotas?q=AR"))["data"]] == ["carl"]
    assert (await get(client, "/api/quotas?key=bob"))["total"] == 1


async def test_the_top_is_the_most_expensive_first(client: TestClient[Any, Any]) -> None:
    """So many rows, and how many there are."""
    answer = await get(client, "/api/usage?by=model,key&top=2")
    assert answer["total"] == 4
    assert [(row["model"], row["cost_nano_usd"]) for row in answer["data"]] == [("m1", 7_500_000)] * 2


async def test_about_is_what_the_page_writes_into_its_examples(client: TestClient[Any, Any]) -> None:
    """Where callers connect, and with what."""
    assert await get(client, "/about.json") == {
        "version": "1",
        "base_url": "http://127.0.0.1:8080/v1",
        "models": ["m1"],
        "needs_key": True,
    }


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/api/records?format=xml", "format"),
        ("/api/usage?format=jsonl", "format"),
        ("/api/quotas?offset=-1", "offset"),
        ("/api/quotas?limit=1001", "limit"),
        ("/api/live?limit=0", "limit"),
        ("/api/live?key=alice", "key"),
        ("/api/records?limit=0", "limit"),
        ("/api/records?limit=-1", "limit"),
        ("/api/records?limit=100001", "limit"),
        ("/api/records?limit=ten", "limit"),
        ("/api/records?limit=1e3", "limit"),
        ("/api/records?limit=%D9%A3", "limit"),
        ("/api/records?limit=1&limit=2", "limit"),
        ("/api/records?since=yesterday", "since"),
        ("/api/records?user=alice", "user"),
        ("/api/usage?by=color", "by"),
        ("/api/usage?by=key,key", "by"),
        ("/api/usage?since=-1d", "since"),
        ("/api/usage?limit=3", "limit"),
        ("/api/usage?top=0", "top"),
    ],
)
async def test_a_bad_parameter_is_named(client: TestClient[Any, Any], path: str, parameter: str) -> None:
    """In OpenAI's shape."""
    error = (await get(client, path, 400))["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", parameter, "invalid_parameter")
    assert error["message"]


@pytest.mark.parametrize(("since", "requests"), [("999999999d", 250), ("9999-12-31T23:59:59-12:00", 0), ("", 250)])
async def test_any_instant_is_good(client: TestClient[Any, Any], since: str, requests: int) -> None:
    """Before the first computer and after the last one."""
    rows = (await get(client, f"/api/usage?since={since}"))["data"]
    assert sum(row["requests"] for row in rows) == requests
    assert len((await get(client, f"/api/records?limit=1000&since={since}"))["data"]) == requests


async def test_metrics_are_prometheus_text(client: TestClient[Any, Any], metrics: Metrics) -> None:
    """As its own parser reads it."""
    async with client.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = list(text_string_to_metric_families(await response.text()))
    assert len(families) == len(metrics.families)


async def test_health_and_readiness(client: TestClient[Any, Any], proxy: FakeProxy) -> None:
    """Not ready is a 503 that says why; alive it is all the same."""
    assert await get(client, "/readyz") == {"ready": True, "reasons": []}
    proxy.notes = ["redis is away: bounded"]
    assert await get(client, "/readyz") == {"ready": True, "reasons": ["redis is away: bounded"]}
    proxy.reasons, proxy.notes = ["draining"], []
    assert await get(client, "/readyz", 503) == {"ready": False, "reasons": ["draining"]}
    assert await get(client, "/healthz") == {"status": "ok"}


async def test_live_shows_workers_and_what_is_in_flight(
    client: TestClient[Any, Any], metrics: Metrics, proxy: FakeProxy, tmp_path: Path
) -> None:
    """By model; and each exchange that a serving worker has in its slots."""
    stats = WorkerStats()
    stats.inflight_add("m", 1)
    metrics.absorb("w0", stats.snapshot())
    still = {"requests_per_s": 0.0, "input_tokens_per_s": 0.0, "output_tokens_per_s": 0.0}
    assert await get(client, "/api/live") == {
        "ready": True,
        "uptime_s": 12.5,
        "workers": [{"index": 0, "pid": 4711, "state": "ready", "restarts": 2}],
        "inflight": {"other": 1},
        "streams": [],
        "streams_total": 0,
        "rates": still,
    }
    slots = SlotTable(tmp_path / "w0", slots=4)
    for number in range(3):
        admission = live_admission(id=f"r{number}", time=rfc3339(time.time() - number))
        slot = slots.take(admission.slot_text())
        assert slot is not None
        slot.forwarded()
        slot.words[slot.counter] = 5
    live = await get(client, "/api/live?limit=2")
    assert [stream["id"] for stream in live["streams"]] == ["r2", "r1"]
    assert live["streams_total"] == 3
    assert live["rates"]["requests_per_s"] == pytest.approx(0.3, rel=0.15)
    assert live["rates"]["output_tokens_per_s"] == pytest.approx(1.5, rel=0.15)
    assert live["rates"]["input_tokens_per_s"] == pytest.approx(3.0, rel=0.15)
    proxy.state = "starting"  # what stands there is of a process that was killed
    assert (await get(client, "/api/live"))["streams"] == []


async def test_reload_says_what_is_wrong(client: TestClient[Any, Any], proxy: FakeProxy) -> None:
    """200, or 422 with every fault; a web page may not even ask."""
    async with client.post("/-/reload") as response:
        assert response.status == 200
    proxy.faults = ["meter-proxy.yaml:3:1: keys: is wrong"]
    async with client.post("/-/reload") as response:
        assert response.status == 422
        assert (await response.json())["faults"] == proxy.faults
    async with client.post("/-/reload", headers={"Origin": str(client.make_url("/").origin())}) as response:
        assert response.status == 403


async def test_unknown_paths_and_methods_are_errors_in_the_same_shape(client: TestClient[Any, Any]) -> None:
    """JSON, never aiohttp's own text."""
    assert (await get(client, "/nothing", 404))["error"]["code"] == "unknown_url"
    async with client.delete("/metrics") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
        assert json.loads(await response.text())["error"]["code"] == "method_not_allowed"
