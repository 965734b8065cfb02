"""The usage page in headless Chromium, with a proxy that is as busy as one likes (`busy_admin.py`).

What it shows of a real proxy is for test_usage_page_real.py.
"""

from typing import Any

import pytest
from playwright.async_api import Browser, ViewportSize, expect

from tests.support.browser import DESKTOP, PHONE, Scheme, Visit
from tests.support.busy_admin import BusyAdmin
from tests.support.inprocess import serving
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser's

MAX_BYTES = 150_000
ENDPOINTS = ("/api/live", "/api/records", "/api/quotas", "/api/usage")
ROOT = "/v1"  # `serving` adds it to its URL

FOCUS = """() => {
  const node = document.activeElement;
  const style = getComputedStyle(node.matches(".tile input") ? node.closest(".tile") : node);
  const where = node.closest("section, fieldset, .top, .sign-in");
  return {
    name: node.textContent.trim() || node.id || node.name || node.className,
    part: where?.getAttribute("aria-labelledby") || where?.id || where?.className || node.className,
    outline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0,
    left: node === document.body,
  };
}"""


def page_of(url: str) -> str:
    """Where the page is."""
    return url.removesuffix(ROOT) + "/"


async def all_is_there(busy: BusyAdmin, times: int = 1) -> None:
    """Every part of the page has asked for its data so often."""
    await until(lambda: all(busy.asked.get(path, 0) >= times for path in ENDPOINTS), "the page asks for its data")


@pytest.mark.parametrize("keys", [0, 5, 10_000])
@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")])
async def test_it_is_light_and_readable_and_breaks_no_rule(
    browser: Browser, keys: int, size: ViewportSize, scheme: Scheme
) -> None:
    """No console error, no violation of its policy, AA contrast, no sideways scrolling, < 150 kB."""
    busy = BusyAdmin(keys=keys)
    async with serving(busy.app()) as url:
        visit = await Visit.to(browser, page_of(url), size, scheme)
        await all_is_there(busy)
        await expect(visit.page.locator("#status")).to_contain_text("ready")
        assert await visit.poor_contrast() == []
        assert await visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert await visit.complaints() == []
        assert 40_000 < visit.received_bytes < MAX_BYTES


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
async def test_nothing_moves_while_data_arrives(browser: Browser, size: ViewportSize) -> None:
    """From the first figure on, through four rounds of other figures: no layout shift at all."""
    busy = BusyAdmin(keys=5)
    async with serving(busy.app()) as url:
        visit = await Visit.to(browser, page_of(url), size)
        await expect(visit.page.locator("#records .row").first).to_be_visible()
        before = await visit.page.inner_text("#content")
        asked = busy.asked["/api/live"]
        await until(lambda: busy.asked["/api/live"] >= asked + 4, "four rounds")
        assert await visit.page.inner_text("#content") != before
        assert await visit.shifts() == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
async def test_what_is_painted_first_stands_where_it_stays(browser: Browser, size: ViewportSize) -> None:
    """A browser that is busy paints the beginning of the head before it has read the rest."""
    async with serving(BusyAdmin(keys=5).app()) as url:
        visit = await Visit.to(browser, page_of(url), size)
        top = "() => document.querySelector('.top h1').getBoundingClientRect().top"
        whole = await visit.page.evaluate(top)
        await visit.page.evaluate("() => document.querySelectorAll('.top > :not(h1)').forEach((node) => node.remove())")
        assert await visit.page.evaluate(top) == whole


async def test_a_layout_shift_would_be_seen(browser: Browser) -> None:
    """The measurement itself: a line that grows in the head moves all that is below."""
    async with serving(BusyAdmin(keys=5).app()) as url:
        visit = await Visit.to(browser, page_of(url))
        await expect(visit.page.locator("#records .row").first).to_be_visible()
        await visit.page.evaluate("document.querySelector('.top').style.height = '9rem'")
        await until_async(visit.shifts, "the shift")


async def test_poor_contrast_would_be_seen(browser: Browser) -> None:
    """The measurement itself, again."""
    async with serving(BusyAdmin(keys=5).app()) as url:
        visit = await Visit.to(browser, page_of(url))
        await expect(visit.page.locator("#status")).to_contain_text("ready")
        await visit.page.evaluate("document.documentElement.style.setProperty('--muted', '#9a9a9a')")
        assert await visit.poor_contrast()


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
async def test_tab_goes_through_everything_in_the_order_of_reading(browser: Browser, size: ViewportSize) -> None:
    """Each control once, each with a visible focus, and out again at the end."""
    async with serving(BusyAdmin(keys=5).app()) as url:
        visit = await Visit.to(browser, page_of(url), size)
        await expect(visit.page.locator("#quotas .row").first).to_be_visible()
        await expect(visit.page.locator("#by-model .row").first).to_be_visible()
        await visit.page.evaluate("document.documentElement.dataset.before = document.activeElement.tagName")
        steps: list[dict[str, Any]] = []
        for _ in range(120):
            await visit.page.keyboard.press("Tab")
            step = await visit.page.evaluate(FOCUS)
            if step["left"]:
                break
            steps.append(step)
    assert step["left"], "the end is never reached"
    parts = list(dict.fromkeys(step["part"] for step in steps))
    assert parts == [
        "skip", "top", "totals", "days-title", "quotas-title", "by-key-title", "by-model-title", "live-title",
        "records-title", "curl-title", "python-title",
    ]  # fmt: skip
    assert [step["part"] for step in steps] == sorted((step["part"] for step in steps), key=parts.index)
    assert [step for step in steps if not step["outline"]] == []


async def test_days_are_read_out_with_the_arrow_keys(browser: Browser) -> None:
    """The chart without a mouse: one day a step, to both ends."""
    async with serving(BusyAdmin(keys=5).app()) as url:
        visit = await Visit.to(browser, page_of(url))
        read, plot = visit.page.locator(".read"), visit.page.locator(".plot")
        await expect(read).to_contain_text("requests")
        today = await read.inner_text()
        await plot.focus()
        await visit.page.keyboard.press("ArrowLeft")
        await expect(read).not_to_have_text(today)
        await visit.page.keyboard.press("Home")
        first = await read.inner_text()
        await visit.page.keyboard.press("ArrowLeft")
        assert await read.inner_text() == first
        await visit.page.keyboard.press("ArrowRight")
        await expect(read).not_to_have_text(first)


async def test_without_any_exchange_it_says_what_to_try(browser: Browser) -> None:
    """A curl with this proxy's address; no empty tables."""
    async with serving(BusyAdmin(keys=0).app()) as url:
        visit = await Visit.to(browser, page_of(url))
        await expect(visit.page.locator("#records .empty")).to_contain_text("No exchange yet")
        await expect(visit.page.locator("#records .empty code")).to_contain_text(
            "curl -N http://127.0.0.1:8080/v1/chat/"
        )
        for part, text in (
            ("quotas", "No rule limits anybody."),
            ("live", "No stream is open."),
            ("days", "No tokens"),
        ):
            await expect(visit.page.locator(f"#{part} .empty")).to_contain_text(text)


async def test_a_part_that_is_missing_is_not_available_and_the_rest_works(browser: Browser) -> None:
    """Such as on an older proxy."""
    busy = BusyAdmin(keys=5, without={"quotas"})
    async with serving(busy.app()) as url:
        visit = await Visit.to(browser, page_of(url))
        await expect(visit.page.locator("#quotas .empty")).to_contain_text("Not available")
        await expect(visit.page.locator("#records .row").first).to_be_visible()


async def test_a_proxy_that_went_away_is_told_and_what_is_shown_stays(browser: Browser) -> None:
    """No blank page, no endless spinner."""
    async with serving(BusyAdmin(keys=5).app()) as url:
        visit = await Visit.to(browser, page_of(url))
        await expect(visit.page.locator("#by-key .row").first).to_be_visible()
    await expect(visit.page.locator("#status")).to_contain_text("no answer", timeout=10_000)
    await expect(visit.page.locator("#by-key .row").first).to_be_visible()


async def test_one_key_of_ten_thousand(browser: Browser) -> None:
    """A click on its name, or typing it, leaves only what is its own; quotas can be searched and paged."""
    async with serving(BusyAdmin(keys=10_000).app()) as url:
        visit = await Visit.to(browser, page_of(url))
        page = visit.page
        await expect(page.locator("#quotas .where")).to_have_text("1–5 of 30,000")
        await page.locator("#quotas button", has_text="Next").click()
        await expect(page.locator("#quotas .where")).to_have_text("6–10 of 30,000")
        await page.fill("#quota-search", "ci-09")
        await expect(page.locator("#quotas .where")).to_have_text("1–5 of 600")
        await page.fill("#quota-search", "")
        await page.fill("#only", "ci-09997")
        await expect(page.locator("#by-key .row:not(.blank)")).to_have_count(1)
        await expect(page.locator("#by-key .row .name").first).to_have_text("ci-09997")
        await expect(page.locator("#records .row .name").first).to_have_text("ci-09997")
        await page.fill("#only", "nobody")
        await expect(page.locator("#records .empty")).to_have_text("No exchange of nobody yet.")
        await page.fill("#only", "")
        await page.locator("#records .row .name").first.click()
        await expect(page.locator("#only")).not_to_have_value("")


async def test_periods_change_the_tables(browser: Browser) -> None:
    """With the arrow keys, too."""
    async with serving(BusyAdmin(keys=5).app()) as url:
        visit = await Visit.to(browser, page_of(url))
        await expect(visit.page.locator("[data-period]").first).to_have_text("7 days")
        await visit.page.locator(".tile input").nth(1).focus()
        await visit.page.keyboard.press("ArrowRight")
        await expect(visit.page.locator("[data-period]").first).to_have_text("30 days")


async def test_token_is_asked_for_and_kept_in_the_tab_only(browser: Browser) -> None:
    """By keyboard; a wrong one is told; signing out forgets it."""
    busy = BusyAdmin(keys=5, token="let-me-in")
    async with serving(busy.app()) as url:
        visit = await Visit.to(browser, page_of(url))
        page = visit.page
        await expect(page.locator("#credential")).to_be_focused()
        assert await visit.complaints() == []
        assert await visit.poor_contrast() == []
        await page.keyboard.type("guess")
        await page.keyboard.press("Enter")
        await expect(page.locator(".problem").first).to_have_text("That was not accepted.")
        await page.keyboard.type("let-me-in")
        await page.keyboard.press("Enter")
        await expect(page.locator("#records .row").first).to_be_visible()
        assert list((await visit.session_storage()).values()) == ["let-me-in"]
        assert await page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        await page.click("#sign-out")
        await expect(page.locator("#credential")).to_be_visible()
        assert await visit.session_storage() == {}


async def test_examples_can_be_copied(browser: Browser) -> None:
    """As they stand: whole, with this proxy's address."""
    async with serving(BusyAdmin(keys=5).app()) as url:
        visit = await Visit.to(browser, page_of(url))
        await visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await visit.page.locator("#python button", has_text="Copy").click()
        await expect(visit.page.locator("#python [role=status]")).to_have_text("Copied")
        copied = await visit.page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("from openai import OpenAI\n")
    assert 'base_url="http://127.0.0.1:8080/v1"' in copied
    compile(copied, "example", "exec")


FIGURES = {
    "compact(9999)": "9,999",
    "compact(1234567)": "1.23M",
    "dollars(0)": "$0",
    "dollars(0.0000045)": "$0.0000045",
    "dollars(0.00531)": "$0.0053",
    "dollars(0.0142)": "$0.0142",
    "dollars(0.5)": "$0.50",
    "dollars(4.2)": "$4.20",
    "dollars(1234.5)": "$1,234.50",
    "countdown(-5)": "0 s",
    "countdown(41_200)": "42 s",
    "countdown(3_900_000)": "1 h 5 min",
    "span(850)": "850 ms",
    "unitPer('concurrent', null)": "at once",
    "unitPer('cost_usd', 'month')": "/ month",
    "unitPer('tokens', 'day')": "tokens / day",
    "exactDollars(5_310_001)": "$0.005310001",
    "exactDollars(0)": "$0",
    "unitPer('tokens', 'total')": "tokens in total",
    "utcDay(Date.parse('2026-03-01T00:30:00Z'), 1)": "2026-02-28",
}


async def test_figures_are_written_for_people(browser: Browser) -> None:
    """No figure looks like another one, none is rounded to nothing."""
    async with serving(BusyAdmin(keys=0).app()) as url:
        visit = await Visit.to(browser, page_of(url) + "about.json")  # a document without a policy, of the same origin
        script = """([path, calls]) => import(path).then((all) => calls.map((call) =>
          new Function(...Object.keys(all), `return ${call}`)(...Object.values(all))))"""
        written = await visit.page.evaluate(script, [page_of(url) + "static/format.js", list(FIGURES)])
    assert dict(zip(FIGURES, written, strict=True)) == FIGURES
