"""`check-config` and `config schema` as they are typed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from meter_proxy.cli.main import application

GOOD = """\
upstreams: {local: {base_url: "http://127.0.0.1:8000/v1"}}
models: {"*": {upstream: local}, a: {upstream: local}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(GOOD)
    return path


def test_a_good_file_is_one_line_and_exit_0(file: Path) -> None:
    """It says what was found, so that a file with half its keys commented out is noticed."""
    result = CliRunner().invoke(application(), ["check-config", str(file)])
    assert result.exit_code == 0
    assert result.output == f"{file}: good: 1 upstream, 2 models, 0 plans, 0 keys, 0 accounts\n"


def test_every_fault_is_a_line_and_exit_2(file: Path) -> None:
    """In the form that editors jump to."""
    file.write_text(GOOD + "worker: 1\nlisten: 0.0.0.0:1\nadmin_token: ${METER_PROXY_TEST_UNSET}\n")
    result = CliRunner().invoke(application(), ["check-config", str(file)])
    assert result.exit_code == 2
    assert result.output.splitlines() == [
        f"{file}:3:1: worker: unknown key 'worker'; did you mean 'workers'?",
        f"{file}:4:9: listen: 0.0.0.0:1 is not on loopback and there are no keys: "
        "add keys, or start with --allow-anonymous",
        f"{file}:5:14: admin_token: environment variable METER_PROXY_TEST_UNSET is not set; "
        "set it, or write ${METER_PROXY_TEST_UNSET:-default}",
    ]


def test_the_same_for_programs(file: Path) -> None:
    """--format json has the parts of each fault."""
    good = CliRunner().invoke(application(), ["check-config", str(file), "--format", "json"])
    assert (good.exit_code, json.loads(good.output)) == (0, {"ok": True, "faults": []})
    file.write_text(GOOD + "workers: 0\n")
    bad = CliRunner().invoke(application(), ["check-config", str(file), "--format", "json"])
    fault = {"file": str(file), "line": 3, "column": 10, "path": "workers", "message": "must be at least 1"}
    assert (bad.exit_code, json.loads(bad.output)) == (2, {"ok": False, "faults": [fault]})


def test_an_open_listener_can_be_meant(file: Path) -> None:
    """What serve would take with --allow-anonymous is good with it here, too."""
    file.write_text(GOOD + "listen: 0.0.0.0:1\n")
    assert CliRunner().invoke(application(), ["check-config", str(file)]).exit_code == 2
    assert CliRunner().invoke(application(), ["check-config", str(file), "--allow-anonymous"]).exit_code == 0


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    """No traceback."""
    result = CliRunner().invoke(application(), ["check-config", str(tmp_path / "gone")])
    assert result.exit_code == 2
    assert result.output == f"{tmp_path}/gone:1:1: cannot read the file: No such file or directory\n"


def test_config_schema_prints_a_json_schema() -> None:
    """For editors: every section has its description."""
    result = CliRunner().invoke(application(), ["config", "schema"])
    schema = json.loads(result.output)
    assert result.exit_code == 0
    assert {"listen", "upstreams", "models", "plans", "keys", "accounts"} <= set(schema["properties"])
    assert all(section["description"] for section in schema["$defs"].values())
