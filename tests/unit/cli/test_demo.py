"""The demo, where nothing must go wrong and something does."""

import asyncio
import stat
import sys
from pathlib import Path

import pytest

from meter_proxy.cli import demo
from meter_proxy.config.load import load_config
from meter_proxy.errors import CannotStart
from tests.support.proc import is_running

READY = "echo 'meter-proxy: serving http://127.0.0.1:1234 (admin http://127.0.0.1:5678)'"


@pytest.fixture
def stage(tmp_path: Path) -> demo.Stage:
    return demo.Stage(tmp_path, "http://127.0.0.1:8000/v1", {key: f"sk-{key}" for key in demo.KEYS}, truths=[])


def stand_in(directory: Path, script: str) -> str:
    """A program that is started instead of the proxy."""
    path = directory / "stand-in"
    path.write_text(f"#!/bin/sh\necho $$ >{directory}/pid\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


async def test_a_proxy_that_cannot_start_is_one_clear_line(
    stage: demo.Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last word on stderr is ours."""
    script = "echo noise >&2; echo 'meter-proxy: port 8080 is taken' >&2; exit 3"
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))
    with pytest.raises(CannotStart, match="the proxy did not start: meter-proxy: port 8080 is taken"):
        async with demo._serving(stage):
            pytest.fail("it never served")


async def test_a_proxy_that_never_gets_ready_is_ended(
    stage: demo.Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is bounded, the message names the log, and no process stays behind."""
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, "exec sleep 60"))
    monkeypatch.setattr(demo, "START_WITHIN_S", 0.2)
    with pytest.raises(CannotStart, match=r"not ready after 0.2 s; see .*serve\.log"):
        async with demo._serving(stage):
            pytest.fail("it never served")
    assert not is_running(int((tmp_path / "pid").read_text()))


async def test_a_proxy_that_will_not_stop_is_killed(
    stage: demo.Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM first, SIGKILL when that is ignored: no orphan either way."""
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, f"trap '' TERM; {READY}; while :; do sleep 0.1; done"))
    monkeypatch.setattr(demo, "STOP_WITHIN_S", 0.2)
    async with demo._serving(stage):
        pass
    assert not is_running(int((tmp_path / "pid").read_text()))


async def test_an_error_on_stage_ends_the_proxy(
    stage: demo.Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens while it serves, also being cancelled, the proxy is ended."""
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, f"{READY}; exec sleep 60"))
    with pytest.raises(asyncio.CancelledError):
        async with demo._serving(stage):
            raise asyncio.CancelledError
    assert not is_running(int((tmp_path / "pid").read_text()))


async def test_ports_in_use_are_no_obstacle(stage: demo.Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Usual ports first; when the proxy gives up, free ones, and its addresses are what it says."""
    script = f"grep -q :8080 {stage.config_path} && exit 3; {READY}; exec sleep 60"
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))
    async with demo._serving(stage) as proxy:
        assert (proxy.public_url, proxy.admin_url) == ("http://127.0.0.1:1234", "http://127.0.0.1:5678")


@pytest.mark.parametrize("ports", [demo.USUAL_PORTS, demo.FREE_PORTS])
def test_the_configuration_is_good_and_holds_no_secret(stage: demo.Stage, ports: tuple[str, str]) -> None:
    """What the demo writes has no fault, and only digests of its keys."""
    stage.write_config(*ports)
    config = load_config(stage.config_path, {})
    assert [key.id for key in config.keys] == list(demo.KEYS)
    assert {scene.model for scene in demo.SCENES} == set(config.models)
    written = stage.config_path.read_text()
    assert not any(secret in written for secret in stage.api_keys.values())


def test_the_bill_has_a_row_per_request_and_a_total(capsys: pytest.CaptureFixture[str]) -> None:
    """The refused request stands in its place, with nothing to pay."""
    record = {"model": "gpt-4o", "input_tokens": 4, "output_tokens": 24, "cost_nano_usd": 250_000}
    records = [
        {**record, "key": scene.key, "basis": "reported", "outcome": "completed"} for scene in demo.SCENES if scene.key
    ]
    demo._print_bill(records)
    heading, *rows = capsys.readouterr().out.strip().splitlines()
    assert heading.split() == ["key", "model", "input", "output", "cost", "basis", "outcome"]
    assert len(rows) == len(demo.SCENES) + 1
    assert rows[3].split() == ["unknown", "gpt-4o", "0", "0", "$0.00000", "none", "denied"]
    assert rows[-1].split() == ["total", "20", "120", "$0.00125"]
    assert rows[0].split()[4] == "$0.00025"


@pytest.mark.parametrize(
    ("started_as", "expected"),
    [
        ("/x/meter_proxy/__main__.py", [sys.executable, "-m", "meter_proxy"]),
        ("/x/bin/meter-proxy", ["/x/bin/meter-proxy"]),
    ],
)
def test_the_usage_command_is_one_that_runs_here(
    started_as: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the demo itself was started; a bare name only where the PATH leads to the same program."""
    monkeypatch.setattr(sys, "argv", [started_as, "demo"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert demo._our_command() == expected
