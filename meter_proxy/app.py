"""Composition root of one worker: builds everything from the Config, owns the order of start and stop.

The worker is an ordinary aiohttp application with our own plugin on it, and the two health paths.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from aiohttp.typedefs import Handler

from meter_proxy.admin import readiness
from meter_proxy.config.schema import Config
from meter_proxy.gateway.deadline import HeadDeadline
from meter_proxy.gateway.front import FrontDoor
from meter_proxy.gateway.replies import error
from meter_proxy.plugin import METER_PROXY, MeterProxy, add_billing, install

BACKLOG = 4_096  # 200 connections within 25 ms overflow the usual 128 and wait a second for their SYN
KEEPALIVE_S = 75.0
LINGER_S = 1.0  # the rest of a refused body is read for so long, that the client may see why
STOP_WITHIN_S = 2.0  # for aiohttp to close idle connections; exchanges are over by then


async def serve_worker(
    config: Config,
    *,
    index: int,
    sock: socket.socket,
    store_url: str,
    ready: Callable[[Callable[[Config], Callable[[], None]]], None],
    stop: asyncio.Event,
) -> None:
    """Serve on `sock` until `stop` is set; then drain, settle, and return with the books closed.

    `store_url` is the store's real address (the embedded one's included); `ready` is called once
    connections are accepted, with what takes a new configuration (`MeterProxy.prepare`).
    """
    installed = MeterProxy(config, index=index, workers=config.workers, store_url=store_url)
    runner = web.AppRunner(
        build_app(installed),
        access_log=None,
        handle_signals=False,
        shutdown_timeout=STOP_WITHIN_S,
    )
    await runner.setup()
    try:
        door = front_door(runner, installed)
        async with listening(door, sock):
            ready(installed.prepare)
            await stop.wait()
        # Before connections are closed: requests on those that are kept get their 503 meanwhile.
        await installed.drain()
        door.close()
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def listening(door: FrontDoor, sock: socket.socket) -> AsyncIterator[None]:
    """Accept connections on `sock` within this block; those that are open at its end stay so."""
    server = await asyncio.get_running_loop().create_server(door, sock=sock, backlog=BACKLOG)
    try:
        yield
    finally:
        server.close()


def front_door(runner: web.AppRunner, installed: MeterProxy) -> FrontDoor:
    """The raw front, with aiohttp's server behind it for all that is not plain."""
    loop = asyncio.get_running_loop()
    manager = runner.server
    assert manager is not None
    limits = installed.config.limits

    def aiohttp_handler() -> asyncio.Protocol:
        # auto_decompress: coded bodies are refused; aiohttp would decode them first, and log what fails.
        handler = _Handler(
            manager,
            loop=loop,
            keepalive_timeout=KEEPALIVE_S,
            access_log=None,  # type: ignore[arg-type]  # None is "no access log"; the annotation forgets it
            auto_decompress=False,
            lingering_time=LINGER_S,
        )
        return HeadDeadline(handler, limits.header_timeout_s)

    return FrontDoor(
        lambda: installed.gateway,
        aiohttp_handler,
        header_timeout_s=limits.header_timeout_s,
        keep_alive_s=KEEPALIVE_S,
    )


class _Handler(web.RequestHandler):
    """aiohttp's, but what its parser refuses is told in OpenAI's shape, without versions and without an echo."""

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if status >= 500:
            super().handle_error(request, status, exc, message)  # it logs, and raises if a reply has begun
            response = error(request, status, "internal_error", "Something went wrong here.", type="server_error")
        else:
            # Not logged: the parser's message quotes what was sent, and that may be a key.
            response = error(request, status, "invalid_request", "This is not a valid HTTP request.")
        response.headers["Server"] = "meter-proxy"
        response.force_close()
        return response


def build_app(installed: MeterProxy) -> web.Application:
    """The worker's application: the plugin, `/healthz`, `/readyz`, and errors in OpenAI's shape."""
    app = web.Application(middlewares=[_openai_shaped_errors])
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", _readyz)
    app.on_response_prepare.append(_unsigned)
    install(app, installed)
    add_billing(app, "")  # where clients of one-api look for it, too
    return app


async def _healthz(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _readyz(request: web.Request) -> web.Response:
    installed = request.app[METER_PROXY]
    gateway = installed.gateway
    is_away = not gateway.ledger.store_up
    states = (
        ("draining", gateway.draining),
        ("journal cannot write", not gateway.ledger.can_write),
        (readiness.STORE_IS_AWAY, is_away and gateway.needs_store),
    )
    notes = [installed.note_of_outage] if is_away and not gateway.needs_store else []
    return readiness.answer([reason for reason, applies in states if applies], notes)


@web.middleware
async def _openai_shaped_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return error(request, 404, "unknown_url", "Unknown request URL. See the README for the paths served here.")
    except web.HTTPMethodNotAllowed as exc:
        allowed = ", ".join(sorted(exc.allowed_methods))
        return error(
            request, 405, "method_not_allowed", f"Not allowed here. Use {allowed}.", headers=(("allow", allowed),)
        )


async def _unsigned(request: web.Request, response: web.StreamResponse) -> None:
    """Tell nobody which server and version this is."""
    response.headers.popall("Server", None)
