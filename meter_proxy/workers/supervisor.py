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
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from meter_proxy import __version__
from meter_proxy.admin.app import About, WorkerState, build
from meter_proxy.admin.readiness import STORE_IS_AWAY, note_of_outage
from meter_proxy.config.reload import ConfigSource, refuse_fixed_changes
from meter_proxy.config.schema import Config
from meter_proxy.errors import CannotStart, ConfigError
from meter_proxy.ledger.embedded import EmbeddedStore
from meter_proxy.tasks import spawn
from meter_proxy.telemetry.feed import RecordFeed
from meter_proxy.telemetry.metrics import Metrics
from meter_proxy.workers import child, line
from meter_proxy.workers.child import ServeWorker
from meter_proxy.workers.line import Line
from meter_proxy.workers.listening import Listeners
from meter_proxy.workers.notify import ServiceManager
from meter_proxy.workers.rollout import Rollout

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
        self.line: Line | None = None
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
        watch: bool = True,
        manager: ServiceManager | None = None,
    ) -> None:
        """`listeners` are open, `store` (if embedded) runs; both stay the caller's to close.

        `source`: where the configuration came from, to read it again; None where it was no file. `watch`: reload by
        itself when that changes. `manager` hears how we are.
        """
        self._serve_worker = serve_worker
        self._listeners = listeners
        self._store = store
        self._store_url = store_url
        self._say = say
        self._workers = [Worker(index) for index in range(config.workers)]
        self._metrics = Metrics(version=__version__, servers={})
        self._serves_by(config)
        self._feed: RecordFeed
        self._loop: asyncio.AbstractEventLoop
        self._began_at = 0.0
        self._started = False  # all workers were ready once
        self._stopping = False
        self._failure: CannotStart | None = None
        self._source = source
        self._watch = watch
        self._manager = manager or ServiceManager()
        self._reloading = asyncio.Lock()
        self._rollout: Rollout | None = None
        self._configs = 0  # so many were tried since the start: the number of the last one
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
        if not reasons and self._needs_store and self._metrics.store_is_away:
            reasons.append(STORE_IS_AWAY)
        return reasons

    def notes_on_readiness(self) -> list[str]:
        """What is not as it should be, though requests are served."""
        return [self._note_of_outage] if self._metrics.store_is_away and not self._needs_store else []

    def worker_states(self) -> list[WorkerState]:
        """Each worker as it is now."""
        return [WorkerState(worker.index, worker.pid, worker.state, worker.restarts) for worker in self._workers]

    def about(self) -> About:
        """Where callers connect, and what they may ask for."""
        config = self._config
        return About(
            version=__version__,
            base_url=f"http://{self._listeners.public_address}{config.path_prefixes[0]}",
            models=[name for name in config.models if "*" not in name],
            needs_key=bool(config.keys),
        )

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
            self._keep_alive()
            following = spawn(self._feed.run(), name="follow the records")
            watching = spawn(self._watch_source(), name="watch the configuration")
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

    def _keep_alive(self) -> None:
        if self._manager.keep_alive_s is not None:
            self._manager.alive()
            self._loop.call_later(self._manager.keep_alive_s, self._keep_alive)

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
        worker.pid, worker.line = pid, Line(ours, self._loop)
        self._loop.add_reader(ours, self._listen_to, worker)

    def _listen_to(self, worker: Worker) -> None:
        """Take in what a worker says of itself."""
        assert worker.line is not None
        said = worker.line.receive()
        for words in said or ():
            self._heard(worker, worker.line, words)
        if said is None:
            self._hang_up(worker)

    def _heard(self, worker: Worker, its_line: Line, words: bytes) -> None:
        rollout = self._rollout
        if words == line.READY:
            self._is_ready(worker)
        elif words == line.LEAVING:
            worker.state = "leaving"
            self._listeners.close(worker.index)  # else connections would wait in its queue for nobody
        elif words.startswith(line.CANNOT_START):
            worker.last_words = words.removeprefix(line.CANNOT_START).decode(errors="replace").strip()
        elif rollout is None:
            pass  # too late: a reload has given up waiting for this
        elif words.startswith(line.PREPARED):
            rollout.prepared(its_line, int(words.removeprefix(line.PREPARED)))
        elif words.startswith(line.SERVING):
            rollout.serves(its_line, int(words.removeprefix(line.SERVING)))
        elif words.startswith(line.REFUSED):
            number, _, why = words.removeprefix(line.REFUSED).partition(b" ")
            rollout.refused(its_line, int(number), why.decode(errors="replace"))

    def _hang_up(self, worker: Worker) -> None:
        if worker.line is not None:
            worker.line.close()
            if self._rollout is not None:
                self._rollout.gone(worker.line)
            worker.line = None

    def _is_ready(self, worker: Worker) -> None:
        worker.state, worker.was_ready, worker.failures = "ready", True, 0
        if not self._started and all(one.state == "ready" for one in self._workers):
            self._started = True
            self._say(f"meter-proxy: {self._serving}")
            self._manager.ready(self._serving)

    @property
    def _serving(self) -> str:
        return f"serving http://{self._listeners.public_address} (admin http://{self._listeners.admin_address})"

    def _look_after_children(self) -> None:
        """SIGCHLD: find out who has ended. Only our own children are waited for, each by its pid."""
        for worker in self._workers:
            if worker.pid is not None:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
                if pid:
                    self._has_died(worker, os.waitstatus_to_exitcode(status))
        self._keep_store()

    def _has_died(self, worker: Worker, code: int) -> None:
        if worker.line is not None:
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
            self._manager.stopping(f"waiting at most {drain_s:g} s for open exchanges to end")
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

    async def reload(self) -> None:
        """Read the configuration again, and serve by it; `ConfigError`, and nothing changed, if it is not good.

        When it returns, all workers serve by it.
        """
        if self._source is None:
            raise ConfigError(["there is no configuration file to read again: the proxy was started with --upstream"])
        async with self._reloading:
            tells = self._started and not self._stopping
            if tells:
                self._manager.reloading()
            try:
                config = self._source.load()
                refuse_fixed_changes(self._config, config)
                await self._roll_out(config)
            except ConfigError as exc:
                self._metrics.config_reload.set(0)
                for fault in exc.faults:
                    _log.error("the configuration is not reloaded: %s", fault)
                raise
            finally:
                if tells and not self._stopping:
                    self._manager.ready(self._serving)  # by the old configuration, if the new one is not good
            self._metrics.config_reload.set(1)
            _log.info("the configuration is reloaded")

    async def _roll_out(self, config: Config) -> None:
        """Serve by `config` in all workers, or raise ConfigError and do so in none."""
        if self._stopping:
            raise ConfigError(["the proxy is about to end"])
        self._configs += 1
        began_with = {
            worker.line: f"worker {worker.index}"
            for worker in self._workers
            if worker.line is not None and worker.state != "leaving"
        }
        self._rollout = rollout = Rollout(self._configs, config, [(name, one) for one, name in began_with.items()])
        try:
            await rollout.prepare()
            self._serves_by(config)
            lines = [worker.line for worker in self._workers if worker.line is not None]
            late = await rollout.commit(born_meanwhile=[one for one in lines if one not in began_with])
        finally:
            self._rollout = None
        for name in late:
            _log.warning("%s is busy: it goes over to the new configuration as soon as it can", name)

    def _serves_by(self, config: Config) -> None:
        self._config = config  # of the workers that start from now on
        self._needs_store = config.needs_store
        self._note_of_outage = note_of_outage(config)
        self._metrics.configured(config, time.time())

    async def _reload_unasked(self) -> None:
        with contextlib.suppress(ConfigError):  # it is in the log
            await self.reload()

    def _reload_at_signal(self) -> None:
        spawn(self._reload_unasked(), name="reload at SIGHUP")

    async def _watch_source(self) -> None:
        """Reload when the configuration has changed, and stays as it is for one look."""
        while self._source is not None and self._watch:
            await asyncio.sleep(WATCH_S)
            if not self._reloading.locked() and self._source.has_changed():
                await self._reload_unasked()

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
