"""The routes of the admin listener.

GET  /  /static/...           the usage page (see page.py)
GET  /about.json              what the page needs to know of this proxy
GET  /metrics                 Prometheus
GET  /healthz  /readyz        alive; able to serve (503 and the reasons if not)
GET  /api/records /api/usage /api/live
POST /-/reload
"""

import heapq
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from meter_proxy.admin import readiness
from meter_proxy.admin.guard import error, guard
from meter_proxy.admin.page import Page
from meter_proxy.errors import ConfigError
from meter_proxy.ledger.totals import parse_by, parse_since
from meter_proxy.telemetry.exposition import CONTENT_TYPE
from meter_proxy.telemetry.feed import RecordFeed
from meter_proxy.telemetry.metrics import Metrics
from meter_proxy.telemetry.records import MAX_RECENT, Row

DEFAULT_LIMIT = 100
DEFAULT_BY = "key,model,day"
BATCH = 500  # records in one write: 300 KB, 0.1 ms
LAST_INSTANT = 253_402_300_799.0  # 9999-12-31T23:59:59Z: what a calendar can hold


class WorkerState(msgspec.Struct, frozen=True):
    """A worker as `/api/live` shows it. `restarts`: how often it was replaced."""

    index: int
    pid: int | None
    state: str
    restarts: int


class About(msgspec.Struct, frozen=True):
    """What the usage page writes into its examples. `models`: names that can be asked for as they stand."""

    version: str
    base_url: str
    models: list[str]
    needs_key: bool


class Proxy(Protocol):
    """What is asked about the running proxy; `workers.Supervisor` answers."""

    def reasons_not_ready(self) -> list[str]:
        """Why no (or not every) request can be served; empty when ready."""

    def notes_on_readiness(self) -> list[str]:
        """What is not as it should be, though requests are served."""

    def worker_states(self) -> Sequence[WorkerState]:
        """Each worker, by its index."""

    @property
    def uptime_s(self) -> float:
        """Since when it runs."""

    def about(self) -> About:
        """What callers have to know of it."""

    async def reload(self) -> None:
        """Read the configuration again and serve by it; `ConfigError`, and nothing changed, if it is not good."""


class BadParameter(Exception):
    """A query parameter that cannot be used."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def build(metrics: Metrics, feed: RecordFeed, proxy: Proxy, *, admin_token: str | None) -> web.Application:
    """The admin application. It reads the clock only for `since=7d`."""
    admin = Admin(metrics, feed, proxy)
    app = web.Application(middlewares=[_errors, guard(admin_token)])
    Page("index.html", needs_token="no" if admin_token is None else "yes").add_to(app.router, "/")
    app.router.add_get("/about.json", admin.about)
    app.router.add_get("/metrics", admin.metrics)
    app.router.add_get("/healthz", admin.healthz)
    app.router.add_get("/readyz", admin.readyz)
    app.router.add_get("/api/records", admin.records)
    app.router.add_get("/api/usage", admin.usage)
    app.router.add_get("/api/live", admin.live)
    app.router.add_post("/-/reload", admin.reload)
    app.on_response_prepare.append(_sign)
    return app


class Admin:
    """The handlers."""

    def __init__(self, metrics: Metrics, feed: RecordFeed, proxy: Proxy) -> None:
        self._metrics = metrics
        self._feed = feed
        self._proxy = proxy

    async def about(self, request: web.Request) -> web.Response:
        """What callers have to know of this proxy."""
        return _json(self._proxy.about())

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus' text format."""
        return web.Response(body=self._metrics.render().encode(), headers={"Content-Type": CONTENT_TYPE})

    async def healthz(self, request: web.Request) -> web.Response:
        """The process lives."""
        return _json({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        """Every worker accepts connections, and no rule waits for Redis."""
        return readiness.answer(self._proxy.reasons_not_ready(), self._proxy.notes_on_readiness())

    async def records(self, request: web.Request) -> web.StreamResponse:
        """The newest `limit` records of all workers, oldest first by settlement."""
        query = _parameters(request, "limit", "key", "since")
        limit = _limit(query.get("limit"))
        records = await self._feed.records(limit, key=query.get("key"), since=_since(query.get("since")))
        response = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
        await response.prepare(request)
        separator = b'{"data":['
        for start in range(0, len(records), BATCH):
            await response.write(separator + b",".join(records[start : start + BATCH]))
            separator = b","
        await response.write(b"]}" if records else separator + b"]}")
        return response

    async def usage(self, request: web.Request) -> web.Response:
        """Totals; with `top`, only so many rows: the most expensive, then the largest, first."""
        query = _parameters(request, "by", "since", "top")
        try:
            by = parse_by(query.get("by", DEFAULT_BY))
        except ValueError as exc:
            raise BadParameter("by", str(exc)) from exc
        rows = await self._feed.usage(by, _since(query.get("since")))
        if (top := query.get("top")) is None:
            return _json({"data": rows})
        return _json({"total": len(rows), "data": heapq.nlargest(_limit(top, "top"), rows, key=_weight)})

    async def live(self, request: web.Request) -> web.Response:
        """What is going on now."""
        inflight = {model: count for (model,), count in self._metrics.inflight.values.items()}
        return _json(
            {
                "ready": not self._proxy.reasons_not_ready(),
                "uptime_s": round(self._proxy.uptime_s, 3),
                "workers": self._proxy.worker_states(),
                "inflight": inflight,
            }
        )

    async def reload(self, request: web.Request) -> web.Response:
        """Read the configuration again."""
        try:
            await self._proxy.reload()
        except ConfigError as exc:
            refusal = {"message": str(exc), "type": "invalid_request_error", "param": None, "code": "invalid_config"}
            return _json({"error": refusal, "faults": exc.faults}, status=422)
        return _json({"reloaded": True})


def _parameters(request: web.Request, *known: str) -> dict[str, str]:
    """The query, each parameter at most once; an empty value is as none. Raises BadParameter for others."""
    query: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known:
            raise BadParameter(name, f"There is no parameter {name!r} here, only {', '.join(known)}.")
        if name in query:
            raise BadParameter(name, f"{name!r} is given twice.")
        query[name] = value
    return {name: value for name, value in query.items() if value}


def _limit(text: str | None, name: str = "limit") -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_RECENT):
        raise BadParameter(name, f"{name} must be a whole number from 1 to {MAX_RECENT}.")
    return int(text)


def _weight(row: Row) -> tuple[int, int]:
    return int(row["cost_nano_usd"]), int(row["input_tokens"]) + int(row["output_tokens"])


def _since(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        return min(max(0.0, parse_since(text, time.time())), LAST_INSTANT)
    except ValueError as exc:
        raise BadParameter("since", str(exc)) from exc


def _json(data: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(data), content_type="application/json")


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except BadParameter as exc:
        return error(400, "invalid_parameter", str(exc), param=exc.name)
    except web.HTTPNotFound:
        return error(404, "unknown_url", "Unknown request URL. See / for what there is.")
    except web.HTTPMethodNotAllowed as exc:
        allowed = ", ".join(sorted(exc.allowed_methods))
        refusal = error(405, "method_not_allowed", f"Not allowed here. Use {allowed}.")
        refusal.headers["Allow"] = allowed
        return refusal


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    """Tell nobody which server this is; let no browser guess types, frame the page or keep an answer."""
    response.headers.popall("Server", None)
    response.headers["X-Content-Type-Options"] = "nosniff"
    # The page has its own.
    response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    response.headers.setdefault("Cache-Control", "no-store")
