"""A parent with two workers, of which the second misbehaves at a reload: `python -m tests.integration.faulty_reloads
HARM STATE_DIR`.

Each reload brings a drain time that is a second longer. To stderr goes which worker begins with or goes over to which.
"""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from meter_proxy.config.load import config_for_upstream
from meter_proxy.config.reload import ConfigSource
from meter_proxy.config.schema import Config
from meter_proxy.telemetry import logs
from meter_proxy.workers import rollout, serve
from meter_proxy.workers.child import PrepareConfig

FIRST = 1


def works() -> None:
    """As it should."""


def refuses() -> None:
    """It has no file descriptors left, say."""
    raise OSError("no\nroom")


def hangs() -> None:
    """It does not answer for a while."""
    time.sleep(2)


def dies() -> None:
    """Its successor is well."""
    os._exit(9)


HARMS = {harm.__name__: harm for harm in (works, refuses, hangs, dies)}


def say(index: int, words: str) -> None:
    print(f"<{index} {words}>", file=sys.stderr, flush=True)


def main(name: str, state_dir: str) -> None:
    logs.set_up(format="text")
    if name == "hangs":
        rollout.PREPARE_S = 0.5
    starts = Path(state_dir).parent / "starts"  # of the second worker
    seconds = FIRST

    def load() -> Config:
        nonlocal seconds
        seconds += 1
        return with_drain_time(config, seconds)

    async def serve_worker(
        config: Config,
        *,
        index: int,
        sock: socket.socket,
        store_url: str,
        ready: Callable[[PrepareConfig], None],
        stop: asyncio.Event,
    ) -> None:
        say(index, f"begins with {int(config.limits.drain_timeout_s)}")

        is_successor = index == 1 and starts.exists()
        if index == 1:
            with starts.open("a") as file:
                file.write("x")

        def prepare(new: Config) -> Callable[[], None]:
            if index == 1 and not (name == "dies" and is_successor):
                HARMS[name]()
            elif index == 0 and name == "dies":  # the other one is slow: the successor is born before all are prepared
                while len(starts.read_text()) < 2:
                    time.sleep(0.01)
            return lambda: say(index, f"goes over to {int(new.limits.drain_timeout_s)}")

        ready(prepare)
        await stop.wait()

    config = with_drain_time(
        config_for_upstream(
            "http://127.0.0.1:9", listen="127.0.0.1:0", admin="127.0.0.1:0", workers=2, state_dir=Path(state_dir)
        ),
        FIRST,
    )
    source = ConfigSource(Path("no-file"), load, {})
    serve(config, serve_worker, say=lambda line: print(line, flush=True), source=source, watch=False)


def with_drain_time(config: Config, seconds: int) -> Config:
    limits = config.limits.model_copy(update={"drain_timeout_s": float(seconds)})
    return config.model_copy(update={"limits": limits})


if __name__ == "__main__":
    main(*sys.argv[1:])
