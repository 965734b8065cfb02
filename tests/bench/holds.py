"""How long meter-proxy's event loops are held, seen from outside: python -m tests.bench.holds

A connection of its own asks for /healthz every 2 ms on the public port (the worker's loop) and another on the admin
port (the parent's). An answer that is late counts from when its request was due, so one hold of 50 ms is seen 25 times.
In turn: an idle server, as the reference; scrapes of /metrics with more than 2,000 series; 100 paced streams; and both.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench.compare import scraping
from tests.bench.generator import Generator, finish_load
from tests.bench.results import brief, markdown
from tests.bench.rig import Running, get, prepare, raise_open_files
from tests.bench.scenarios import FOREVER
from tests.bench.targets import KEY, METER_PROXY, METER_PROXY_CONFIG, Place, find, running

KEYS = 150  # a key has about 17 series here: three quotas with four each, and what it has used
EXTRA_KEY = """\
  - id: user-{number}
    secret: sha256:{digest}
    quotas: [{{requests: 900M, per: day}}, {{tokens: 900M, per: day}}, {{cost_usd: 1000000, per: month}}]
"""
STREAMS = f"--stream --model {FOREVER}-d20 --connections 100"  # none starts or ends meanwhile
SCRAPE_EVERY_S = 0.5
PROBES_PER_S = 500


class Holds:
    """A running proxy with many keys, and the two probes."""

    def __init__(self, generator: Generator, mock: Running, process: Running, place: Place, seconds: float) -> None:
        self._generator = generator
        self._mock = mock
        self._process = process
        self._place = place
        self._seconds = seconds

    def use_all_keys(self) -> int:
        """A request with each key; then the number of series in /metrics."""
        for number in range(KEYS):
            request = urllib.request.Request(
                f"http://127.0.0.1:{self._process.port}/v1/chat/completions",
                data=b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}',
                headers={"Authorization": f"Bearer {_secret(number)}", "Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=10) as response:
                response.read()
        self._probe(self._process.port).communicate(timeout=60)  # records are on their way for about a second
        return len(re.findall(rb"^\w", get(self._place.admin, "/metrics"), re.MULTILINE))

    def under(self, *, load: bool, scrapes: bool) -> list[dict[str, float]]:
        """Latencies in us (`p50`, `p99`, `max`) of the public and of the admin port."""
        streams = None
        if load:
            options = ["--port", self._process.port, "--mock-port", self._mock.port, "--key", KEY, *STREAMS.split()]
            streams = self._generator.start_load([*map(str, options), "--seconds", str(self._seconds + 2)])
        try:
            if scrapes:
                with scraping(self._place.admin, every_s=SCRAPE_EVERY_S):
                    return self._probe_both()
            return self._probe_both()
        finally:
            if streams:
                finish_load(streams, within_s=60)

    def _probe_both(self) -> list[dict[str, float]]:
        probes = [self._probe(port) for port in (self._process.port, self._place.admin)]
        return [_answers(finish_load(probe, within_s=60)) for probe in probes]

    def _probe(self, port: int) -> "subprocess.Popen[str]":
        options = ["--port", port, "--get", "--path", "/healthz", "--rate", PROBES_PER_S, "--connections", 1]
        return self._generator.start_load([*map(str, options), "--warm-up", "1", "--seconds", str(self._seconds)])


def _answers(figures: dict[str, Any]) -> dict[str, float]:
    times: dict[str, float] = figures["answer_us"]
    return times


def _secret(number: int) -> str:
    return f"sk-test-{number:016d}"


def _with_many_keys(command: Callable[[Place], list[str | Path]]) -> Callable[[Place], list[str | Path]]:
    """The command of the target, on its configuration with KEYS more keys."""

    def with_keys(place: Place) -> list[str | Path]:
        arguments = command(place)
        digests = [hashlib.sha256(_secret(number).encode()).hexdigest() for number in range(KEYS)]
        keys = [EXTRA_KEY.format(number=number, digest=digest) for number, digest in enumerate(digests)]
        path = place.fill(METER_PROXY_CONFIG, "meter-proxy.yaml")
        path.write_text(path.read_text() + "".join(keys))
        return arguments

    return with_keys


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.holds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each of the four (default: 5)")
    options = parser.parse_args()
    prepare()
    files = raise_open_files()
    (target,), _ = find([METER_PROXY], litellm=None)
    assert target.command is not None
    target = replace(target, command=_with_many_keys(target.command))
    rows = []
    with tempfile.TemporaryDirectory(prefix="meter-proxy-bench-") as name:
        generator = Generator()
        with generator.mock(Path(name) / "mock") as mock:
            process, place = running(target, Path(name) / "proxy", mock.port, workers=1, files=files)
            with process:
                holds = Holds(generator, mock, process, place, options.seconds)
                print(f"{holds.use_all_keys():,} series in /metrics, scraped every {SCRAPE_EVERY_S} s")
                for what, load, scrapes in (
                    ("idle", False, False),
                    ("scrapes", False, True),
                    ("100 paced streams", True, False),
                    ("both", True, True),
                ):
                    found = holds.under(load=load, scrapes=scrapes)
                    figures = [brief(times[figure]) for times in found for figure in ("p50", "p99", "max")]
                    rows.append([what, *figures])
    heads = [f"{port} {figure}, us" for port in ("worker", "parent") for figure in ("p50", "p99", "max")]
    print(markdown(["", *heads], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
