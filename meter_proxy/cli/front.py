"""Does anything between the clients and us hold a stream back? `doctor --url` sends one and looks at its pace.

The same request goes to the upstream directly first: only a stream that comes in pieces there, and in a lump through
the public address, was buffered on its way. Both are real calls; the one through the proxy is billed to the key.
"""

import itertools
import time
from dataclasses import dataclass

import aiohttp

from meter_proxy.cli.findings import Finding, bad, good, note
from meter_proxy.config.schema import Config

ABOUT = "buffering in front"
TOTAL_S = 60.0
MAX_TOKENS = 64
PROMPT = "Count from 1 to 40, separated by blanks."
BURST_GAP_S = 0.005  # what comes closer together came together
ENOUGH_BURSTS = 6  # fewer from the upstream itself, and nothing can be told
ADVICE = (
    "switch buffering off there: nginx `proxy_buffering off`, and no gzip for text/event-stream; "
    "HAProxy `no option http-buffer-request`; Traefik and Caddy: flush at once (`flush_interval -1`)"
)


@dataclass(frozen=True)
class Pace:
    """How a stream arrived: its reads in bursts, and how long it took from the first to the last."""

    bursts: int
    spread_s: float
    encoding: str


class NoStream(Exception):
    """There was no stream to look at. `str()` says why."""


async def in_front(config: Config, url: str, key: str, model: str | None) -> Finding:
    """Compare a stream through the public `url` (its base URL) with one from the upstream."""
    asked = model or next((name for name in config.models if "*" not in name), None)
    if asked is None:
        return note(ABOUT, "not looked at: every name passes through", "say which model to ask: --model NAME")
    entry = config.models.get(asked) or config.models.get("*")
    if entry is None:
        return note(ABOUT, f"not looked at: {asked} is none of the models", "say --model NAME")
    upstream = config.upstreams[entry.upstreams[0]]
    credential = upstream.api_key.get_secret_value() if upstream.api_key else ""
    try:
        direct = await _pace(upstream.base_url, credential, entry.name or asked)
    except NoStream as exc:
        return note(ABOUT, f"not looked at: the upstream gave no stream ({exc})", "see the upstream's own finding")
    try:
        through = await _pace(url.rstrip("/"), key, asked)
    except NoStream as exc:
        return bad(ABOUT, f"no stream through {url}: {exc}", "is it the public base URL, with /v1, and the key good?")
    return judged(direct, through)


def judged(direct: Pace, through: Pace) -> Finding:
    """What the two paces say."""
    found = f"{through.bursts} bursts over {through.spread_s:.2f} s; from the upstream {direct.bursts}"
    found += f" over {direct.spread_s:.2f} s"
    if through.encoding not in ("", "identity"):
        return bad(ABOUT, f"the stream comes {through.encoding} encoded: compressors hold events back", ADVICE)
    if direct.bursts < ENOUGH_BURSTS:
        return note(ABOUT, f"cannot tell: {found}", "ask a slower model, or one that says more")
    if through.bursts * 3 <= direct.bursts or through.spread_s * 3 <= direct.spread_s:
        return bad(ABOUT, f"something holds events back: {found}", ADVICE)
    return good(ABOUT, f"none: {found}")


async def _pace(base_url: str, key: str, model: str) -> Pace:
    """Stream one small answer. Raises `NoStream`."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": MAX_TOKENS,
        "stream": True,
    }
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    headers["Accept-Encoding"] = "gzip, br"  # as browsers and SDKs do: a front may compress
    times: list[float] = []
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TOTAL_S), auto_decompress=False) as session,
            session.post(f"{base_url}/chat/completions", json=body, headers=headers, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise NoStream(f"status {answer.status}")
            encoding = answer.headers.get("Content-Encoding", "")
            times += [time.monotonic() async for _ in answer.content.iter_any()]
    except TimeoutError as exc:
        raise NoStream(f"not over within {TOTAL_S:g} s") from exc
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        raise NoStream(str(exc) or type(exc).__name__) from exc
    if not times:
        raise NoStream("an empty answer")
    bursts = 1 + sum(later - earlier > BURST_GAP_S for earlier, later in itertools.pairwise(times))
    return Pace(bursts, times[-1] - times[0], encoding)
