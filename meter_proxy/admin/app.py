"""The routes of the admin listener.

GET  /  /static/...           the usage page (see page.py)
GET  /about.json              what the page needs to know of this proxy
GET  /metrics                 Prometheus
GET  /healthz  /readyz        alive; able to serve (503 and the reasons if not)
GET  /api/...                 records, usage, quotas, what is in flight: api.py
POST /-/reload
"""

from aiohttp import web
from aiohttp.typedefs import Handler

from meter_proxy.admin import readiness
from meter_proxy.admin.api import Api, json_answer
from meter_proxy.admin.guard import error, guard
from meter_proxy.admin.page import Page
from meter_proxy.admin.proxy import About, Proxy, WorkerState
from meter_proxy.admin.queries import BadParameter
from meter_proxy.errors import ConfigError
from meter_proxy.telemetry.exposition import CONTENT_TYPE
from meter_proxy.telemetry.feed import RecordFeed
from meter_proxy.telemetry.metrics import Metrics

__all__ = ["About", "Proxy", "WorkerState", "build"]


def build(metrics: Metrics, feed: RecordFeed, proxy: Proxy, *, admin_token: str | None) -> web.Application:
    """The admin application."""
    admin = Admin(metrics, proxy)
    app = web.Application(middlewares=[_errors, guard(admin_token)])
    Page("index.html", needs_token="no" if admin_token is None else "yes").add_to(app.router, "/")
    app.router.add_get("/about.json", admin.about)
    app.router.add_get("/metrics", admin.metrics)
    app.router.add_get("/healthz", admin.healthz)
    app.router.add_get("/readyz", admin.readyz)
    app.router.add_post("/-/reload", admin.reload)
    Api(metrics, feed, proxy).add_to(app)
    app.on_response_prepare.append(_sign)
    return app


class Admin:
    """The handlers."""

    def __init__(self, metrics: Metrics, proxy: Proxy) -> None:
        self._metrics = metrics
        self._proxy = proxy

    async def about(self, request: web.Request) -> web.Response:
        """What callers have to know of this proxy."""
        return json_answer(self._proxy.about())

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus' text format."""
        return web.Response(body=self._metrics.render().encode(), headers={"Content-Type": CONTENT_TYPE})

    async def healthz(self, request: web.Request) -> web.Response:
        """The process lives."""
        return json_answer({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        """Every worker accepts connections, and no rule waits for Redis."""
        return readiness.answer(self._proxy.reasons_not_ready(), self._proxy.notes_on_readiness())

    async def reload(self, request: web.Request) -> web.Response:
        """Read the configuration again."""
        try:
            await self._proxy.reload()
        except ConfigError as exc:
            refusal = {"message": str(exc), "type": "invalid_request_error", "param": None, "code": "invalid_config"}
            return json_answer({"error": refusal, "faults": exc.faults}, status=422)
        return json_answer({"reloaded": True})


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
