"""Processes of the benchmark: started on a core of their own, measured from outside, ended by their pids.

The proxy runs on cpu 1; the mock, the load generator and this program on cpu 0. On a machine with one cpu all share it,
and the figures say less: `machine.facts` tells.
"""

import contextlib
import http.client
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
CPUS = sorted(os.sched_getaffinity(0))
LOAD_CPU, PROXY_CPU = CPUS[0], CPUS[-1] if len(CPUS) < 3 else CPUS[1]
ENDS_WITHIN_S = 15.0


class Failed(Exception):
    """A program of the benchmark did not do its part; the message says which, and its last words."""


def raise_open_files() -> int:
    """Allow as many open files as the system lets us, here and in children; that number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def prepare() -> None:
    """Keep this program, and what it starts unless told otherwise, on the load's cpu; SIGTERM ends all of it."""
    os.sched_setaffinity(0, {LOAD_CPU})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `with` blocks are left


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def which(program: str) -> str | None:
    """The path of a program, also of those that only root has on its PATH."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")


class Running:
    """A child process that listens on `port`, pinned to `cpu`. `with` ends it and all its children."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        port: int,
        cpu: int,
        log: Path,
        env: Mapping[str, str] | None = None,
        ready_within_s: float = 15.0,
    ) -> None:
        """Start it and wait until it accepts connections; Failed if it does not."""
        self.port = port
        self._log = log
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cpu})  # a child begins with its parent's; there is no moment on the wrong core
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    list(map(str, command)),
                    env={**os.environ, **(env or {})},
                    cwd=log.parent,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
        finally:
            os.sched_setaffinity(0, before)
        try:
            self._wait_until_ready(ready_within_s)
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self, within_s: float) -> None:
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise Failed(f"{self._name} ended with {self._process.returncode}: {self.last_words()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise Failed(f"{self._name} does not listen after {within_s:.0f} s: {self.last_words()}")

    @property
    def _name(self) -> str:
        return Path(str(self._process.args[0])).name if isinstance(self._process.args, list) else "program"

    @property
    def pid(self) -> int:
        return self._process.pid

    def pids(self) -> list[int]:
        """Itself and all its descendants."""
        return descendants(self.pid)

    def last_words(self) -> str:
        """The end of what it printed."""
        return self._log.read_text(errors="replace")[-600:]

    def close(self) -> None:
        """SIGTERM; what is left of it and its children after a while is killed, by pid."""
        pids = self.pids()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDS_WITHIN_S)
        for pid in pids:
            if pid != self.pid or self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def descendants(pid: int) -> list[int]:
    """`pid` and its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for each in found:  # grows while it is walked
        found += children.get(each, [])
    return found


def cpu_s(pids: Sequence[int]) -> float:
    """Run time of all threads of these processes so far."""
    ran_ns = 0
    for pid in pids:
        for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                ran_ns += int(schedstat.read_text().split()[0])
    return ran_ns / 1e9


def busiest(pids: Sequence[int], during_s: float) -> int:
    """Which of them runs most in the next `during_s`: under load that is the worker."""
    before = {pid: cpu_s([pid]) for pid in pids}
    time.sleep(during_s)
    return max(pids, key=lambda pid: cpu_s([pid]) - before[pid])


def get(port: int, path: str, *, timeout_s: float = 10.0) -> bytes:
    """The body of a GET on loopback; Failed when it is not a 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except OSError as exc:
        raise Failed(f"GET {path}: {exc}") from exc
    finally:
        connection.close()
    if response.status != 200:
        raise Failed(f"GET {path}: {response.status}")
    return body


def get_json(port: int, path: str) -> Any:
    """The same, parsed."""
    return json.loads(get(port, path))
