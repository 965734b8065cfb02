"""What `doctor` makes of what it has measured: when it hurts, and that it says what to do."""

import json
from pathlib import Path

import pytest

from meter_proxy.cli import machine, servers
from meter_proxy.cli.findings import Finding, Level, bad, good, note
from meter_proxy.cli.front import Pace, judged
from meter_proxy.config.schema import Config
from tests.unit.cli.conftest import Run


def test_few_open_files_hurt() -> None:
    """A stream takes two; the usual 1024 are 500 streams."""
    found = machine.open_files(1024)
    assert (found.level, found.message) == (Level.BAD, "1,024 per worker: room for about 512 streams at once")
    assert "LimitNOFILE" in found.advice
    assert machine.open_files(65_536).level is Level.GOOD


@pytest.mark.parametrize(
    ("free_mb", "level"), [(100, Level.BAD), (127, Level.BAD), (129, Level.NOTE), (5000, Level.GOOD)]
)
def test_a_full_disk_hurts_before_it_is_full(tmp_path: Path, free_mb: int, level: Level) -> None:
    """Two workers preallocate 128 MB."""
    found = machine.disk(tmp_path / "not" / "yet" / "there", 2, free_mb * 1024**2)
    assert found.level is level
    assert bool(found.advice) is (level is not Level.GOOD)


def test_a_state_dir_that_cannot_be_is_said(tmp_path: Path) -> None:
    """A file in its place."""
    (tmp_path / "file").touch()
    assert machine.disk(tmp_path / "file" / "state", 1).message == f"{tmp_path}/file is not a directory"


@pytest.mark.parametrize(
    ("ahead_s", "uncertain_s", "level"),
    [(0.4, 0.5, Level.GOOD), (2.4, 0.5, Level.GOOD), (2.6, 0.5, Level.BAD), (-9.0, 0.5, Level.BAD)],
)
def test_a_clock_is_wrong_only_when_it_is_surely_wrong(ahead_s: float, uncertain_s: float, level: Level) -> None:
    """HTTP's Date has whole seconds."""
    found = machine.clock("clock", ahead_s, uncertain_s)
    assert found.level is level
    if level is Level.BAD:
        assert ("ahead" in found.message) is (ahead_s > 0)
        assert "NTP" in found.advice


@pytest.mark.parametrize(
    ("direct", "through", "level"),
    [
        (Pace(40, 1.0, ""), Pace(39, 1.0, ""), Level.GOOD),
        (Pace(40, 1.0, ""), Pace(1, 0.0, ""), Level.BAD),
        (Pace(40, 1.0, ""), Pace(5, 0.9, ""), Level.BAD),
        (Pace(40, 1.0, ""), Pace(40, 1.0, "gzip"), Level.BAD),
        (Pace(2, 0.1, ""), Pace(1, 0.0, ""), Level.NOTE),
    ],
)
def test_a_stream_in_lumps_was_held_back_only_if_it_left_in_pieces(direct: Pace, through: Pace, level: Level) -> None:
    """A fast upstream is no buffer."""
    found = judged(direct, through)
    assert found.level is level
    assert bool(found.advice) is (level is not Level.GOOD)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the servers are found to be."""
    findings = [good("upstream local", "answers in 3 ms")]

    async def upstreams(config: Config) -> list[Finding]:
        return findings

    async def store(config: Config) -> list[Finding]:
        return [note("store", "slow", "place it closer")]

    monkeypatch.setattr(servers, "upstreams", upstreams)
    monkeypatch.setattr(servers, "store", store)
    monkeypatch.setattr(machine, "open_files", lambda: good("open files", "no limit"))
    return findings


def test_what_will_hurt_is_exit_1_and_has_its_advice_below(run: Run, found: list[Finding]) -> None:
    """Notes alone are exit 0."""
    words = ("doctor", "--upstream", "http://127.0.0.1:8000")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert "good  upstream local: answers in 3 ms\nnote  store: slow\n      -> place it closer\n" in out
    assert "\x1b" not in out
    found.append(bad("upstream b", "is gone", "start it"))
    code, out, _ = run(*words)
    assert code == 1
    assert "BAD   upstream b: is gone\n      -> start it\n" in out


def test_findings_for_programs(run: Run, found: list[Finding]) -> None:
    """The same, as one JSON document."""
    found.append(bad("upstream b", "is gone", "start it"))
    code, out, _ = run("doctor", "--upstream", "http://127.0.0.1:8000", "--format", "json")
    document = json.loads(out)
    assert (code, document["ok"]) == (1, False)
    assert {"level": "bad", "about": "upstream b", "message": "is gone", "advice": "start it"} in document["findings"]
