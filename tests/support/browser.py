"""Headless Chromium, and what an ordinary visitor would not see: errors, shifts of the layout, bytes.

async with browsing() as browser:
    visit = await Visit.to(browser, url, PHONE)
    ...
    assert visit.complaints == []
"""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeAlias, cast

from playwright.async_api import Browser, Page, ViewportSize, async_playwright

CHROMIUM = "/usr/bin/chromium"
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
Scheme: TypeAlias = Literal["light", "dark"]

# Runs before the page's own scripts. What it calls counts as a debugger's, so the page's policy does not touch it.
_WATCH = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    const nodes = entry.sources.map(({ node }) => node?.parentElement?.outerHTML.slice(0, 200) ?? "");
    window.shifts.push({ value: entry.value, at: entry.startTime, nodes });
  }
}).observe({ type: "layout-shift", buffered: true });
window.violations = [];
addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""

# Of each visible text: its contrast with what is behind it, as WCAG 2 computes it, where that is less than AA wants.
_POOR_CONTRAST = """
() => {
  const parse = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const over = (top, below) => top.rgb.map((channel, i) => channel * top.a + below[i] * (1 - top.a));
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    const colour = parse(getComputedStyle(node).backgroundColor);
    if (colour.a === 1) return colour.rgb;
    return over(colour, node.parentElement ? behind(node.parentElement) : [255, 255, 255]);
  };
  const poor = [];
  let looked = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const style = getComputedStyle(node);
    const isSeen = walker.currentNode.data.trim() && node.checkVisibility({ visibilityProperty: true });
    if (!isSeen || node.matches("button:disabled, script, noscript")) continue;
    looked += 1;
    const below = behind(node);
    const ink = over(parse(style.color), below);
    const [high, low] = [light(ink), light(below)].sort((one, other) => other - one);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < (isLarge ? 3 : 4.5)) poor.push(`${ratio.toFixed(2)} ${walker.currentNode.data.trim()}`);
  }
  return { looked, poor };
}
"""


@contextlib.asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """One browser, closed at the end of the block."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Visit:
    """One tab. `console`: what Chromium complained about; `received_bytes`: headers and bodies, as transferred."""

    page: Page
    console: list[str] = field(default_factory=list)
    received_bytes: int = 0

    @classmethod
    async def to(cls, browser: Browser, url: str, size: ViewportSize = DESKTOP, scheme: Scheme = "light") -> Self:
        """Open `url` in a fresh profile, and watch from the first byte on."""
        context = await browser.new_context(viewport=size, color_scheme=scheme, timezone_id="UTC", locale="en-US")
        page = await context.new_page()
        visit = cls(page)
        page.on("console", lambda message: visit.console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: visit.console.append(f"uncaught: {error}"))
        session = await context.new_cdp_session(page)
        await session.send("Network.enable")

        def count(event: dict[str, Any]) -> None:
            visit.received_bytes += int(event["encodedDataLength"])

        session.on("Network.loadingFinished", count)
        await page.add_init_script(_WATCH)
        await page.goto(url)
        return visit

    async def complaints(self) -> list[str]:
        """Whatever the console shows, and every violation of the page's security policy."""
        return [*self.console, *await self.page.evaluate("window.violations")]

    async def shifts(self) -> list[dict[str, Any]]:
        """Each shift of the layout so far: by how much, when (ms), and of what."""
        return cast(list[dict[str, Any]], await self.page.evaluate("window.shifts"))

    async def poor_contrast(self) -> list[str]:
        """Texts that are hard to read. AssertionError where there is no text to look at."""
        seen = await self.page.evaluate(_POOR_CONTRAST)
        assert seen["looked"] >= 5, "hardly any text to look at"
        return cast(list[str], seen["poor"])

    async def session_storage(self) -> dict[str, str]:
        """What the page keeps in this tab."""
        return cast(dict[str, str], json.loads(await self.page.evaluate("JSON.stringify(sessionStorage)")))
