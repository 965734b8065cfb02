"""What is checked in is what the script writes, and what Grafana's own types know."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import build
from tests.support.dashboards import DASHBOARDS, Json, dashboard_files, load, panels
from tests.support.proc import REPOSITORY

PROVISIONING = REPOSITORY / "grafana" / "provisioning"


def test_the_files_are_those_that_the_script_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, and no other file; `python -m grafana.build` makes it so."""
    monkeypatch.setattr(build, "DIRECTORY", tmp_path)
    build.main()
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text() for path in DASHBOARDS.iterdir()}


def unknown(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """What of `ours` is not in `theirs`, or is something else there."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name, value in ours.items():
            if name in theirs:
                yield from unknown(value, theirs[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from unknown(one, other, f"{path}[{index}]")
    elif ours != theirs:
        yield path


def through_the_sdk(dashboard: Json) -> Any:
    """Read by the types that Grafana Labs generates from its schemas, and written again, less what they do not know."""
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


@pytest.mark.parametrize("path", dashboard_files(), ids=lambda path: path.stem)
def test_every_member_is_one_that_grafana_knows(path: Path) -> None:
    """By grafana-foundation-sdk for Grafana 10.1: dashboard, panels, queries and each panel's own options."""
    dashboard = load(path)
    assert list(unknown(dashboard, through_the_sdk(dashboard))) == []


@pytest.mark.parametrize("kind", ["timeseries", "stat", "bargauge", "heatmap", "table"])
def test_a_misspelt_option_would_be_seen(kind: str) -> None:
    """So that the test above means something."""
    dashboard = next(one for one in map(load, dashboard_files()) if any(p["type"] == kind for p in panels(one)))
    panel = next(one for one in panels(dashboard) if one["type"] == kind)
    panel["options"]["mispelt"] = True
    panel["targets"][0]["exprr"] = ""
    index = dashboard["panels"].index(panel)
    assert list(unknown(dashboard, through_the_sdk(dashboard))) == [
        f".panels[{index}].options.mispelt",
        f".panels[{index}].targets[0].exprr",
    ]


def test_provisioning_finds_the_dashboards_and_the_data_source() -> None:
    """One provider of files that nobody edits in Grafana, and one Prometheus, which is the default."""
    [provider] = yaml.safe_load((PROVISIONING / "dashboards" / "meter-proxy.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards/meter-proxy"
    assert provider["allowUiUpdates"] is False
    [source] = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    scrape = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]


def test_the_readme_counts_right() -> None:
    """Panels and queries of each dashboard."""
    readme = (REPOSITORY / "grafana" / "README.md").read_text()
    for path in dashboard_files():
        shown = panels(load(path))
        queries = sum(len(panel["targets"]) for panel in shown)
        [line] = [line for line in readme.splitlines() if line.startswith(f"| `{path.name}`")]
        assert line.endswith(f" | {len(shown)} | {queries} |")
