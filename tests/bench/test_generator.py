"""The load generator and the mock agree on what went over the wire, in C and in Python, with each other's."""

from pathlib import Path
from typing import Any

import pytest

from tests.bench.generator import Generator
from tests.bench.rig import get_json

QUICK = ["--warm-up", "0.1", "--seconds", "0.4", "--connections", "5"]


def run(load: Generator, mock: Generator, directory: Path, *options: str) -> tuple[dict[str, Any], dict[str, int]]:
    """What the load saw in the whole run, and what the mock did."""
    with mock.mock(directory / "mock") as upstream:
        ports = ["--port", str(upstream.port), "--mock-port", str(upstream.port)]
        figures = load.load([*ports, *QUICK, *options], within_s=30)
        return figures, get_json(upstream.port, "/-/counts")


@pytest.fixture(params=[True, False], ids=["load native", "load python"])
def load(request: pytest.FixtureRequest) -> Generator:
    return Generator(native=request.param)


@pytest.fixture(params=[True, False], ids=["mock native", "mock python"])
def mock(request: pytest.FixtureRequest) -> Generator:
    return Generator(native=request.param)


@pytest.mark.parametrize("shape", ["m-n5-d2", "m-n20-d0", "m-n40-d1-j16", "m-n100000-d10"])
def test_every_event_that_was_generated_is_counted(
    load: Generator, mock: Generator, tmp_path: Path, shape: str
) -> None:
    """Also of the streams that the mock ends early, at the end of the run."""
    figures, counts = run(load, mock, tmp_path, "--stream", "--model", shape)
    total = figures["total"]
    assert total["requests"] == total["dones"] == counts["streams"] > 0
    assert total["finished_events"] == counts["output_tokens"] > 0
    assert figures["events"] == figures["event_us"]["count"] > 0
    assert not total["errors"] + total["not_200"] + total["without_done"] + total["unfinished"] + counts["hang_ups"]


@pytest.mark.parametrize("options", [(), ("--reconnect", "--sources", "4"), ("--body-bytes", "1000000")])
def test_every_plain_answer_is_counted(
    load: Generator, mock: Generator, tmp_path: Path, options: tuple[str, ...]
) -> None:
    figures, counts = run(load, mock, tmp_path, "--model", "m", *options)
    assert figures["total"]["requests"] == counts["plain"] == counts["requests"] > 0
    assert counts["output_tokens"] == 21 * counts["plain"]
    assert figures["total"]["errors"] + figures["total"]["not_200"] + figures["total"]["unfinished"] == 0


def test_a_client_that_leaves_after_three_events_is_a_hang_up(load: Generator, mock: Generator, tmp_path: Path) -> None:
    figures, counts = run(load, mock, tmp_path, "--stream", "--model", "m-n100000-d2", "--hang-up-after", "3")
    assert figures["total"]["hang_ups"] == counts["hang_ups"] > 0
    assert counts["hung_up_events"] >= 3 * counts["hang_ups"]
    assert figures["total"]["errors"] == 0


def test_held_streams_are_open_at_the_end_of_the_window(load: Generator, mock: Generator, tmp_path: Path) -> None:
    options = ("--stream", "--hold", "--model", "m-n100000-d5000", "--connections", "100")
    figures, counts = run(load, mock, tmp_path, *options)
    assert figures["open"] == figures["total"]["connections"] == counts["streams"] == 100


def test_an_open_loop_asks_at_its_rate(load: Generator, mock: Generator, tmp_path: Path) -> None:
    figures, _ = run(load, mock, tmp_path, "--model", "m", "--rate", "50")
    assert 15 <= figures["requests"] <= 25  # 20 are due in the window


def test_refusals_are_counted_apart(load: Generator, mock: Generator, tmp_path: Path) -> None:
    figures, _ = run(load, mock, tmp_path, "--get", "--path", "/version", "--rate", "50")
    assert figures["total"]["not_200"] > 0
    assert figures["total"]["last_not_200"] == 404
    assert figures["requests"] == 0
