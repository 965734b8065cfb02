"""Proxies side by side on one load: python -m tests.bench.compare (or `make bench`)

In turn (round, target, scenario) each proxy gets a core of its own, the mock upstream and the load generator another.
CPU is the run time of all processes and threads of a proxy over exactly the measured window. meter-proxy runs with
everything on: a key, three quotas, prices, the embedded store, the journal, and metrics that are scraped each second.
After each of its runs its books must say, to the token, what the mock says it generated.

    python -m tests.bench.compare --scenarios paced,json --rounds 3        two scenarios, in about two minutes
    python -m tests.bench.compare --targets nginx,meter-proxy              two proxies
    python -m tests.bench.compare --litellm /opt/litellm/bin/litellm       LiteLLM, too, from its own environment
    python -m tests.bench.compare --json bench.json --svg bench.svg        keep all runs; draw them

Absolute figures move by 30% between hours on machines that others use, too: quote ratios of one table only.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from tests.bench import draw, machine
from tests.bench.generator import Generator
from tests.bench.results import Run, faults, line, run_of, table
from tests.bench.rig import CPUS, Failed, Running, get, get_json, prepare, raise_open_files
from tests.bench.scenarios import ALL, BY_NAME, Scenario
from tests.bench.targets import KEY, METER_PROXY, NAMES, Place, Target, find, running

WARM_UP = (("--model", "m"), ("--stream", "--model", "m-n20-d10"))
SETTLED_AFTER_S = 1.5  # without a change; records reach the admin port after about a second
SETTLES_WITHIN_S = 30.0


class Bench:
    """One benchmark: a mock, a generator, and proxies that come and go."""

    def __init__(self, generator: Generator, mock: Running, directory: Path, *, seconds: float, workers: int) -> None:
        self._generator = generator
        self._mock = mock
        self._directory = directory
        self._seconds = seconds
        self._workers = workers
        self._files = raise_open_files()

    def run(self, round_: int, target: Target, scenarios: list[Scenario]) -> Iterator[Run]:
        """All scenarios on one target; a proxy that does not start, or a load that gives up, is a failed run."""
        together = [scenario for scenario in scenarios if not scenario.streams_held]
        alone = [[scenario] for scenario in scenarios if scenario.streams_held]  # memory counts from a fresh start
        for group in filter(None, [together, *alone]):
            left = list(group)
            try:
                with self._proxy(target) as (process, place):
                    while left:
                        yield self._measure(round_, target, left[0], process, place)
                        left.pop(0)
            except Failed as exc:
                yield from (Run(round_, target.name, scenario.name, failed=str(exc)) for scenario in left)

    @contextlib.contextmanager
    def _proxy(self, target: Target) -> Iterator[tuple[Running | None, Place | None]]:
        """The target, running and warm."""
        if target.command is None:
            yield None, None
            return
        directory = self._directory / target.name
        process, place = running(target, directory, self._mock.port, workers=self._workers, files=self._files)
        with process:
            for options in WARM_UP:
                warm = ["--connections", "4", "--warm-up", "0", "--seconds", str(target.warm_up_s), *options]
                self._generator.load([*self._common(process.port), *warm], within_s=60)
            yield process, place

    def _measure(
        self, round_: int, target: Target, scenario: Scenario, process: Running | None, place: Place | None
    ) -> Run:
        held = min(scenario.streams_held, (self._files - 500) // 2)  # a proxy needs two files a stream
        options = [*self._common(process.port if process else self._mock.port), *scenario.options]
        options += ["--seconds", str(self._seconds * scenario.lasts)]
        if held:
            options += ["--connections", str(held)]
        if target.is_slow and "--warm-up" not in options:
            options += ["--warm-up", str(target.warm_up_s)]  # it takes seconds until all streams are on
        if process:
            options += ["--pids", ",".join(map(str, process.pids()))]
        has_books = place is not None and target.name == METER_PROXY
        before = self._ahead(place) if place and has_books else 0
        try:
            with scraping(place.admin) if place and has_books else contextlib.nullcontext():
                load = self._generator.load(options, within_s=120 + self._seconds * scenario.lasts)
        except Failed as exc:
            return Run(round_, target.name, scenario.name, failed=str(exc))
        run = run_of(round_, target.name, scenario, load, held, has_cpu=process is not None)
        if not (place and has_books):
            return run
        return replace(run, books_differ_by=self._ahead(place) - before)

    def _common(self, port: int) -> list[str]:
        return ["--port", str(port), "--mock-port", str(self._mock.port), "--key", KEY]

    def _generated(self) -> int:
        """Tokens of all answers that the mock has finished."""
        counts = get_json(self._mock.port, "/-/counts")
        return int(counts["input_tokens"]) + int(counts["output_tokens"])

    def _booked(self, place: Place) -> int:
        """Tokens of all keys in the books."""
        rows = get_json(place.admin, "/api/usage?by=key")["data"]
        return sum(int(row["input_tokens"]) + int(row["output_tokens"]) for row in rows)

    def _ahead(self, place: Place) -> int:
        """Tokens that were booked more than generated, ever; once the books do not change any more."""
        until = time.monotonic() + SETTLES_WITHIN_S
        booked = self._booked(place)
        while True:
            time.sleep(SETTLED_AFTER_S)
            was, booked = booked, self._booked(place)
            if booked == was or time.monotonic() > until:
                return booked - self._generated()


@contextlib.contextmanager
def scraping(admin_port: int, *, every_s: float = 1.0) -> Iterator[None]:
    """GET /metrics as Prometheus does, only more often."""
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.wait(every_s):
            with contextlib.suppress(Failed):
                get(admin_port, "/metrics")

    thread = threading.Thread(target=scrape, name="scrape")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def main() -> int:
    """Run it; 1 when meter-proxy got anything wrong."""
    options = _options()
    prepare()
    try:
        targets, missing = find(options.targets, litellm=options.litellm)
        generator = Generator(native=not options.fallback)
    except Failed as exc:
        print(exc, file=sys.stderr)
        return 3
    scenarios = [BY_NAME[name] for name in options.scenarios]
    facts = machine.facts()
    print(f"machine: {', '.join(f'{name} {value}' for name, value in facts.items())}")
    print(f"load generator and mock: {generator.kind}")
    if len(CPUS) < 2:
        print("one cpu only: proxy, load and mock share it, and disturb each other")
    for name, reason in missing.items():
        print(f"left out: {name}: {reason}")
    files = raise_open_files()
    if any(scenario.streams_held > (files - 500) // 2 for scenario in scenarios):
        print(f"at most {(files - 500) // 2:,} quiet streams: the limit of open files here is {files:,}")

    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="meter-proxy-bench-") as name, generator.mock(Path(name) / "mock") as mock:
        bench = Bench(generator, mock, Path(name), seconds=options.seconds, workers=options.workers)
        for round_ in range(options.rounds):
            for target in targets:
                for run in bench.run(round_, target, scenarios):
                    runs.append(run)
                    print(line(run), flush=True)

    for scenario in scenarios:
        print(f"\n{table(runs, scenario)}")
    outcome = {
        "machine": facts,
        "generator": generator.kind,
        "versions": {target.name: target.version for target in targets if target.version},
        "left_out": missing,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "workers": options.workers,
        "runs": [run.as_dict() for run in runs],
    }
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=1) + "\n")
    if options.svg:
        options.svg.write_text(draw.svg(outcome))
    found = faults(runs)
    print()
    for fault in found:
        print(f"meter-proxy: {fault}")
    if METER_PROXY in options.targets and not found:
        print("meter-proxy: every answer was whole, and the books agree with the mock to the token")
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    scenarios = "\n".join(f"  {scenario.name:15} {scenario.what}" for scenario in ALL)
    parser.epilog = f"scenarios:\n{scenarios}\n\ntargets: {', '.join(NAMES)}"
    parser.add_argument("--targets", type=_names(NAMES), metavar="A,B", help="which proxies (default: all)")
    parser.add_argument("--scenarios", type=_names(BY_NAME), metavar="A,B", default=list(BY_NAME), help="which loads")
    parser.add_argument("--rounds", type=int, default=5, help="how often; medians are of these (default: 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="the measured window (default: 3)")
    parser.add_argument("--workers", type=int, default=1, help="of meter-proxy, on its one core (default: 1)")
    parser.add_argument("--litellm", metavar="PATH", help="the command `litellm`, to measure that, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all runs and the machine's facts here")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the comparison here")
    parser.add_argument(
        "--fallback", action="store_true", help="the Python load generator and mock, even with a compiler"
    )
    options = parser.parse_args()
    if options.targets is None:
        options.targets = [name for name in NAMES if name != "litellm" or options.litellm]
        if not options.litellm:
            print("left out: litellm: no command was given for it (--litellm PATH)")
    return options


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    """For argparse: `a,b` as a list of known names."""

    def read(text: str) -> list[str]:
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"there is no {name!r}, only {', '.join(known)}")
        return text.split(",")

    return read


if __name__ == "__main__":
    sys.exit(main())
