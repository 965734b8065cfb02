"""The parent process: starts the workers and keeps them going, and serves the admin listener.

    listening.py    the sockets: one per worker on the shared port, or "address already in use"
    supervisor.py   the parent: forks, replaces, drains, ends; the embedded store; the admin listener
    child.py        a worker's process, from its fork to its `os._exit`
    line.py         what the two say to each other
    rollout.py      another configuration: all workers go over to it, or none

The parent takes no traffic. Its direct children are the workers and the embedded store, nothing else. It has one
thread and keeps it that way: a fork copies only the thread that calls it, and the locks of all.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from pathlib import Path

from meter_proxy.config.reload import ConfigSource
from meter_proxy.config.schema import Config
from meter_proxy.errors import CannotStart
from meter_proxy.ledger.embedded import EmbeddedStore
from meter_proxy.ledger.journal import DirectoryLock
from meter_proxy.ledger.store import check_store
from meter_proxy.workers.child import ServeWorker
from meter_proxy.workers.listening import Listeners
from meter_proxy.workers.supervisor import Supervisor

EMBEDDED = "embedded"
FORMER_WORKERS_S = 3.0  # the workers of a killed parent settle and end within 1 s

_log = logging.getLogger("meter_proxy.workers")

__all__ = ["ServeWorker", "Supervisor", "serve"]


def serve(
    config: Config,
    serve_worker: ServeWorker,
    *,
    say: Callable[[str], None],
    source: ConfigSource | None = None,
    watch: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return. Raises `CannotStart`, and leaves nothing behind.

    `say` gets the one line with both addresses once connections are accepted. `source`, `watch`: see `Supervisor`.
    """
    lock = DirectoryLock(config.state_dir)
    try:
        _wait_for_former_workers(config.state_dir)
        with Listeners(config.listen, config.admin, config.workers) as listeners:
            store = EmbeddedStore(config.state_dir / "store") if config.redis.url == EMBEDDED else None
            try:
                if store is not None:
                    store.start()
                url = store.url if store is not None else config.redis.url
                asyncio.run(check_store(url))  # in a loop of its own: it may leave threads, closing the loop ends them
                gc.collect()
                gc.freeze()  # before the workers are forked: what stays is neither looked through nor copied again
                supervisor = Supervisor(config, serve_worker, listeners, store, url, say, source, watch)
                asyncio.run(supervisor.run())
            finally:
                if store is not None:
                    store.stop()  # last: until then workers bring their books there
            _log.info("stopped")
    finally:
        lock.release()


def _wait_for_former_workers(state_dir: Path) -> None:
    """Let workers whose parent was killed settle and end. Raises `CannotStart` if one does not."""
    deadline = time.monotonic() + FORMER_WORKERS_S
    for lock_file in state_dir.glob("w*/lock"):
        while True:
            try:
                DirectoryLock(lock_file.parent).release()
            except CannotStart:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                break
