"""System calls of a proxy's worker per chunk and per request, beside nginx: python -m tests.bench.syscalls

strace counts all calls of the busiest process of each proxy, from before a steady load until after it; so the
house-keeping of that time is in it. The load is light: strace makes each call slower, and a proxy that is behind reads
more at a time.
"""

import argparse
import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.generator import Generator
from tests.bench.results import brief, markdown
from tests.bench.rig import Failed, Running, busiest, prepare, raise_open_files, which
from tests.bench.scenarios import FOREVER
from tests.bench.targets import KEY, NAMES, find, running

GROUPS = {
    "read": {"read", "readv", "recv", "recvfrom", "recvmsg"},
    "write": {"write", "writev", "send", "sendto", "sendmsg", "sendfile"},
    "epoll wait": {"epoll_wait", "epoll_pwait", "epoll_pwait2"},
    "epoll ctl": {"epoll_ctl"},
}
OTHER, ALL_CALLS = "other", "all"

# name of a unit -> the load, and which of its totals counts the units
LOADS = {
    "paced chunk": (f"--stream --model {FOREVER}-d10 --connections 10", "finished_events"),  # few starts, many chunks
    "short stream": ("--stream --model m-n1-d0 --rate 150 --connections 16", "requests"),
    "plain request": ("--model m --rate 200 --connections 16", "requests"),
}
_ROW = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", re.MULTILINE)


def in_groups(summary: str) -> dict[str, int]:
    """Calls per group in what `strace -c` printed."""
    counts = dict.fromkeys([*GROUPS, OTHER], 0)
    for calls, name in _ROW.findall(summary):
        if name != "total":
            counts[next((group for group, names in GROUPS.items() if name in names), OTHER)] += int(calls)
    return {**counts, ALL_CALLS: sum(counts.values())}


def per_unit(
    process: Running, worker: int, generator: Generator, mock: Running, load: str, *, units: str, seconds: float
) -> dict[str, float]:
    """Calls of this worker of a running proxy, by group, per unit of this load."""
    options = ["--port", str(process.port), "--mock-port", str(mock.port), "--key", KEY, *load.split()]
    with tempfile.TemporaryDirectory(prefix="meter-proxy-strace-") as directory:
        with _counting(worker, Path(directory) / "summary") as summary:
            total = generator.load([*options, "--seconds", str(seconds)], within_s=60)["total"]
        counts = in_groups(summary.read_text())
    if total["errors"] or total["not_200"]:
        raise Failed(f"{total['errors']} errors, {total['not_200']} refusals under strace")
    return {group: calls / total[units] for group, calls in counts.items()}


def worker_of(process: Running, generator: Generator) -> int:
    """The pid of the process that does the work: the busiest one under a load that keeps it busy."""
    options = ["--port", str(process.port), "--key", KEY, "--model", "m", "--connections", "8"]
    load = generator.start_load([*options, "--warm-up", "0.5", "--seconds", "1"])
    try:
        time.sleep(0.5)  # what is done once, at the first requests, is over
        return busiest(process.pids(), 0.8)
    finally:
        load.communicate(timeout=60)


@contextlib.contextmanager
def _counting(pid: int, summary: Path) -> Iterator[Path]:
    """Count the calls of all threads of `pid` during the block; the file is complete afterwards."""
    program = which("strace")
    if program is None:
        raise Failed("strace is not installed (Debian: apt-get install strace)")
    strace = subprocess.Popen(
        [program, "-c", "-f", "-o", str(summary), "-p", str(pid)], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert strace.stderr is not None
        said = strace.stderr.readline().decode()  # "strace: Process 12 attached", or why not
        if "attached" not in said:
            raise Failed(said.strip())
        yield summary
    finally:
        strace.send_signal(signal.SIGINT)
        strace.communicate(timeout=20)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.syscalls", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", default="nginx,meter-proxy", metavar="A,B", help=f"of {', '.join(NAMES[1:])}")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load (default: 4)")
    parser.add_argument("--litellm", metavar="PATH", help="the command `litellm`")
    options = parser.parse_args()
    prepare()
    files = raise_open_files()
    targets, missing = find(options.targets.split(","), litellm=options.litellm)
    for name, reason in missing.items():
        print(f"left out: {name}: {reason}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="meter-proxy-bench-") as name:
        generator = Generator()
        with generator.mock(Path(name) / "mock") as mock:
            for target in targets:
                process, _ = running(target, Path(name) / target.name, mock.port, workers=1, files=files)
                with process:
                    worker = worker_of(process, generator)
                    for unit, (load, units) in LOADS.items():
                        counts = per_unit(process, worker, generator, mock, load, units=units, seconds=options.seconds)
                        rows.append([unit, target.name, *map(brief, counts.values())])
    rows.sort(key=lambda row: list(LOADS).index(row[0]))
    print(markdown(["per", "target", *GROUPS, OTHER, ALL_CALLS], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
