"""The API page that this project started from: its client code, in each of its languages, does what it promises.

"Closing the connection cancels; only generated tokens are billed."
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from openai import OpenAI
from playwright.async_api import Browser, Page

from tests.e2e.conftest import Service
from tests.support.inprocess import serving

HERE = Path(__file__).parent

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser's


async def run(*command: str, service: Service, within_s: float = 60) -> str:
    """Run a client program to its end; its stdout."""
    process = await asyncio.create_subprocess_exec(
        *command, env=service.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(within_s):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def node(example: str, service: Service) -> Any:
    """Run one example of node/page.mjs; the JSON that it prints."""
    return json.loads(await run("node", str(HERE / "node" / "page.mjs"), example, service=service))


async def test_python_example(service: Service) -> None:
    """`chunk.choices[0].delta.content` of every chunk, as the page has it."""

    def example() -> str:
        client = OpenAI(api_key=service.key, base_url=service.base_url)
        stream = client.chat.completions.create(
            model="gpt-4", messages=[{"role": "user", "content": "写一首诗"}], stream=True
        )
        text = ""
        for chunk in stream:
            if chunk.choices[0].delta.content:
                text += chunk.choices[0].delta.content
        return text

    assert await asyncio.to_thread(example)
    assert (await service.record(model="gpt-4"))["basis"] == "reported"


async def test_curl_example(service: Service) -> None:
    """The page's path, headers and body; `--compressed` as its advice on gzip."""
    body = '{"model": "gpt-4", "messages": [{"role": "user", "content": "写一首诗"}], "stream": true, "max_tokens": 8}'
    out = await run(
        "curl", "-sS", "--compressed", f"{service.url}/v1/llm/chat/completions",
        "-H", f"Authorization: Bearer {service.key}", "-H", "Content-Type: application/json", "-d", body,
        service=service,
    )  # fmt: skip
    assert out.endswith("data: [DONE]\n\n")
    assert '"usage":{' not in out
    assert (await service.record(model="gpt-4"))["output_tokens"] == 8


async def test_node_stream_example(service: Service) -> None:
    """The SDK for Node, unmodified."""
    assert (await node("stream", service))["text"]
    assert (await service.record(model="gpt-4"))["output_tokens"] == 10


async def test_node_abort_cancels_and_bills_only_what_was_generated(service: Service) -> None:
    """AbortController, on the page's own path."""
    assert await node("abort", service) == {"status": 200, "first": "data: "}
    record = await service.record(model="auto")
    assert record["outcome"] == "client_disconnected"
    assert record["output_tokens"] < 100


async def test_node_gzip_header_changes_nothing(service: Service) -> None:
    """Events still come one by one, readable, and the bill is right."""
    assert await node("gzip", service) == {"status": 200, "done": True}
    assert (await service.record(model="auto-fast"))["output_tokens"] == 6


async def test_node_retry_after_an_error_of_the_upstream(service: Service) -> None:
    """The failed attempt costs nothing, the second one what it generated."""
    result = await node("retry", service)
    assert result["attempts"] == 2
    assert result["text"]
    failed = await service.record(model="gpt-4", outcome="upstream_failed")
    assert (failed["output_tokens"], failed["input_tokens"], failed["status"]) == (0, 0, 500)
    assert (await service.record(model="gpt-4", outcome="completed"))["output_tokens"] == 5


async def test_node_sees_a_broken_stream(service: Service) -> None:
    """Never a faked end: the page's `catch` runs."""
    assert await node("broken", service) == {"caught": True}
    assert (await service.record(model="auto"))["outcome"] == "upstream_failed"


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """The page's loop in headless Chromium, served from another origin than the proxy."""

    async def html(request: web.Request) -> web.Response:
        return web.Response(text=(HERE / "page.html").read_text(), content_type="text/html")

    app = web.Application()
    app.router.add_get("/v1", html)
    async with serving(app) as url:
        page = await browser.new_page()
        await page.goto(url)
        yield page


async def test_browser_loop_streams_across_origins(service: Service, page: Page) -> None:
    """Preflight, stream, request id: all readable by the page's script."""
    result = await page.evaluate("([base, key]) => sendMessage(base, key)", [service.url, service.key])
    assert (result["status"], result["errors"]) == (200, [])
    assert result["response"]
    record = await service.record(model="auto")
    assert (record["id"], record["output_tokens"]) == (result["requestId"], 12)
    assert await page.text_content("#response") == result["response"]


async def test_browser_abort_bills_only_what_was_generated(service: Service, page: Page) -> None:
    """AbortController in a browser."""
    result = await page.evaluate("([base, key]) => sendMessage(base, key, {abortAfter: 3})", [service.url, service.key])
    assert result["errors"] == ["AbortError"]
    record = await service.record(model="auto")
    assert record["outcome"] == "client_disconnected"
    assert record["output_tokens"] < 100


async def test_browser_can_read_an_error(service: Service, page: Page) -> None:
    """CORS headers stand on errors too: the script sees the message, not a network failure."""
    result = await page.evaluate("([base, key]) => sendMessage(base, key)", [service.url, "sk-wrong"])
    assert result["status"] == 401
    assert result["error"]["error"]["code"] == "invalid_api_key"
