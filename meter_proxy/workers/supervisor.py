"""The parent: forks workers, replaces those that die, drains and ends them; keeps the embedded store up.

Everything here runs in callbacks of one event loop. Forks, too: inside a task, newer Pythons would let the child
believe that this task still runs.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from meter_proxy import __version__
from meter_proxy.admin.app import STORE_IS_AWAY, WorkerState, build
from meter_proxy.config.reload import ConfigSource, refuse_fixed_changes
from meter_proxy.config.schema import Config
from meter_proxy.errors import CannotStart, ConfigError
from meter_proxy.ledger.embedded import EmbeddedStore
from meter_proxy.tasks import spawn
from meter_proxy.telemetry.feed import RecordFeed
from meter_proxy.telemetry.metrics import Metrics
from meter_proxy.telemetry.servers import servers_of
from meter_proxy.workers import child
from meter_proxy.workers.child import ServeWorker
from meter_proxy.workers.listening import Listeners

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 10.0
START_ATTEMPTS = 5  # of a worker that dies at start-up without saying why
AT_ONCE = 5  # a worker that was ready is replaced at once, but not more often than this ...
AT_ONCE_WITHIN_S = 10.0  # ... within this time: a crash loop must not eat the machine
KILL_AFTER_S = 8.0  # after the drain time: to cut what is left (2 s), and for the last books to reach the store (5 s)
KILL_HURRIED_S = 2.0  # after a second signal
ADMIN_STOP_S = 0.5
SAY_WHAT_IS_OPEN_AFTER_S = 0.5  # by then the workers' snapshots are of after the signal, and idle workers are gone

WATCH_S = 1.0  # a changed configuration file is noticed within two of these

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

_log = logging.getLogger("meter_proxy.workers")


class Worker:
    """One place in the row of workers, and the process that fills it now."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.pid: int | None = None
        self.control: socket.socket | None = None
        self.state = "starting"  # starting, ready, leaving; waiting: for its next start; gone
        self.was_ready = False  # this process, at some time
        self.last_words = ""
        self.failures = 0  # in a row, before readiness
        self.restarts = 0
        self.replaced_at: deque[float] = deque(maxlen=AT_ONCE)
        self.next_start: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.index} {self.state} pid={self.pid} restarts={self.restarts}>"


class Supervisor:
    """One run of the parent. `run()` it once."""

    def __init__(
        self,
        config: Config,
        serve_worker: ServeWorker,
        listeners: Listeners,
        store: EmbeddedStore | None,
        store_url: str,
        say: Callable[[str], None],
        source: ConfigSource | None = None,
    ) -> None:
        """`listeners` are open, `store` (if embedded) runs; both stay the caller's to close.

        `source`: where the configuration came from, to read it again; None where it was no file.
        """
        self._config = config
        self._serve_worker = serve_worker
        self._listeners = listeners
        self._store = store
        self._store_url = store_url
        self._needs_store = config.needs_store
        self._say = say
        self._workers = [Worker(index) for index in range(config.workers)]
        self._metrics = Metrics(version=__version__, servers=servers_of(config.upstreams))
        self._feed: RecordFeed
        self._loop: asyncio.AbstractEventLoop
        self._began_at = 0.0
        self._started = False  # all workers were ready once
        self._stopping = False
        self._failure: CannotStart | None = None
        self._source = source
        self._sending: asyncio.Task[None] | None = None
        self._over = asyncio.Event()  # no worker is left

    # What the admin listener asks.

    @property
    def uptime_s(self) -> float:
        """Seconds since `run()`."""
        return self._loop.time() - self._began_at

    def reasons_not_ready(self) -> list[str]:
        """Why the proxy is not (entirely) able to serve; empty when it is."""
        if self._stopping:
            return ["draining"]
        reasons = [f"worker {worker.index} is {worker.state}" for worker in self._workers if worker.state != "ready"]
        if not reasons and self._needs_store and not self._metrics.redis_up.values.get((), 1):
            reasons.append(STORE_IS_AWAY)
        return reasons

    def worker_states(self) -> list[WorkerState]:
        """Each worker as it is now."""
        return [WorkerState(worker.index, worker.pid, worker.state, worker.restarts) for worker in self._workers]

    # From start to end.

    async def run(self) -> None:
        """Start everything, serve until told to stop, end everything. Raises `CannotStart`."""
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._feed = RecordFeed(self._config.state_dir, self._metrics, len(self._workers))
        self._loop.add_signal_handler(signal.SIGTERM, self._stop)
        self._loop.add_signal_handler(signal.SIGINT, self._stop)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload_at_signal)
        self._loop.add_signal_handler(signal.SIGCHLD, self._look_after_children)
        async with self._admin():
            following = spawn(self._feed.run(), name="follow the records")
            watching = spawn(self._watch_file(), name="watch the configuration")
            for worker in self._workers:
                self._loop.call_soon(self._start, worker)
            await self._over.wait()
            following.cancel()
            watching.cancel()
        if self._failure is not None:
            raise self._failure

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[None]:
        token = self._config.admin_token
        app = build(self._metrics, self._feed, self, admin_token=token.get_secret_value() if token else None)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=ADMIN_STOP_S)
        await runner.setup()
        try:
            await web.SockSite(runner, self._listeners.admin).start()
            yield
        finally:
            await runner.cleanup()

    # A worker's life.

    def _start(self, worker: Worker) -> None:
        """Fork. On failure it is tried again later."""
        if self._stopping:
            return
        worker.state, worker.was_ready, worker.last_words, worker.next_start = "starting", False, "", None
        try:
            sock = self._listeners.of(worker.index)
            ours, theirs = socket.socketpair()
        except (CannotStart, OSError) as exc:
            self._start_later(worker, str(exc))
            return
        sys.stdout.flush()  # what is buffered would be written twice
        sys.stderr.flush()
        # Until the child has its own handlers, a signal to it would run ours: it waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                child.run(
                    self._config,
                    self._serve_worker,
                    index=worker.index,
                    sock=sock,
                    control=theirs,
                    store_url=self._store_url,
                    signals=SIGNALS,
                )
        except OSError as exc:
            ours.close()
            self._start_later(worker, f"cannot fork: {exc.strerror}")
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            theirs.close()
        ours.setblocking(False)
        worker.pid, worker.control = pid, ours
        self._loop.add_reader(ours, self._listen_to, worker)

    def _listen_to(self, worker: Worker) -> None:
        """Take in what a worker says of itself."""
        assert worker.control is not None
        try:
            words = worker.control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        if not words:
            self._hang_up(worker)
        for line in words.splitlines(keepends=True):
            if line == child.READY:
                self._is_ready(worker)
            elif line == child.LEAVING:
                worker.state = "leaving"
                self._listeners.close(worker.index)  # else connections would wait in its queue for nobody
            elif line.startswith(child.CANNOT_START):
                worker.last_words = line.removeprefix(child.CANNOT_START).decode(errors="replace").strip()

    def _hang_up(self, worker: Worker) -> None:
        if worker.control is not None:
            self._loop.remove_reader(worker.control)
            worker.control.close()
            worker.control = None

    def _is_ready(self, worker: Worker) -> None:
        worker.state, worker.was_ready, worker.failures = "ready", True, 0
        if not self._started and all(one.state == "ready" for one in self._workers):
            self._started = True
            public, admin = self._listeners.public_address, self._listeners.admin_address
            self._say(f"meter-proxy: serving http://{public} (admin http://{admin})")

    def _look_after_children(self) -> None:
        """SIGCHLD: find out who has ended. Only our own children are waited for, each by its pid."""
        for worker in self._workers:
            if worker.pid is not None:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
                if pid:
                    self._has_died(worker, os.waitstatus_to_exitcode(status))
        self._keep_store()

    def _has_died(self, worker: Worker, code: int) -> None:
        if worker.control is not None:
            self._listen_to(worker)  # its last words
            self._hang_up(worker)
        pid, worker.pid = worker.pid, None
        self._feed.worker_died(worker.index)
        worker.restarts += 1
        if self._stopping:
            worker.state = "gone"
            self._end_if_alone()
            return
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        if not worker.was_ready:
            self._start_later(worker, worker.last_words or f"{how} before it was ready")
            return
        now = self._loop.time()
        if len(worker.replaced_at) == AT_ONCE and now - worker.replaced_at[0] < AT_ONCE_WITHIN_S:
            self._start_later(worker, f"{how} again")
            return
        worker.replaced_at.append(now)
        _log.warning("worker %d (pid %s) %s; replacing it", worker.index, pid, how)
        self._start(worker)

    def _start_later(self, worker: Worker, reason: str) -> None:
        """Start after a pause that doubles each time; at start-up, give up where that is hopeless."""
        worker.state = "waiting"
        worker.failures += 1
        self._listeners.close(worker.index)
        if not self._started and (worker.last_words or worker.failures >= START_ATTEMPTS):
            self._failure = CannotStart(worker.last_words or f"worker {worker.index} {reason}; the log says more")
            self._stop()
            return
        pause_s = min(BACKOFF_FIRST_S * 2 ** (worker.failures - 1), BACKOFF_MAX_S)
        _log.error("worker %d: %s; next try in %.1f s", worker.index, reason, pause_s)
        worker.next_start = self._loop.call_later(pause_s, self._start, worker)

    # The store.

    def _keep_store(self) -> None:
        """Start the embedded store again if it has died. The workers find it at the same address."""
        if self._store is None or self._stopping or self._store.alive():
            return
        _log.error("the embedded store has died; starting it again")
        try:
            self._store.restart()
        except CannotStart as exc:
            _log.error("%s; next try in %.1f s", exc, BACKOFF_MAX_S)
            self._loop.call_later(BACKOFF_MAX_S, self._keep_store)

    # The end.

    def _stop(self) -> None:
        """SIGTERM, SIGINT: let streams end. The second time: cut them, bill them, and be gone."""
        if self._stopping:
            _log.warning("told to stop again: cutting what is still open")
            self._loop.call_later(KILL_HURRIED_S, self._kill)
        else:
            drain_s = self._config.limits.drain_timeout_s
            _log.info("stopping")
            self._stopping = True
            self._loop.call_later(SAY_WHAT_IS_OPEN_AFTER_S, self._say_what_is_open, drain_s)
            self._metrics.draining.set(1)
            for worker in self._workers:
                if worker.next_start is not None:
                    worker.next_start.cancel()
            self._loop.call_later(drain_s + KILL_AFTER_S, self._kill)
        self._signal(signal.SIGTERM)
        self._end_if_alone()

    def _say_what_is_open(self, drain_s: float) -> None:
        count = int(sum(self._metrics.inflight.values.values()))
        if count:
            _log.info("waiting at most %g s for %d open exchange%s to end", drain_s, count, "" if count == 1 else "s")

    # Another configuration.

    def reload(self) -> None:
        """Read the configuration again, and serve by it; `ConfigError`, and nothing changed, if it is not good."""
        if self._source is None:
            raise ConfigError(["there is no configuration file to read again: the proxy was started with --upstream"])
        try:
            config = self._source.load()
            refuse_fixed_changes(self._config, config)
        except ConfigError as exc:
            self._metrics.config_reload.set(0)
            for fault in exc.faults:
                _log.error("the configuration is not reloaded: %s", fault)
            raise
        self._config = config
        self._needs_store = config.needs_store
        self._metrics.configured(servers_of(config.upstreams))
        data = child.packed(config)
        former = self._sending
        self._sending = spawn(self._send_config(data, former), name="send the configuration")
        self._metrics.config_reload.set(1)
        _log.info("the configuration is reloaded")

    def _reload_at_signal(self) -> None:
        with contextlib.suppress(ConfigError):  # it is in the log
            self.reload()

    async def _send_config(self, data: bytes, former: asyncio.Task[None] | None) -> None:
        """To each worker that runs; one that starts from now on begins with it."""
        if former is not None:
            await asyncio.wait([former])
        for worker in self._workers:
            if worker.control is not None:
                with contextlib.suppress(OSError):  # it has just died: its successor knows
                    await self._loop.sock_sendall(worker.control, data)

    async def _watch_file(self) -> None:
        """Reload when the file has changed, and stays as it is for one look."""
        if self._source is None:
            return
        loaded = seen = self._source.signature()
        while True:
            await asyncio.sleep(WATCH_S)
            now = self._source.signature()
            if now != loaded and now == seen and now is not None:
                loaded = now
                self._reload_at_signal()
            seen = now

    def _kill(self) -> None:
        """End workers that do not end by themselves."""
        for worker in self._workers:
            if worker.pid is not None:
                _log.error("worker %d (pid %d) does not end; killing it", worker.index, worker.pid)
        self._signal(signal.SIGKILL)

    def _signal(self, which: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid is not None:  # not waited for yet, so the pid is still its own
                os.kill(worker.pid, which)

    def _end_if_alone(self) -> None:
        if all(worker.pid is None for worker in self._workers):
            self._over.set()
