"""An admin listener whose proxy is as busy as a test likes: the page's own files, and answers in the API's shapes.

    async with serving(BusyAdmin(keys=10_000).app()) as url: ...

With 0 keys nothing has happened yet. Else every answer differs from the one before it, as under load: figures grow,
streams come and go, quotas fill up and change places. The same numbers come out of every run.
"""

import random
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from meter_proxy.admin.page import Page
from meter_proxy.usage import Basis, Outcome

MODELS = ("gpt-4o", "qwen2.5-72b-instruct", "small", "text-embedding-3-large")
RULES = (("tokens-day", "tokens", "day"), ("budget", "cost_usd", "month"), ("requests-minute", "requests", "minute"))
OUTCOMES = (
    Outcome.COMPLETED,
    Outcome.COMPLETED,
    Outcome.CLIENT_DISCONNECTED,
    Outcome.QUOTA_CUT,
    Outcome.UPSTREAM_FAILED,
)
BASES = (Basis.REPORTED, Basis.REPORTED, Basis.RUNNING, Basis.COUNTED, Basis.NONE)
DAYS = 30


class BusyAdmin:
    """The answers. `asked` counts them by path."""

    def __init__(self, *, keys: int, token: str | None = None, without: Collection[str] = ()) -> None:
        """With a `token` everything but the page itself wants it. `without`: parts of `/api/` that are not there."""
        self.keys = [_name(number) for number in range(keys)]
        self.token = token
        self.without = frozenset(without)
        self.asked: dict[str, int] = {}
        self._random = random.Random(7)

    def app(self) -> web.Application:
        """The application; close it as any other."""
        app = web.Application(middlewares=[self._admit])
        Page("index.html", needs_token="yes" if self.token else "no").add_to(app.router, "/")
        for path in sorted({"live", "quotas", "usage", "records"} - self.without):
            app.router.add_get(f"/api/{path}", getattr(self, f"_{path}"))
        app.router.add_get("/about.json", self._about)
        return app

    @web.middleware
    async def _admit(self, request: web.Request, handler: Any) -> web.StreamResponse:
        is_page = request.path == "/" or request.path.startswith("/static/")
        self.asked[request.path] = self.asked.get(request.path, 0) + 1
        if self.token is not None and not is_page and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"error": {"message": "Send the admin_token."}}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    async def _about(self, request: web.Request) -> web.Response:
        models = [name for name in MODELS if self.keys]
        return web.json_response(
            {"version": "1", "base_url": "http://127.0.0.1:8080/v1", "models": models, "needs_key": True}
        )

    async def _live(self, request: web.Request) -> web.Response:
        limit = int(request.query.get("limit", "100"))
        count = min(len(self.keys), self._random.randrange(60))
        streams = [self._stream(number) for number in range(min(limit, count))]
        pace = self._random.uniform(0.5, 900) if count else 0.0
        return web.json_response(
            {
                "ready": True,
                "uptime_s": 93_784.2,
                "workers": [{"index": n, "pid": 100 + n, "state": "ready", "restarts": 0} for n in range(2)],
                "inflight": {"gpt-4o": count} if count else {},
                "streams": streams,
                "streams_total": count,
                "rates": {
                    "requests_per_s": pace / 50,
                    "input_tokens_per_s": pace * 3,
                    "output_tokens_per_s": pace,
                },
            }
        )

    def _stream(self, number: int) -> dict[str, Any]:
        lasting_ms = self._random.uniform(200, 90_000)
        return {
            "id": f"req_{number}",
            "key": self.keys[number],
            "account": self.keys[number],
            "model": MODELS[number % len(MODELS)],
            "operation": "chat",
            "stream": True,
            "started": _iso(time.time() - lasting_ms / 1000),
            "duration_ms": lasting_ms,
            "input_tokens": self._random.randrange(4000),
            "output_tokens": int(lasting_ms / 20),
        }

    async def _quotas(self, request: web.Request) -> web.Response:
        query = request.query
        keys = [key for key in self.keys if query.get("q", "") in key and query.get("key", key) == key]
        limit, offset = int(query.get("limit", "100")), int(query.get("offset", "0"))
        places = range(offset, min(offset + limit, len(keys) * len(RULES)))
        share = sorted((self._random.random() * 1.02 for _ in places), reverse=True)
        data = [
            self._quota(keys[place // len(RULES)], *RULES[place % len(RULES)], full)
            for place, full in zip(places, share, strict=True)
        ]
        return web.json_response({"total": len(keys) * len(RULES), "data": data})

    def _quota(self, key: str, rule: str, unit: str, per: str, full: float) -> dict[str, Any]:
        limit = {"tokens": 2_000_000, "cost_usd": 20.0, "requests": 60}[unit]
        used = round(full * limit, 6) if unit == "cost_usd" else int(full * limit)
        reserved = 0 if full > 0.9 else limit // 50
        return {
            "key": f"account:{key}" if unit == "cost_usd" else key,
            "rule": rule,
            "unit": unit,
            "per": per,
            "limit": limit,
            "used": used,
            "reserved": reserved,
            "remaining": max(0, limit - used - reserved),
            "resets_at": _iso(time.time() + {"minute": 40, "day": 30_000, "month": 900_000}[per]),
            "warn_at": 0.8 if unit == "cost_usd" else None,
            "models": ["gpt-4o*"] if unit == "tokens" else None,
        }

    async def _usage(self, request: web.Request) -> web.Response:
        query = request.query
        today = datetime.now(UTC).date()
        names = {
            "key": [key for key in self.keys if query.get("key", key) == key],
            "model": MODELS if self.keys else (),
            "day": [(today - timedelta(days=ago)).isoformat() for ago in range(DAYS)] if self.keys else (),
        }[query["by"]]
        heavy = random.Random(query["by"] + query["since"])
        rows = [self._row(query["by"], name, heavy.paretovariate(0.9)) for name in names]
        rows = [row for row in rows if row.get("day", query["since"]) >= query["since"]]
        if "top" in query:
            rows.sort(key=lambda row: -row["cost_nano_usd"])
        return web.json_response({"total": len(rows), "data": rows[: int(query.get("top", len(rows)))]})

    def _row(self, by: str, name: str, weight: float) -> dict[str, Any]:
        weight = min(weight, 30.0)
        output_tokens = int(40_000 * weight) + self._random.randrange(500)
        return {
            by: name,
            "requests": int(90 * weight),
            "input_tokens": 3 * output_tokens,
            "output_tokens": output_tokens,
            "cached_input_tokens": output_tokens,
            "reasoning_tokens": 0,
            "cost_nano_usd": output_tokens * 6_500,
        }

    async def _records(self, request: web.Request) -> web.Response:
        keys = [key for key in self.keys if request.query.get("key", key) == key]
        count = int(request.query["limit"]) if keys else 0
        return web.json_response({"data": [self._record(keys, number) for number in range(count)]})

    def _record(self, keys: list[str], number: int) -> dict[str, Any]:
        choose = self._random
        kind = choose.randrange(len(OUTCOMES))
        tokens = choose.randrange(3000)
        return {
            "id": f"req_{number}",
            "time": _iso(time.time() - 3 * (10 - number)),
            "key": choose.choice(keys),
            "account": "team",
            "model": choose.choice(MODELS),
            "operation": "chat",
            "stream": True,
            "input_tokens": 2 * tokens,
            "output_tokens": tokens,
            "cost_nano_usd": tokens * 6_500,
            "input_basis": "reported",
            "basis": BASES[kind],
            "outcome": OUTCOMES[kind],
            "status": 200,
            "duration_ms": choose.uniform(80, 40_000),
        }


def _name(number: int) -> str:
    team = ("alice", "batch-jobs", "ci", "search-ranking-evaluation-nightly", "support-bot")[number % 5]
    return team if number < 5 else f"{team}-{number:05d}"


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
