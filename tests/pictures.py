"""The pictures of the documentation, from a real run: `python -m tests.pictures`.

A proxy with a few keys and quotas stands in front of the mock backend; its clients stream, and some hang up. Then
Chromium takes the usage page as it is at that moment, light and dark, and rich a frame of `meter-proxy top`, into
`deploy/docs/`. (The picture of the benchmark is drawn by `make bench ARGS="--svg deploy/docs/bench.svg"`.)
"""

import asyncio
import contextlib
import os
import re
import tempfile
import time
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, RateLimitError
from PIL import Image
from playwright.async_api import expect
from rich.console import Console

from meter_proxy.cli.admin_client import AdminClient
from meter_proxy.cli.frame import frame
from meter_proxy.cli.snapshot import look
from meter_proxy.tasks import spawn
from tests.support.browser import DESKTOP, Scheme, Visit, browsing
from tests.support.config import basic_config, write_config
from tests.support.proc import REPOSITORY, ProxyProcess, running_mock_backend, running_proxy

DOCS = REPOSITORY / "deploy" / "docs"
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
MAX_BYTES = 200_000
COLOURS = 256  # a page has few: a third of the bytes, and nobody sees it
TOKENS_PER_S = "40"
TOP_COLUMNS, TOP_LINES = 100, 28
MODELS = {
    "gpt-4o": {"upstream": "local", "name": "mock-small", "price": {"input": 2.5, "output": 10}},
    "qwen2.5-72b": {"upstream": "local", "name": "mock-small", "price": {"input": 0.4, "output": 1.2}},
}
# Who asks, for which model, how many streams of how many tokens; and the rule that limits it.
CALLERS: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "alice": ("gpt-4o", 9, 60, {"tokens": 1_000, "per": "day"}),
    "search": ("qwen2.5-72b", 8, 150, {"output_tokens": 4_000, "per": "hour", "warn_at": "25%"}),
    "support-bot": ("gpt-4o", 6, 90, {"name": "budget", "cost_usd": 0.01, "per": "month"}),
    "ci": ("qwen2.5-72b", 3, 40, {"requests": 3, "per": "day"}),
    "batch": ("qwen2.5-72b", 5, 400, {"tokens": "50k", "per": "week"}),
}
STILL_OPEN = ("search", "batch", "batch", "support-bot")  # streams that run while the pictures are taken


def main() -> None:
    """Write them all; says what it wrote."""
    asyncio.run(_main())


async def _main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with running_mock_backend("--rate", TOKENS_PER_S) as backend:
            keys = [
                {"id": name, "secret": {"env": _variable(name)}, "quotas": [rule]}
                for name, (*_, rule) in CALLERS.items()
            ]
            config = basic_config(backend, Path(directory), workers=2, models=MODELS, keys=keys)
            secrets = {_variable(name): f"sk-{name}" for name in CALLERS}
            async with running_proxy(write_config(Path(directory), config), env=secrets) as proxy:
                await asyncio.gather(*(_use(proxy, name) for name in CALLERS))
                open_streams = [spawn(_stream(proxy, name, CALLERS[name][0], 4_000), name=name) for name in STILL_OPEN]
                try:
                    await _take(proxy)
                    await asyncio.to_thread(_draw_top, proxy)
                finally:
                    for stream in open_streams:
                        stream.cancel()
                    await asyncio.gather(*open_streams, return_exceptions=True)


async def _use(proxy: ProxyProcess, name: str) -> None:
    model, streams, tokens, _ = CALLERS[name]
    for number in range(streams):
        hang_up_after = tokens // 3 if number % 4 == 2 else None
        with contextlib.suppress(RateLimitError):
            await _stream(proxy, name, model, tokens, hang_up_after)


async def _stream(proxy: ProxyProcess, name: str, model: str, tokens: int, hang_up_after: int | None = None) -> None:
    async with AsyncOpenAI(api_key=f"sk-{name}", base_url=proxy.base_url, max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=model,
            max_tokens=tokens,
            stream=True,
            messages=[{"role": "user", "content": "Tell me something about metering, please. " * 5}],
        )
        async with stream:
            events = 0
            async for _ in stream:
                events += 1
                if events == hang_up_after:
                    return


async def _take(proxy: ProxyProcess) -> None:
    async with browsing() as browser:
        for scheme in SCHEMES:
            visit = await Visit.to(browser, proxy.admin_url, DESKTOP, scheme)
            for part in ("by-key", "quotas", "live", "records"):
                await expect(visit.page.locator(f"#{part} .row").first).to_be_visible(timeout=15_000)
            await asyncio.sleep(3)  # a second round of everything, so that paces are known
            path = DOCS / f"usage-page-{scheme}.png"
            taken = Image.open(BytesIO(await visit.page.screenshot(full_page=True)))
            taken.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
            size = path.stat().st_size
            if size >= MAX_BYTES:
                raise SystemExit(f"{os.path.relpath(path)} is too large for a README: {size:,} bytes")
            print(f"{os.path.relpath(path)}: {size:,} bytes")


def _draw_top(proxy: ProxyProcess) -> None:
    """What `top` shows after its first interval, in a terminal of 100 columns."""
    client = AdminClient(proxy.admin_url)
    before = look(client, time.monotonic())
    time.sleep(1)
    now = look(client, time.monotonic())
    console = Console(record=True, width=TOP_COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(
        frame(now, before, url=client.url, width=TOP_COLUMNS, height=TOP_LINES, now=time.time(), note=""), no_wrap=True
    )
    path = DOCS / "top.svg"
    # The reader's own font: a picture fetches nothing from elsewhere.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="meter-proxy top"), flags=re.DOTALL)
    path.write_text(drawn)
    print(f"{os.path.relpath(path)}: {path.stat().st_size:,} bytes")


def _variable(name: str) -> str:
    return f"{name.upper().replace('-', '_')}_KEY"


if __name__ == "__main__":
    main()
