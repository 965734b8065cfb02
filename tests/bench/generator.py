"""The load generator and the mock upstream: C where there is a compiler, else Python with the same output.

The Python ones are slower than the proxies that they measure: latencies and rates are then theirs. The CPU
of a proxy is measured in the same way with both.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.rig import LOAD_CPU, REPOSITORY, Failed, Running, free_port

SOURCES = Path(__file__).parent / "native"
CACHE = REPOSITORY / "build" / "bench"
NATIVE, PYTHON = "native (C)", "Python fallback"


class Generator:
    """How to start the two programs; `kind` says which they are."""

    def __init__(self, *, native: bool = True) -> None:
        """Compile what is not compiled yet; Failed when the compiler does not like it."""
        compiler = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None) if native else None
        self.kind = NATIVE if compiler else f"{PYTHON}: {'no C compiler found' if native else 'as asked for'}"
        if compiler:
            self._load: list[str | Path] = [_compiled(compiler, "load")]
            self._mock: list[str | Path] = [_compiled(compiler, "mock")]
        else:
            self._load = [sys.executable, "-m", "tests.bench.fallback", "load"]
            self._mock = [sys.executable, "-m", "tests.bench.fallback", "mock"]

    def mock(self, log: Path) -> Running:
        """A mock upstream, running on the load's cpu."""
        port = free_port()
        env = {"PYTHONPATH": str(REPOSITORY)}
        return Running([*self._mock, str(port)], port=port, cpu=LOAD_CPU, log=log, env=env)

    def start_load(self, options: Sequence[str]) -> "subprocess.Popen[str]":
        """A run of the load generator, for `finish_load`."""
        command = list(map(str, [*self._load, *options]))
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def load(self, options: Sequence[str], *, within_s: float) -> dict[str, Any]:
        """A run from its start to its end: its JSON; Failed when it gave up or takes too long."""
        return finish_load(self.start_load(options), within_s=within_s)


def finish_load(process: "subprocess.Popen[str]", *, within_s: float) -> dict[str, Any]:
    """Wait for a run: its JSON; Failed when it gave up or takes too long."""
    try:
        output, complaints = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired as exc:
        raise Failed(f"the load did not end within {within_s:.0f} s") from exc
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode:
        raise Failed(complaints.strip()[-300:] or f"the load ended with {process.returncode}")
    figures: dict[str, Any] = json.loads(output)
    return figures


def _compiled(compiler: str, name: str) -> Path:
    """The program, made anew when its source is newer."""
    source, program = SOURCES / f"{name}.c", CACHE / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        CACHE.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([compiler, "-O2", "-o", program, source], capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"cannot compile {source.name}: {done.stderr[-600:]}")
    return program
