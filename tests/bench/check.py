"""The gate: does a chunk, a short stream or a plain request cost more than was recorded? (`make bench-check`)

Four kinds of figures of the worker, chosen so that the machine's mood is not in them:

    bytecodes      Python instructions that it executed, less those of an idle worker: the same on every machine
    syscalls       by strace
    cpu            its CPU time by that of a fixed loop on the same core, run in turn with it; a median of rounds
    instructions   machine instructions in user space, by perf; only where the processor's counter can be read

What seems to have risen is measured twice, as what is recorded was, and the lower counts: others' work only adds.
A figure that has risen by more than 15% since `make bench-record` is printed, and the exit code is 1.

    python -m tests.bench.check             compare with tests/bench/recorded.json
    python -m tests.bench.check --record    write it anew: the change was wanted
"""

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench import machine
from tests.bench.generator import Generator
from tests.bench.results import brief, markdown
from tests.bench.rig import (
    PROXY_CPU,
    REPOSITORY,
    Failed,
    Running,
    prepare,
    raise_open_files,
    which,
)
from tests.bench.syscalls import ALL_CALLS, LOADS, per_unit, worker_of
from tests.bench.targets import KEY, METER_PROXY, Target, find, running

RECORDED = Path(__file__).parent / "recorded.json"
MAY_RISE = 0.15
ROUNDS, SECONDS = 7, 1.5  # of CPU time
COUNTED_SECONDS = 4.0  # of the loads under which is counted: periodic work averages out
COUNTING = Path(__file__).parent / "counting"
# For counting: the proxy is never behind, and the rate shares no rhythm with its timers, or each run would meet another
# phase of them and count another number of writes.
COUNTED_LOADS = {
    "paced chunk": LOADS["paced chunk"],
    "short stream": ("--stream --model m-n1-d0 --rate 37 --connections 16", "requests"),
    "plain request": ("--model m --rate 37 --connections 16", "requests"),
}
# For CPU time: loads that keep the worker busy, so that it is disturbed least.
BUSY_LOADS = {
    "paced chunk": ("--stream --model m-n200-d20 --connections 100", "events"),
    "short stream": ("--stream --model m-n1-d0 --connections 16", "requests"),
    "plain request": ("--model m --connections 16", "requests"),
}
BYTECODES, SYSCALLS, CPU, INSTRUCTIONS = "bytecodes", "syscalls", "cpu", "instructions"


# -- The comparison: pure ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A figure, then and now. None: not there."""

    name: str
    recorded: float | None
    measured: float | None

    @property
    def rise(self) -> float | None:
        """0.16 is 16% more than recorded."""
        if self.recorded is None or self.measured is None:
            return None
        return self.measured / self.recorded - 1

    @property
    def is_fault(self) -> bool:
        """It rose too much; or it was recorded and is gone: a gate that measures less is no gate."""
        if self.rise is not None:
            return self.rise > MAY_RISE
        return self.measured is None

    def __str__(self) -> str:
        if self.rise is not None:
            return f"{self.rise:+.1%}"
        return "not recorded: make bench-record" if self.recorded is None else "not measured"


def compare(recorded: Mapping[str, float], measured: Mapping[str, float]) -> list[Difference]:
    """All figures of both, in the order of the record."""
    names = dict.fromkeys([*recorded, *measured])
    return [Difference(name, recorded.get(name), measured.get(name)) for name in names]


def comparable(recorded: Mapping[str, float], *, python_is_another: bool, has_instructions: bool) -> dict[str, float]:
    """What of the record can be compared here at all."""
    left_out = {BYTECODES} if python_is_another else set()
    left_out |= set() if has_instructions else {INSTRUCTIONS}
    return {name: value for name, value in recorded.items() if name.split(" ")[0] not in left_out}


# -- Measuring --------------------------------------------------------------------------------------------------------


class Gate:
    """Measures each kind of figure on a proxy of its own; names are `KIND per UNIT`."""

    def __init__(self, generator: Generator, mock: Running, directory: Path, *, rounds: int, seconds: float) -> None:
        self._generator = generator
        self._mock = mock
        self._directory = directory
        self._rounds = rounds
        self._seconds = seconds
        self._files = raise_open_files()
        targets, missing = find([METER_PROXY], litellm=None)
        if missing:
            raise Failed(str(missing))
        self._target = targets[0]

    def _start(self, target: Target) -> Running:
        process, _ = running(target, self._directory / "proxy", self._mock.port, workers=1, files=self._files)
        return process

    def _options(self, process: Running, load: str, seconds: float = COUNTED_SECONDS) -> list[str]:
        return [
            *("--port", str(process.port), "--mock-port", str(self._mock.port), "--key", KEY),
            *("--seconds", str(seconds), *load.split()),
        ]

    def bytecodes(self) -> dict[str, float]:
        """Of the main thread of the worker."""
        counts = self._directory / "counts"
        counts.mkdir(exist_ok=True)
        env = {"PYTHONPATH": f"{COUNTING}{os.pathsep}{REPOSITORY}", "METER_PROXY_COUNT": str(counts)}
        figures = {}
        with self._start(replace(self._target, env=tuple(env.items()))) as process:
            worker = worker_of(process, self._generator)
            time.sleep(2)  # the books of that load are written
            with _counting_bytecodes(worker, counts) as idle:
                time.sleep(COUNTED_SECONDS)
            figures[f"{BYTECODES} per idle second"] = idle.executed / idle.seconds
            for unit, (load, units) in COUNTED_LOADS.items():
                with _counting_bytecodes(worker, counts) as busy:
                    total = self._generator.load(self._options(process, load), within_s=60)["total"]
                spent = busy.executed - idle.executed * busy.seconds / idle.seconds
                figures[f"{BYTECODES} per {unit}"] = spent / total[units]
        return figures

    def syscalls(self) -> dict[str, float]:
        """All calls of the worker."""
        figures = {}
        with self._start(self._target) as process:
            worker = worker_of(process, self._generator)
            for unit, (load, units) in COUNTED_LOADS.items():
                counts = per_unit(
                    process, worker, self._generator, self._mock, load, units=units, seconds=COUNTED_SECONDS
                )
                figures[f"{SYSCALLS} per {unit}"] = counts[ALL_CALLS]
        return figures

    def cpu(self) -> dict[str, float]:
        """Of the worker, by that of the reference loop before and after each load."""
        ratios: dict[str, list[float]] = {unit: [] for unit in BUSY_LOADS}
        with self._start(self._target) as process:
            worker = worker_of(process, self._generator)
            reference_us = [_reference_us()]
            for _ in range(self._rounds):
                for unit, (load, units) in BUSY_LOADS.items():
                    figures = self._generator.load(
                        [*self._options(process, load, self._seconds), "--pids", str(worker)], within_s=60
                    )
                    reference_us.append(_reference_us())
                    cpu_us = figures["cpu_s"] * 1e6 / figures[units]
                    ratios[unit].append(cpu_us / statistics.mean(reference_us[-2:]))
        return {f"{CPU} per {unit}": statistics.median(found) for unit, found in ratios.items()}

    def instructions(self) -> dict[str, float]:
        """In user space; empty where the counter cannot be read."""
        perf = which("perf")
        if perf is None or not _counts_instructions(perf):
            return {}
        figures = {}
        with self._start(self._target) as process:
            worker = worker_of(process, self._generator)
            for unit, (load, units) in COUNTED_LOADS.items():
                command = [perf, "stat", "-x", ",", "-e", "instructions:u", "-p", str(worker)]
                counting = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
                time.sleep(0.3)
                total = self._generator.load(self._options(process, load), within_s=60)["total"]
                counting.send_signal(signal.SIGINT)
                _, said = counting.communicate(timeout=10)
                figures[f"{INSTRUCTIONS} per {unit}"] = int(said.split(",")[0]) / total[units]
        return figures


@dataclass
class Counted:
    """What a worker executed in a block."""

    seconds: float = 0.0
    executed: int = 0


@contextlib.contextmanager
def _counting_bytecodes(worker: int, directory: Path) -> Iterator[Counted]:
    """See counting/sitecustomize.py; the count is there when the block has ended."""
    counted = Counted()
    os.kill(worker, signal.SIGUSR2)
    began_at = time.monotonic()
    yield counted
    os.kill(worker, signal.SIGUSR2)
    counted.seconds = time.monotonic() - began_at
    counted.executed = _read_when_written(directory / str(worker))


def _read_when_written(path: Path) -> int:
    """The count; removes it. Failed when the worker does not answer the signal."""
    until = time.monotonic() + 10
    while not path.exists():
        if time.monotonic() > until:
            raise Failed("the worker did not write its count of bytecodes")
        time.sleep(0.02)
    count = int(path.read_text())
    path.unlink()
    return count


def _reference_us() -> float:
    """One run of the reference loop, on the proxy's core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {PROXY_CPU})
    try:
        command = [sys.executable, "-m", "tests.bench.reference"]
        return float(subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout)
    finally:
        os.sched_setaffinity(0, before)


def _counts_instructions(perf: str) -> bool:
    done = subprocess.run([perf, "stat", "-x", ",", "-e", "instructions:u", "true"], capture_output=True, text=True)
    return done.returncode == 0 and re.match(r"\d+,", done.stderr.strip()) is not None


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.name} instead of comparing with it")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of CPU time (default: {ROUNDS})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each load for it (default: {SECONDS})")
    options = parser.parse_args()
    prepare()
    measured: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="meter-proxy-bench-") as name:
        generator = Generator()
        with generator.mock(Path(name) / "mock") as mock:
            gate = Gate(generator, mock, Path(name), rounds=options.rounds, seconds=options.seconds)
            for measure in (gate.bytecodes, gate.syscalls, gate.cpu, gate.instructions):
                figures = measure()
                if options.record or any(each.is_fault for each in compare(_recorded(figures), figures)):
                    again = measure()
                    figures = {name: min(value, again[name]) for name, value in figures.items()}
                measured |= figures
    has_instructions = any(figure.startswith(INSTRUCTIONS) for figure in measured)
    methods = "bytecodes, system calls and CPU time by a reference loop"
    print(f"method: {methods}{', and machine instructions by perf' if has_instructions else ''}")
    if not has_instructions:
        print("perf cannot read the instruction counter here: machine instructions are not compared")

    facts = machine.facts()
    if options.record:
        rounded = {figure: float(f"{value:.5g}") for figure, value in measured.items()}
        RECORDED.write_text(json.dumps({"machine": facts, "figures": rounded}, indent=2) + "\n")
        print(markdown(["figure", "recorded"], [[figure, brief(value)] for figure, value in measured.items()]))
        return 0

    record = json.loads(RECORDED.read_text())
    is_another = _minor(str(record["machine"]["python"])) != _minor(str(facts["python"]))
    if is_another:
        print(f"recorded with Python {record['machine']['python']}: bytecodes are not compared")
        measured = {name: value for name, value in measured.items() if not name.startswith(BYTECODES)}
    recorded = comparable(record["figures"], python_is_another=is_another, has_instructions=has_instructions)
    differences = compare(recorded, measured)
    rows = [
        [each.name, *("-" if value is None else brief(value) for value in (each.recorded, each.measured)), str(each)]
        for each in differences
    ]
    print(markdown(["figure", "recorded", "now", "change"], rows))
    faults = [each for each in differences if each.is_fault]
    for each in faults:
        print(f"too much: {each.name}: {each}")
    print(f"{len(faults)} of {len(differences)} figures are more than {MAY_RISE:.0%} above the record, or gone")
    return 1 if faults else 0


def _recorded(figures: Mapping[str, float]) -> dict[str, float]:
    """What of these figures is in the record."""
    record = json.loads(RECORDED.read_text())["figures"]
    return {name: record[name] for name in figures if name in record}


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


if __name__ == "__main__":
    sys.exit(main())
