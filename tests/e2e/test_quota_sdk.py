"""Quotas and OpenAI's own SDK: what it retries, what it does not, and that its loops end where a stream is cut."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support import answers
from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
from tests.support.proc import ProxyProcess, running_proxy
from tests.support.upstream import Script, ScriptedUpstream, UpstreamExchange

ASK: Any = {"model": "m", "messages": [{"role": "user", "content": "12345678"}]}


@asynccontextmanager
async def limited_proxy(
    directory: Path, script: Script, *quotas: dict[str, Any], **members: Any
) -> AsyncIterator[tuple[ProxyProcess, ScriptedUpstream]]:
    async with ScriptedUpstream(script) as upstream:
        keys = [{"id": "alice", "secret": {"env": "ALICE_KEY"}, "quotas": list(quotas)}]
        ports = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0"}
        upstreams = {"local": {"base_url": upstream.url, "running_usage": "off"}}
        config = basic_config(upstream.url, directory, **{**ports, "keys": keys, "upstreams": upstreams, **members})
        async with running_proxy(write_config(directory, config), env=ENVIRONMENT) as proxy:
            yield proxy, upstream


def client_of(proxy: ProxyProcess, retries: int = 2) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=proxy.base_url, api_key=KEY, max_retries=retries)


async def plain(exchange: UpstreamExchange) -> None:
    await exchange.answer(answers.chat_json(output_tokens=3))


def stream_of(*events: bytes) -> Script:
    async def script(exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        await exchange.send_event(*events)
        await exchange.end()

    return script


async def test_a_pace_is_retried_and_passes(tmp_path: Path) -> None:
    """One request a second: the SDK waits as it is told, and gets its answer; the upstream sees each once."""
    async with (
        limited_proxy(tmp_path, plain, {"requests": 1, "per": "second"}) as (proxy, upstream),
        client_of(proxy) as client,
    ):
        for _ in range(3):
            await client.chat.completions.create(**ASK)
        assert len(upstream.posts) == 3


async def test_a_budget_is_not_retried(tmp_path: Path) -> None:
    """One 429 is enough: `x-should-retry: false`."""
    async with (
        limited_proxy(tmp_path, plain, {"requests": 1, "per": "day"}) as (proxy, upstream),
        client_of(proxy, retries=5) as client,
    ):
        await client.chat.completions.create(**ASK)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(**ASK)
        assert refused.value.code == "insufficient_quota"
        assert refused.value.response.request.headers["x-stainless-retry-count"] == "0"
        assert len(upstream.posts) == 1


async def test_a_cut_stream_ends_the_loop(tmp_path: Path) -> None:
    events = answers.chat_stream(*"abcdefgh", output_tokens=8)
    async with (
        limited_proxy(tmp_path, stream_of(*events), {"tokens": 5, "per": "day"}) as (proxy, _),
        client_of(proxy) as client,
    ):
        text, reasons = "", []
        async for chunk in await client.chat.completions.create(**ASK, stream=True):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reasons.append(choice.finish_reason)
        assert text == "abc"
        assert [reason for reason in reasons if reason] == ["length"]


async def test_a_cut_tool_call_ends_the_helpers_loop(tmp_path: Path) -> None:
    """`.stream()` accumulates: an unfinished tool call ends with `length`, n = 2 each."""

    def call(index: int, arguments: str) -> bytes:
        function = {"name": "f", "arguments": arguments}
        delta = {"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": function}]}
        return answers.event({
            "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": index, "delta": delta, "finish_reason": None}],
        })  # fmt: skip

    events = [call(number % 2, '{"a"') for number in range(8)]
    async with (
        limited_proxy(tmp_path, stream_of(*events), {"output_tokens": 4, "per": "day"}) as (proxy, _),
        client_of(proxy) as client,
    ):
        reasons: dict[int, str] = {}
        async for chunk in await client.chat.completions.create(**ASK, n=2, stream=True):
            reasons |= {choice.index: choice.finish_reason for choice in chunk.choices if choice.finish_reason}
        assert reasons == {0: "length", 1: "length"}


async def test_a_cut_completion_ends_the_loop(tmp_path: Path) -> None:
    def text(word: str) -> bytes:
        return answers.event({
            "id": "c", "object": "text_completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "text": word, "finish_reason": None, "logprobs": None}],
        })  # fmt: skip

    async with (
        limited_proxy(tmp_path, stream_of(*map(text, "abcdef")), {"output_tokens": 2, "per": "day"}) as (proxy, _),
        client_of(proxy) as client,
    ):
        chunks = [chunk async for chunk in await client.completions.create(model="m", prompt="x", stream=True)]
        assert "".join(chunk.choices[0].text for chunk in chunks) == "ab"
        assert chunks[-1].choices[0].finish_reason == "length"


async def test_a_stream_that_ends_with_an_error_raises(tmp_path: Path) -> None:
    events = answers.chat_stream(*"abcdefgh", output_tokens=8)
    rule = {"tokens": 5, "per": "day", "when_exhausted": "error"}
    async with (
        limited_proxy(tmp_path, stream_of(*events), rule) as (proxy, _),
        client_of(proxy) as client,
    ):
        with pytest.raises(openai.APIError, match="used up"):
            async for _ in await client.chat.completions.create(**ASK, stream=True):
                pass
