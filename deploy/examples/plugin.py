"""An aiohttp application of one's own, with metered LLM operations on it.

python deploy/examples/plugin.py meter-proxy.yaml
"""

import argparse

from aiohttp import web

import meter_proxy
from meter_proxy.errors import MeterProxyError


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="my own route, untouched")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("config", help="meter-proxy.yaml")
    app = web.Application()
    app.router.add_get("/", hello)
    try:
        meter_proxy.setup(app, parser.parse_args().config)  # POST /v1/chat/completions and the others, metered
        web.run_app(app, host="127.0.0.1", port=8080)
    except (MeterProxyError, OSError) as exc:
        parser.exit(2, f"{exc}\n")
