"""The usage page of a running proxy: what a client has just used is what a browser shows."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from playwright.async_api import Browser, expect

from tests.support.browser import PHONE, Visit
from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
from tests.support.httpraw import RawClient
from tests.support.proc import ProxyProcess, running_mock_backend, running_proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser's

TOKEN = "an-admin-token"
QUOTAS = [{"tokens": 1000, "per": "day"}, {"requests": 4, "per": "month"}]


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[ProxyProcess]:
    """Two workers, one key with two rules, both pages, an admin token."""
    async with running_mock_backend() as backend:
        config = basic_config(
            backend,
            tmp_path,
            workers=2,
            admin_token=TOKEN,
            usage_page=True,
            path_prefixes=["/v1/llm", "/v1"],
            models={"gpt-4o": {"upstream": "local", "name": "mock-small", "price": {"input": 2.5, "output": 10}}},
            keys=[{"id": "alice", "secret": {"env": "ALICE_KEY"}, "quotas": QUOTAS}],
        )
        async with running_proxy(write_config(tmp_path, config), env=ENVIRONMENT) as proxy:
            yield proxy


async def ask(proxy: ProxyProcess, tokens: int) -> None:
    """A stream of so many tokens, to its end."""
    async with AsyncOpenAI(api_key=KEY, base_url=proxy.base_url) as client:
        stream = await client.chat.completions.create(
            model="gpt-4o", max_tokens=tokens, stream=True, messages=[{"role": "user", "content": "Hi"}]
        )
        async for _ in stream:
            pass


async def test_operator_sees_what_was_just_used(browser: Browser, proxy: ProxyProcess) -> None:
    """From the first look on an idle proxy to the record, the totals, the key and its model."""
    visit = await Visit.to(browser, proxy.admin_url)
    page = visit.page
    await page.fill("#credential", TOKEN)
    await page.keyboard.press("Enter")
    example = page.locator("#records .empty code")
    await expect(example).to_contain_text(f"curl -N {proxy.url}/v1/llm/chat/completions")
    await expect(example).to_contain_text('"model": "gpt-4o"')
    await ask(proxy, 7)
    record = page.locator("#records .row").first
    await expect(record).to_contain_text("7 out", timeout=10_000)
    await expect(record).to_contain_text("completed")
    await expect(record).to_contain_text("reported")
    for part, name in (("by-key", "alice"), ("by-model", "gpt-4o")):
        row = page.locator(f"#{part} .row").first
        await expect(row).to_contain_text(name, timeout=15_000)
        await expect(row.locator("td").nth(2)).to_have_text("7")
    await expect(page.locator("#status")).to_contain_text("ready · 2 of 2 workers")
    await expect(page.locator(".tile strong").first).to_contain_text("tokens")
    # Parts that a proxy does not have are told in the page, and by the browser in its console.
    assert [line for line in await visit.complaints() if "404" not in line] == []


async def test_page_of_holders_is_off_unless_switched_on(tmp_path: Path) -> None:
    """No word of it on the public listener."""
    async with running_mock_backend() as backend:
        config = write_config(tmp_path, basic_config(backend, tmp_path))
        async with running_proxy(config, env=ENVIRONMENT) as proxy, await RawClient.connect(proxy.url) as client:
            for path in ("/usage", "/usage/static/page.css"):
                response = await client.request("GET", path)
                assert (response.status, (await response.json())["error"]["code"]) == (404, "unknown_url")


async def test_holder_of_a_key_sees_what_is_left(browser: Browser, proxy: ProxyProcess) -> None:
    """With the key itself, which stays in the tab; nobody else's figures."""
    await ask(proxy, 7)
    visit = await Visit.to(browser, f"{proxy.url}/usage", PHONE, "dark")
    page = visit.page
    assert await visit.complaints() == []
    await page.fill("#credential", "sk-guessed")
    await page.keyboard.press("Enter")
    await expect(page.locator("#sign-in .problem")).to_have_text("That was not accepted.")
    visit.console.clear()  # the 401
    await page.fill("#credential", KEY)
    await page.keyboard.press("Enter")
    await expect(page.locator("#status")).to_have_text("key alice")
    fullest = page.locator("#quotas .row").first
    await expect(fullest).to_contain_text("requests-month")
    await expect(fullest).to_contain_text("1 of 4 requests / month")
    await expect(fullest.locator(".share")).to_have_text("25%")
    await expect(fullest).to_contain_text("resets in")
    await expect(page.locator("#by-model .row").first).to_contain_text("gpt-4o")
    await expect(page.locator("#by-model .row").first.locator("td").nth(2)).to_have_text("7")
    await expect(page.locator("#curl code")).to_contain_text(f"{proxy.url}/v1/llm/chat/completions")
    await ask(proxy, 5)
    await expect(fullest.locator(".share")).to_have_text("50%", timeout=10_000)
    assert await visit.poor_contrast() == []
    assert await visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await visit.shifts() == []
    assert await visit.complaints() == []
    assert list((await visit.session_storage()).values()) == [KEY]
    assert visit.received_bytes < 150_000
