"""Every wire case of the corpus through the whole proxy: what the client gets, and what is billed."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from meter_proxy.usage import Basis
from tests.integration.conftest import StartProxy
from tests.support.config import KEY
from tests.support.httpraw import RawClient
from tests.support.upstream import UpstreamExchange

CORPUS = Path(__file__).parent.parent / "corpus"
PATHS = ("/v1/chat/completions", "/v1/llm/chat/completions", "/v1/completions", "/v1/embeddings")


@cache
def case(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((CORPUS / f"{name}.expected.json").read_text())
    return document


CASES = [
    name
    for entry in json.loads((CORPUS / "index.json").read_text())
    if case(name := entry["case"])["request"]["path"] in PATHS
]


def answer_of(name: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body of a case, as recorded."""
    status_line, *lines = (CORPUS / f"{name}.headers").read_text().splitlines()
    headers = [(key, value.strip()) for key, _, value in (line.partition(":") for line in lines if line)]
    return int(status_line.split()[1]), headers, (CORPUS / case(name)["file"]).read_bytes()


def test_the_corpus_has_116_cases_of_these_operations() -> None:
    """Nothing is skipped silently."""
    assert len(CASES) == 116


@pytest.mark.parametrize("name", CASES)
async def test_case_is_forwarded_and_billed_right(start: StartProxy, name: str) -> None:
    """Asked as recorded, usage included: identical bytes, and the expected usage in the record."""
    expected = case(name)
    status, headers, body = answer_of(name)

    async def replay(exchange: UpstreamExchange) -> None:
        await exchange.start(status, [*headers, ("Connection", "close")])
        await exchange.send(body)
        exchange.close()

    proxy, upstream = await start(replay, path_prefixes=["/v1", "/v1/llm"], limits={"max_event": "2M"})
    request = expected["request"]
    ask = {"messages": [], **request["body"]}
    if ask.get("stream"):
        ask["stream_options"] = {**ask.get("stream_options", {}), "include_usage": True}
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", request["path"], ask, key=KEY)
        assert response.status == status
        assert await response.read() == body
    record = await proxy.record()
    if status >= 400:
        assert (record.basis, record.input_tokens, record.output_tokens) == (Basis.NONE, 0, 0)
        return
    assert upstream.posts[0].target == "/v1" + request["path"].removeprefix("/v1/llm").removeprefix("/v1")
    if expected["completion_tokens"] is not None:
        assert (record.output_tokens, record.basis) == (expected["completion_tokens"], Basis.REPORTED)
    elif expected.get("cutoffs"):
        assert record.basis in (Basis.COUNTED, Basis.NONE)
        assert record.output_tokens >= expected["cutoffs"][-1]["content_chunks"]
    if expected["prompt_tokens"] is not None:
        assert (record.input_tokens, record.input_basis) == (expected["prompt_tokens"], Basis.REPORTED)
    if record.basis is Basis.REPORTED:
        assert record.cached_input_tokens == expected["cached_tokens"]
        assert record.reasoning_tokens == expected["reasoning_tokens"]


CUTS = [
    (name, index) for name in CASES for index, cut in enumerate(case(name).get("cutoffs", ())) if cut["byte_offset"]
]


@pytest.mark.parametrize(("name", "index"), CUTS, ids=[f"{name}-{index}" for name, index in CUTS])
async def test_hang_up_at_each_cut_off_bills_the_expected_count(start: StartProxy, name: str, index: int) -> None:
    """The client leaves when the bytes up to the cut-off have passed; the upstream sends nothing more."""
    expected = case(name)
    cut = expected["cutoffs"][index]
    status, headers, body = answer_of(name)

    async def replay_until_cut(exchange: UpstreamExchange) -> None:
        await exchange.start(status, headers)
        await exchange.send(body[: cut["byte_offset"]])
        await exchange.hung_up()
        exchange.close()

    proxy, _ = await start(replay_until_cut, path_prefixes=["/v1", "/v1/llm"], limits={"max_event": "2M"})
    request = expected["request"]
    ask = {"messages": [], **request["body"]}
    if ask.get("stream"):
        ask["stream_options"] = {**ask.get("stream_options", {}), "include_usage": True}
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", request["path"], ask, key=KEY)
        while len(response.received) < cut["byte_offset"]:
            assert await response.next_piece() is not None
        client.close_fin()
        record = await proxy.record()
    if cut["completion_tokens"] is not None:
        assert record.output_tokens == cut["completion_tokens"]
    elif record.basis is not Basis.REPORTED:  # a usage on the finish event may already be on the wire
        assert record.output_tokens == cut["content_chunks"]
        assert record.basis is (Basis.COUNTED if cut["content_chunks"] else Basis.NONE)
