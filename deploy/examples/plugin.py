"""An aiohttp application of one's own, with metered LLM operations on it.

python deploy/examples/plugin.py meter-proxy.yaml
"""

import sys

from aiohttp import web

import meter_proxy


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="my own route, untouched")


app = web.Application()
app.router.add_get("/", hello)
meter_proxy.setup(app, sys.argv[1])  # POST /v1/chat/completions and the others, metered

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8080)
