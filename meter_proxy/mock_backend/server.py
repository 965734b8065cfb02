"""MockBackend: the HTTP server of the mock, on aiohttp."""

import asyncio
import itertools
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Self

from aiohttp import web
from aiohttp.typedefs import Handler

from meter_proxy.errors import CannotStart
from meter_proxy.mock_backend import wire
from meter_proxy.mock_backend.answering import Answering, HungUp
from meter_proxy.mock_backend.asked import Asked, BadRequest, understand
from meter_proxy.mock_backend.dialects import DIALECTS
from meter_proxy.mock_backend.plan import plan
from meter_proxy.mock_backend.truth import Truth

MODELS = ("mock-small", "mock-large")  # listed; any other name is served as well
MAX_BODY_BYTES = 64 * 1024 * 1024  # above what a proxy in front of it lets through
_OPERATIONS = {"chat/completions": "chat", "completions": "text_completion", "embeddings": "embeddings"}


class MockBackend:
    """A fake upstream. `async with` it, or start() and stop().

    `port` 0 takes a free one. `rate` is in tokens per second and stream, 0 for as fast as possible.
    `witness` gets the truth of each request once it has ended, in whatever way.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        dialect: str = "openai",
        rate: float = 0.0,
        tokens_per_event: int = 3,
        seed: int = 0,
        witness: Callable[[Truth], None] | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._dialect = DIALECTS[dialect]
        self._rate = rate
        self._tokens_per_event = tokens_per_event
        self._seed = seed
        self._witness = witness
        self._numbers = itertools.count(1)
        self._runner: web.AppRunner | None = None
        self.url = ""  # with /v1; known once started

    async def start(self) -> None:
        """Listen. Raises CannotStart when the port is taken or the address is not ours."""
        # handler_cancellation: a client that is gone ends its handler at once, wherever it waits.
        runner = web.AppRunner(self._app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, self._host, self._port, backlog=4096)
        try:
            await site.start()
        except OSError as exc:
            await runner.cleanup()
            # asyncio's own text repeats the address; a name that does not resolve has no errno of the system's
            reason = exc.strerror if isinstance(exc, socket.gaierror) else os.strerror(exc.errno or 0)
            message = f"cannot listen on {self._host}:{self._port}: {reason}; choose another with --listen"
            raise CannotStart(message) from exc
        self._runner = runner
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"http://{host}:{runner.addresses[0][1]}/v1"

    async def stop(self) -> None:
        """Stop listening and cancel the answers in progress; their truths are told. Idempotent."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_answer_preflights])
        for path, operation in _OPERATIONS.items():
            app.router.add_post(f"/v1/{path}", partial(self._post, operation))
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._model)
        for path, identity in self._dialect.identity.items():
            app.router.add_get(path, partial(_json, identity))
        app.on_response_prepare.append(_allow_browsers)
        return app

    async def _post(self, operation: str, request: web.Request) -> web.StreamResponse:
        """Answer one request; its truth is told exactly once, also when the client is gone."""
        try:
            asked = understand(operation, await request.read(), request.headers)
        except BadRequest as exc:
            return web.json_response(wire.error(exc.message, "invalid_request_error", param=exc.param), status=400)
        truth = Truth(
            id=f"mock-{next(self._numbers)}",
            client_request_id=request.headers.get("x-meter-request-id") or request.headers.get("x-request-id"),
            model=asked.model,
            stream=asked.stream,
            operation=operation,
            prompt_tokens=sum(asked.prompt_tokens),
        )
        try:
            return await self._answer(request, asked, truth)
        except (HungUp, ConnectionError):
            truth.cancelled = True
            return web.Response()  # aiohttp wants one; nobody is there to get it
        except asyncio.CancelledError:
            truth.cancelled = True
            raise
        finally:
            if self._witness is not None:
                self._witness(truth)

    async def _answer(self, request: web.Request, asked: Asked, truth: Truth) -> web.StreamResponse:
        await asyncio.sleep(asked.first_byte_delay_s)
        if asked.status != 200:
            return _error(asked.status, "The mock was asked for this status.", "mock_error", truth)
        if self._dialect.refuses_stream_options and asked.has_stream_options:
            return _error(422, "Extra inputs are not permitted", "invalid_request_error", truth, "stream_options")
        if asked.operation == "embeddings":
            response = web.Response(body=wire.embeddings(asked), content_type="application/json")
            response.headers["X-Request-Id"] = truth.id
            truth.finished = True
            return response
        steps = plan(asked, tokens_per_event=self._tokens_per_event, seed=self._seed)
        answering = Answering(request, asked, steps, truth, self._dialect, self._rate)
        return await (answering.stream() if asked.stream else answering.whole())

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [wire.model(name) for name in MODELS]})

    async def _model(self, request: web.Request) -> web.Response:
        return web.json_response(wire.model(request.match_info["name"]))


def _error(status: int, message: str, type: str, truth: Truth, param: str | None = None) -> web.Response:
    body = wire.error(message, type, param=param)
    return web.json_response(body, status=status, headers={"X-Request-Id": truth.id})


async def _json(data: object, request: web.Request) -> web.Response:
    return web.json_response(data)


@web.middleware
async def _answer_preflights(request: web.Request, handler: Handler) -> web.StreamResponse:
    return web.Response() if request.method == "OPTIONS" else await handler(request)


async def _allow_browsers(request: web.Request, response: web.StreamResponse) -> None:
    """Pages of any origin may use a mock, as they may use vLLM by default."""
    response.headers["Access-Control-Allow-Origin"] = "*"
    response.headers["Access-Control-Allow-Headers"] = "*"
