"""deploy/systemd/meter-proxy.service, looked at by systemd-analyze. No systemd runs it here."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest

from meter_proxy.config.schema import Limits
from meter_proxy.workers.supervisor import KILL_AFTER_S
from tests.support.proc import REPOSITORY
from tests.support.servers import installed_program, wheels_program

UNIT = REPOSITORY / "deploy" / "systemd" / "meter-proxy.service"
PROGRAM = "/opt/meter-proxy/bin/meter-proxy"
MOST_EXPOSED = 15  # tenths of systemd's points from 0 (safe) to 10


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze to its end."""
    command = [installed_program("systemd-analyze"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with the program where it is here: systemd looks whether it is there."""
    text = UNIT.read_text()
    assert text.count(PROGRAM) == 2
    path = tmp_path / UNIT.name
    path.write_text(text.replace(PROGRAM, wheels_program("meter-proxy")))
    return path


def test_systemd_understands_it(unit: Path) -> None:
    """No error, no warning: an unknown directive is one."""
    done = analyze("verify", str(unit))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("LockPersonality", "LockPersonalty"))
    assert "LockPersonalty" in analyze("verify", str(unit)).stderr


def test_it_is_sandboxed(unit: Path) -> None:
    """`systemd-analyze security` finds little that it could do and need not."""
    arguments = ("security", "--offline=true", f"--threshold={MOST_EXPOSED}")
    done = analyze(*arguments, str(unit))
    assert done.returncode == 0, done.stdout
    unit.write_text(re.sub(r"^(Protect|Private|Restrict|SystemCall|DynamicUser).*\n", "", unit.read_text(), flags=re.M))
    assert analyze(*arguments, str(unit)).returncode != 0


def test_it_waits_for_streams_to_end() -> None:
    """The time to stop is above the time to drain, and to settle what was cut."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    assert float(service["TimeoutStopSec"].removesuffix("s")) >= Limits().drain_timeout_s + KILL_AFTER_S
    assert (service["Type"], service["KillMode"]) == ("notify", "mixed")
