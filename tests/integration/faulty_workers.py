"""A parent whose workers misbehave: `python -m tests.integration.faulty_workers HARM STATE_DIR`.

The real `serve` around a worker that is not the proxy, with short pauses. Prints `started` to stderr for each
worker that comes to life.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from meter_proxy.config.load import config_for_upstream
from meter_proxy.config.schema import Config
from meter_proxy.errors import CannotStart
from meter_proxy.telemetry import logs
from meter_proxy.workers import serve, supervisor
from meter_proxy.workers.child import PrepareConfig, ServeWorker

Ready: TypeAlias = Callable[[PrepareConfig], None]


def dies_before_ready(ready: Ready) -> None:
    """A bug at start-up."""
    os._exit(7)


def cannot_start(ready: Ready) -> None:
    """It says why."""
    raise CannotStart("the moon is\nnot full")


def dies_when_ready(ready: Ready) -> None:
    """A crash loop."""
    ready(lambda config: lambda: None)
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(ready: Ready) -> None:
    """Its event loop stands still: no signal reaches it but SIGKILL."""
    ready(lambda config: lambda: None)
    time.sleep(600)


HARMS = {harm.__name__: harm for harm in (dies_before_ready, cannot_start, dies_when_ready, hangs)}


def worker_with(harm: Callable[[Ready], None]) -> ServeWorker:
    """A worker that does `harm`."""

    async def serve_worker(
        config: Config,
        *,
        index: int,
        sock: socket.socket,
        store_url: str,
        ready: Ready,
        stop: asyncio.Event,
    ) -> None:
        print("started", file=sys.stderr, flush=True)
        harm(ready)

    return serve_worker


def main(name: str, state_dir: str) -> None:
    """Serve, with exit code 3 for `CannotStart` as the command has it."""
    logs.set_up(format="text")
    supervisor.BACKOFF_FIRST_S = 0.02
    supervisor.BACKOFF_MAX_S = 0.5
    supervisor.KILL_AFTER_S = 0.2
    config = config_for_upstream(
        "http://127.0.0.1:9", listen="127.0.0.1:0", admin="127.0.0.1:0", workers=1, state_dir=Path(state_dir)
    )
    limits = config.limits.model_copy(update={"drain_timeout_s": 0.1})
    try:
        serve(
            config.model_copy(update={"limits": limits}),
            worker_with(HARMS[name]),
            say=lambda line: print(line, flush=True),
        )
    except CannotStart as exc:
        print(f"meter-proxy: {exc}", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
