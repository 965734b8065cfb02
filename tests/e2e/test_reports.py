"""Who used what, as others' programs ask: OpenAI's SDK as an administrator, clients of one-api, readers of OpenAPI."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from tests.support import answers
from tests.support.config import basic_config, write_config
from tests.support.proc import ProxyProcess, running_proxy
from tests.support.upstream import ScriptedUpstream, UpstreamExchange
from tests.support.waiting import until_async

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one proxy for those who only read

ADMIN = "admin-token-of-this-test"
SECRETS = {"ALICE_KEY": "sk-alice", "BOB_KEY": "sk-bob", "CI_KEY": "sk-ci", "ADMIN_TOKEN": ADMIN}
PRICE = {"input": 1000, "output": 2000}  # USD per million tokens
BUDGET = {"name": "budget", "cost_usd": 1, "per": "month", "warn_at": "80%"}
KEYS = [
    {"id": "alice", "secret": {"env": "ALICE_KEY"}, "quotas": [BUDGET, {"requests": 900, "per": "hour"}]},
    {"id": "bob", "secret": {"env": "BOB_KEY"}, "account": "team", "quotas": "unlimited"},
    {"id": "ci", "secret": {"env": "CI_KEY"}, "account": "team", "quotas": "unlimited"},
]
# What was asked below, in one bucket: 9 input and 3 output tokens for each.
ASKED = [("alice", "small"), ("alice", "small"), ("alice", "big"), ("bob", "small"), ("ci", "big")]
COST_USD = 9 * 0.001 + 3 * 0.002


@dataclass
class Reported:
    """A proxy that has served what is in ASKED."""

    proxy: ProxyProcess
    upstream: ScriptedUpstream

    async def get(self, path: str, token: str | None = ADMIN, *, status: int = 200, admin: bool = False) -> Any:
        """The JSON at `path`, of the public listener or of the admin's."""
        url = (self.proxy.admin_url if admin else self.proxy.url) + path
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
            assert response.status == status, await response.text()
            return await response.json()

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        options = {"api_key": SECRETS["ALICE_KEY"], "admin_api_key": ADMIN, "max_retries": 0, **options}
        return openai.AsyncOpenAI(base_url=self.proxy.base_url, **options)


async def _plain(exchange: UpstreamExchange) -> None:
    await exchange.answer(answers.chat_json(output_tokens=3))


@asynccontextmanager
async def reporting(directory: Path) -> AsyncIterator[Reported]:
    """All of ASKED is settled, and Redis has it."""
    async with ScriptedUpstream(_plain) as upstream:
        config = basic_config(
            upstream.url,
            directory,
            listen="127.0.0.1:0",
            admin="127.0.0.1:0",
            admin_token="${ADMIN_TOKEN}",
            upstreams={"local": {"base_url": upstream.url, "running_usage": "off"}},
            models={name: {"upstream": "local", "price": PRICE} for name in ("small", "big")},
            keys=KEYS,
            accounts={"team": {"quotas": [{"tokens": "10k", "per": "day", "models": ["small"]}]}},
        )
        async with running_proxy(write_config(directory, config), env=SECRETS) as proxy:
            reported = Reported(proxy, upstream)
            for key, model in ASKED:
                async with reported.client(api_key=SECRETS[f"{key.upper()}_KEY"]) as client:
                    await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}])

            async def synced() -> bool:
                page = await reported.get(f"/v1/organization/usage/completions?start_time={midnight()}")
                counts: list[int] = [one["num_model_requests"] for day in page["data"] for one in day["results"]]
                return sum(counts) == len(ASKED)

            await until_async(synced, "all usage in Redis")
            yield reported


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reported(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Reported]:
    """For all who only read."""
    async with reporting(tmp_path_factory.mktemp("reported")) as reported:
        yield reported


@pytest_asyncio.fixture(loop_scope="module")
async def changing(tmp_path: Path) -> AsyncIterator[Reported]:
    """For one who makes requests, or loads the configuration again."""
    async with reporting(tmp_path) as reported:
        yield reported


def midnight() -> int:
    """Of the day on which this ran; the day before, around midnight."""
    return int(time.time() - 60) // 86_400 * 86_400


async def test_openais_admin_client_reads_usage(reported: Reported) -> None:
    """Unmodified: groups, filters, pages, and the errors of what is not recorded."""
    async with reported.client() as client:
        usage = client.admin.organization.usage
        page = await usage.completions(start_time=midnight(), group_by=["api_key_id", "model"])
        results = [result for bucket in page.data for result in bucket.results]
        found = {}
        for result in results:
            assert result.object == "organization.usage.completions.result"
            found[result.api_key_id, result.model] = (
                result.num_model_requests,
                result.input_tokens,
                result.output_tokens,
            )
        assert found == {
            ("alice", "small"): (2, 18, 6),
            ("alice", "big"): (1, 9, 3),
            ("bob", "small"): (1, 9, 3),
            ("ci", "big"): (1, 9, 3),
        }
        page = await usage.completions(start_time=midnight(), project_ids=["team"], models=["small"])
        assert [getattr(one, "num_model_requests", 0) for bucket in page.data for one in bucket.results] == [1]
        with pytest.raises(openai.BadRequestError, match="UTC day"):
            await usage.completions(start_time=midnight(), bucket_width="1h")
        with pytest.raises(openai.BadRequestError, match="user_id"):
            await usage.completions(start_time=midnight(), group_by=["user_id"])


async def test_openais_admin_client_reads_costs(reported: Reported) -> None:
    """In dollars, by account and model."""
    async with reported.client() as client:
        page = await client.admin.organization.usage.costs(
            start_time=midnight(), group_by=["project_id", "line_item"], line_items=["small", "big"]
        )
        found = {}
        for bucket in page.data:
            for result in bucket.results:
                assert result.object == "organization.costs.result"
                assert result.amount is not None and result.amount.currency == "usd"
                found[result.project_id, result.line_item] = result.amount.value
        expected = {("alice", "small"): 2, ("alice", "big"): 1, ("team", "small"): 1, ("team", "big"): 1}
        assert found == pytest.approx({group: count * COST_USD for group, count in expected.items()})


async def test_openais_admin_client_turns_pages(reported: Reported) -> None:
    """Every day once; the last page says so."""
    async with reported.client() as client:
        start, cursor, buckets = midnight() - 9 * 86_400, None, []
        while True:
            page = await client.admin.organization.usage.completions(
                start_time=start, limit=4, page=openai.omit if cursor is None else cursor
            )
            buckets += page.data
            assert page.has_more == (page.next_page is not None)
            cursor = page.next_page
            if cursor is None:
                break
        starts = [bucket.start_time for bucket in buckets]
        assert starts == [start + number * 86_400 for number in range(len(starts))]
        assert len(starts) in (10, 11)
        assert [getattr(one, "num_model_requests", 0) for bucket in buckets for one in bucket.results] == [len(ASKED)]


@pytest.mark.parametrize("token", [None, "wrong", SECRETS["ALICE_KEY"]])
async def test_a_callers_key_is_not_the_admins(reported: Reported, token: str | None) -> None:
    """And the admin token is no caller's."""
    for path in ("usage/completions", "costs"):
        error = await reported.get(f"/v1/organization/{path}?start_time=0", token, status=401)
        assert error["error"]["code"] == "invalid_admin_token"
    await reported.get("/dashboard/billing/usage", ADMIN, status=401)


async def test_clients_of_one_api_see_what_is_left(reported: Reported) -> None:
    """Limit less used is what the budget has left; the same with and without /v1."""
    for prefix in ("/v1", ""):
        alice, bob = SECRETS["ALICE_KEY"], SECRETS["BOB_KEY"]
        limit = await reported.get(f"{prefix}/dashboard/billing/subscription", alice)
        assert (limit["object"], limit["hard_limit_usd"], limit["access_until"]) == ("billing_subscription", 1.0, 0)
        used = await reported.get(f"{prefix}/dashboard/billing/usage?start_date=2026-01-01&end_date=2026-02-01", alice)
        assert used == {"object": "list", "total_usage": pytest.approx(3 * COST_USD * 100)}
        unlimited = await reported.get(f"{prefix}/dashboard/billing/subscription", bob)
        assert unlimited["hard_limit_usd"] == 100_000_000
        today = time.strftime("%Y-%m-%d", time.gmtime(midnight()))
        used = await reported.get(f"{prefix}/dashboard/billing/usage?start_date={today}", bob)
        assert used["total_usage"] == pytest.approx(COST_USD * 100)
        error = await reported.get(f"{prefix}/dashboard/billing/usage?start_date=x", bob, status=400)
        assert error["error"]["param"] == "start_date"
        await reported.get(f"{prefix}/dashboard/billing/subscription", None, status=401)


async def test_quotas_and_streams_of_a_running_proxy(changing: Reported) -> None:
    """From Redis and from the worker's slots, while a stream is open; after it, it is gone."""
    goes_on = asyncio.Event()

    async def stream(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await exchange.send_event(*answers.chat_stream(*"abc")[:3])  # the role, and two tokens
        await goes_on.wait()
        await exchange.end()

    changing.upstream.then(stream)
    async with changing.client() as client:
        chunks = await client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "12345678"}], stream=True, max_tokens=50
        )
        await anext(chunks)

        async def counted() -> Any:
            live = await changing.get("/api/live", admin=True)
            return live if live["streams"] and live["streams"][0]["output_tokens"] == 2 else None

        live = await until_async(counted, "two tokens of a stream")
        (one,) = live["streams"]
        assert (one["key"], one["account"], one["model"], one["stream"]) == ("alice", "alice", "small", True)
        assert (one["input_tokens"], live["streams_total"]) == (2, 1)
        assert live["rates"]["requests_per_s"] > 0

        async def reserved() -> Any:
            (row,) = (await changing.get("/api/quotas?key=alice&q=budget", admin=True))["data"]
            return row if row["reserved"] > 0 else None

        row = await until_async(reserved, "what the stream holds")
        assert row["used"] == pytest.approx(3 * COST_USD)
        assert row["remaining"] == pytest.approx(1 - row["used"] - row["reserved"])
        assert (row["unit"], row["per"], row["limit"], row["warn_at"]) == ("cost_usd", "month", 1.0, 0.8)
        goes_on.set()
        async for _ in chunks:
            pass

    async def over() -> bool:
        return not (await changing.get("/api/live", admin=True))["streams"]

    await until_async(over, "the end of the stream")


async def test_every_answer_is_as_the_openapi_document_says(changing: Reported) -> None:
    """The document is valid by itself; each path in it is served, and answers by its schema."""
    document = await changing.get("/api/openapi.json", admin=True)
    validate(document)
    asked = set()

    async def check(path: str, token: str | None = ADMIN, *, query: str = "", status: int = 200) -> None:
        operation = document["paths"][path]["get"]
        names = {parameter["name"] for parameter in operation.get("parameters", ())}
        assert {part.split("=")[0] for part in query.split("&") if part} <= names
        is_public = "servers" in document["paths"][path]
        answer = await changing.get(f"{path}?{query}", token, status=status, admin=not is_public)
        schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
        OAS31Validator({**schema, "components": document["components"]}).validate(answer)
        asked.add(path)

    alice = SECRETS["ALICE_KEY"]
    await check("/api/records", query="limit=10&key=alice&since=1d")
    await check("/api/usage")
    await check("/api/usage", query="by=model&since=1d&key=bob")
    await check("/api/usage", query="by=color", status=400)
    await check("/api/usage", None, status=401)
    await check("/api/quotas", query="limit=10&offset=0")
    await check("/api/live", query="limit=5")
    await check("/api/openapi.json")
    await check("/healthz", None)
    await check("/readyz", None)
    for path, group in (("/v1/organization/usage/completions", "model"), ("/v1/organization/costs", "line_item")):
        await check(path, query=f"start_time={midnight()}&group_by={group}&limit=3")
        await check(path, query="start_time=x", status=400)
        await check(path, alice, query="start_time=0", status=401)
    for prefix in ("/v1", ""):
        await check(f"{prefix}/dashboard/billing/subscription", alice)
        await check(f"{prefix}/dashboard/billing/usage", alice, query="start_date=2026-01-01&end_date=2026-01-02")
    await check("/v1/usage", alice)
    await check("/v1/usage", "wrong", status=401)
    assert set(document["paths"]) - asked == {"/metrics", "/-/reload"}
    reload = document["paths"]["/-/reload"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {ADMIN}"}) as session,
        session.post(f"{changing.proxy.admin_url}/-/reload") as response,
    ):
        OAS31Validator(reload).validate(await response.json())
