"""What `doctor` asks the servers behind the proxy: the upstreams and the store. Reads only; nothing is billed."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable
from email.utils import parsedate_to_datetime

import aiohttp
import msgspec

from meter_proxy.cli import machine
from meter_proxy.cli.findings import Finding, bad, good, note
from meter_proxy.config.schema import Config, Upstream
from meter_proxy.errors import MeterProxyError
from meter_proxy.ledger.embedded import EmbeddedStore
from meter_proxy.ledger.store import open_store

ANSWER_S = 5.0
SLOW_STORE_S = 0.02  # a grant near a limit waits for one round trip; the proxy gives up after 250 ms
PINGS = 5

# Identity endpoints: path, a member of the answer, what it is. As gateway/identity.py asks them, and Ollama's.
_SIGNS = (
    ("/version", "version", "vLLM or TensorRT-LLM"),
    ("/get_model_info", "model_path", "SGLang"),
    ("/props", "default_generation_settings", "llama.cpp"),
    ("/api/version", "version", "Ollama"),
)


async def upstreams(config: Config) -> list[Finding]:
    """Ask every upstream for its models, at once."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        found = await asyncio.gather(*(_upstream(session, *item) for item in config.upstreams.items()))
    return [finding for findings in found for finding in findings]


async def _upstream(session: aiohttp.ClientSession, name: str, upstream: Upstream) -> list[Finding]:
    about = f"upstream {name}"
    headers = {"Authorization": f"Bearer {upstream.api_key.get_secret_value()}"} if upstream.api_key else {}
    url = f"{upstream.base_url}/models"
    began_at, began = time.time(), time.monotonic()
    try:
        async with session.get(url, headers=headers, allow_redirects=False) as answer:
            took_s = time.monotonic() - began
            await answer.content.read(1)
    except TimeoutError:
        advice = f"is {upstream.base_url} right, and does a firewall let this machine through?"
        return [bad(about, f"no answer within {ANSWER_S:g} s", advice)]
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        return [
            bad(about, f"cannot be reached: {_reason(exc)}", f"start it, or correct its base_url {upstream.base_url}")
        ]
    findings = [_judged(about, answer.status, took_s, url, bool(headers))]
    if answer.status < 300:
        kind = await _kind(session, upstream, headers)
        findings[0] = good(about, f"{findings[0].message}; it is {kind}")
    if date := answer.headers.get("Date"):
        with contextlib.suppress(ValueError):
            there = parsedate_to_datetime(date).timestamp() + 0.5  # its fraction is cut off
            findings.append(machine.clock(f"clock of {about}", began_at + took_s / 2 - there, took_s / 2 + 0.5))
    return findings


def _judged(about: str, status: int, took_s: float, url: str, sent_key: bool) -> Finding:
    took = f"{took_s * 1000:,.0f} ms"
    if status in (401, 403):
        advice = "correct its api_key" if sent_key else "it wants a key: set api_key or api_key_file"
        return bad(about, f"refuses us with {status}", advice)
    if status in (301, 302, 307, 308):
        return bad(about, f"redirects GET {url}", "name the place it points to in base_url: redirects are not followed")
    if status == 404:
        return note(about, f"answers, but has no {url}", "if calls fail with 404 too, base_url lacks its /v1")
    if status >= 500:
        return bad(about, f"answers GET {url} with {status}", "look at its log: it is up, but not well")
    if status >= 400:
        return note(about, f"answers GET {url} with {status}")
    return good(about, f"answers in {took}")


async def _kind(session: aiohttp.ClientSession, upstream: Upstream, headers: dict[str, str]) -> str:
    root = upstream.base_url.removesuffix("/v1")
    for path, member, kind in _SIGNS:
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError):
            async with session.get(root + path, headers=headers, allow_redirects=False) as answer:
                document = msgspec.json.decode(await answer.read()) if answer.status == 200 else None
            if isinstance(document, dict) and member in document:
                counts = "" if kind == "Ollama" else ", which counts while it streams"
                return f"{kind}{counts}"
    return "no server that tells its kind: hang-ups are counted by events"


async def store(config: Config) -> list[Finding]:
    """Check the store as serve does, and its speed and clock."""
    if config.redis.url == "embedded":
        embedded = EmbeddedStore(config.state_dir / "store")
        return await _store("store (embedded)", embedded.running_url, is_embedded=True)
    return await _store(f"store {config.redis.shown_url}", config.redis.url, is_embedded=False)


async def _store(about: str, url: str, *, is_embedded: bool) -> list[Finding]:
    try:
        store = open_store(url)
    except MeterProxyError as exc:
        return [bad(about, str(exc), "correct redis.url")]
    try:
        await store.check()
        times = [await _timed(store.now()) for _ in range(PINGS)]
        version = await store.version()
    except MeterProxyError as exc:
        if is_embedded and str(exc).startswith("cannot reach"):
            return [note(about, "does not run: serve starts it, and it ends with serve")]
        return [bad(about, str(exc), "limited keys do what `when_down` says until this is mended")]
    finally:
        await store.close()
    ahead_s, took_s = min(times, key=lambda pair: pair[1])
    found = f"{version}, maxmemory-policy noeviction, {took_s * 1000:.1f} ms per round trip"
    if took_s > SLOW_STORE_S:
        advice = "near a limit every request waits for it: place it closer"
        return [note(about, found, advice), machine.clock("clock of the store", ahead_s, took_s / 2)]
    return [good(about, found), machine.clock("clock of the store", ahead_s, took_s / 2)]


async def _timed(asking: Awaitable[float]) -> tuple[float, float]:
    """How far this clock is ahead of the one asked for, and how long the answer took."""
    began_at, began = time.time(), time.monotonic()
    there = await asking
    took_s = time.monotonic() - began
    return began_at + took_s / 2 - there, took_s


def _reason(exc: BaseException) -> str:
    system = exc.os_error if isinstance(exc, aiohttp.ClientConnectorError) else exc
    if isinstance(system, OSError) and system.errno is not None and system.errno > 0:
        return os.strerror(system.errno)
    return str(exc) or type(exc).__name__
