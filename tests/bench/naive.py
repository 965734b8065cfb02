"""An ordinary metering proxy, as one writes it in an afternoon: python -m tests.bench.naive PORT UPSTREAM_PORT

aiohttp on both sides, a task per request, `json.loads` of every event. It counts tokens and keeps no books.
"""

import json
import sys

import aiohttp
from aiohttp import web

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
UPSTREAM = web.AppKey("upstream", str)
SESSION = web.AppKey("session", aiohttp.ClientSession)
TOKENS = web.AppKey("tokens", dict)


async def forward(request: web.Request) -> web.StreamResponse:
    """Pass a request on, and its answer back, as it comes."""
    body = await request.read()
    model = json.loads(body).get("model", "") if body else ""
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
    url = request.app[UPSTREAM] + request.path_qs
    async with request.app[SESSION].request(request.method, url, data=body, headers=headers) as upstream:
        kept = {name: value for name, value in upstream.headers.items() if name.lower() not in HOP_BY_HOP}
        if not upstream.headers.get("Content-Type", "").startswith("text/event-stream"):
            answer = await upstream.read()
            _count(request, model, answer)
            return web.Response(status=upstream.status, headers=kept, body=answer)
        response = web.StreamResponse(status=upstream.status, headers=kept)
        await response.prepare(request)
        rest = b""
        async for data in upstream.content.iter_any():
            await response.write(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    _count(request, model, line[6:])
        await response.write_eof()
        return response


def _count(request: web.Request, model: str, text: bytes) -> None:
    usage = json.loads(text).get("usage")
    if usage:
        tokens = request.app[TOKENS]
        tokens[model] = tokens.get(model, 0) + usage["total_tokens"]


def main() -> None:
    port, upstream_port = int(sys.argv[1]), int(sys.argv[2])
    app = web.Application(client_max_size=20_000_000)
    app[UPSTREAM] = f"http://127.0.0.1:{upstream_port}"
    app[TOKENS] = {}
    app.router.add_route("*", "/{path:.*}", forward)

    async def open_session(app: web.Application) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        app[SESSION] = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)

    async def close_session(app: web.Application) -> None:
        await app[SESSION].close()

    app.on_startup.append(open_session)
    app.on_cleanup.append(close_session)
    web.run_app(app, host="127.0.0.1", port=port, backlog=4096, access_log=None, print=None)


if __name__ == "__main__":
    main()
