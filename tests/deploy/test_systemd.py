"""deploy/systemd/meter-proxy.service, looked at by systemd-analyze. No systemd runs it here."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from meter_proxy.config.load import check, load_config
from meter_proxy.workers.supervisor import KILL_AFTER_S
from tests.support.proc import REPOSITORY
from tests.support.servers import installed_program, wheels_program

UNIT = REPOSITORY / "deploy" / "systemd" / "meter-proxy.service"
CONFIGURATION = UNIT.with_name("meter-proxy.yaml")
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


def directives(name: str) -> list[str]:
    """The values of a directive, which may be there several times."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def test_its_configuration_has_the_credentials_that_the_unit_loads(tmp_path: Path) -> None:
    """check-config finds nothing where the credentials are as systemd lays them out; the unit's times fit it."""
    for credential in directives("LoadCredential"):
        name, _, path = credential.partition(":")
        assert path == f"/etc/meter-proxy/credentials/{name}"
        (tmp_path / name).write_text(f"sk-{name}\n")
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert check(CONFIGURATION, environment) == []
    config = load_config(CONFIGURATION, environment)
    (directory,) = directives("StateDirectory")
    assert str(config.state_dir) == f"/var/lib/{directory}"
    (key,) = config.keys
    assert key.secret_sha256 == (hashlib.sha256(b"sk-first-key").digest(),)
    assert config.listen.is_loopback  # TLS is the edge's
    (stop,) = directives("TimeoutStopSec")
    assert float(stop.removesuffix("s")) >= config.limits.drain_timeout_s + KILL_AFTER_S
    assert directives("Type") == ["notify"]
    assert directives("KillMode") == ["mixed"]  # the parent tells its workers itself
