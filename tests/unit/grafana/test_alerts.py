"""The configuration of Prometheus, by its own promtool; and that no alert is without a test."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.dashboards import RULES
from tests.support.servers import installed_program


def promtool(*arguments: str | Path) -> str:
    """Run it in the rules' directory; what it prints. AssertionError if it finds a fault."""
    run = subprocess.run(
        [installed_program("promtool"), *map(str, arguments)], cwd=RULES, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def rules() -> dict[str, Any]:
    """Each alert by its name."""
    groups = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def cases() -> dict[str, list[bool]]:
    """By alert: for each of its test cases, whether it fires there."""
    found: dict[str, list[bool]] = {name: [] for name in rules()}
    for test in yaml.safe_load((RULES / "alerts.test.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            found[case["alertname"]].append(bool(case["exp_alerts"]))
    return found


def test_promtool_check_config_and_rules() -> None:
    """With all lints."""
    assert "1 rule files found" in promtool("check", "config", "prometheus.yml")
    assert f"{len(rules())} rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", "alerts.yml")


def test_promtool_test_rules() -> None:
    """Each alert fires where it must, with its words, and not for what stands beside that."""
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yml")


@pytest.mark.parametrize("name", rules())
def test_every_alert_is_tested_and_says_what_to_do(name: str) -> None:
    """It fires in some case; its texts are whole; it has a severity, and a name that tells whose it is."""
    rule = rules()[name]
    assert any(cases()[name])
    assert name.startswith("MeterProxy")
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert rule["annotations"]["description"].rstrip().endswith((".", "?"))


def test_the_readme_lists_every_alert() -> None:
    """Under the severity that it has."""
    lines = [line for line in (RULES / "README.md").read_text().splitlines() if line.startswith("| `MeterProxy")]
    listed: dict[str, str] = {}
    for line in lines:
        _, names, severities, *_ = line.split("|")
        alerts, kinds = re.findall(r"`(\w+)`", names), severities.strip().split(", ")
        listed |= dict(zip(alerts, kinds if len(kinds) > 1 else kinds * len(alerts), strict=True))
    assert listed == {name: rule["labels"]["severity"] for name, rule in rules().items()}
