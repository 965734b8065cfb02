"""Dashboards and alerts know the metrics that there are, and none is forgotten."""

from pathlib import Path

import pytest
import yaml

from meter_proxy.telemetry.metrics import Metrics
from tests.support.dashboards import RULES, dashboard_files, label_values, load, substituted, targets, variables
from tests.support.promql import BUILT_IN, Selector, selectors

OF_PROMETHEUS = {"up"}
HISTOGRAM = ("_bucket", "_count", "_sum")


def labels_by_series() -> dict[str, set[str]]:
    """Every series' name that the product exposes, with its labels."""
    known: dict[str, set[str]] = {}
    for family in Metrics(version="1", servers={}).families:
        labels = {*family.label_names, "job", "instance"}
        if family.kind == "histogram":
            known |= {family.name + end: labels | {"le"} for end in HISTOGRAM}
        else:
            known[family.name] = labels
    return known


def asked_by_dashboard(path: Path) -> list[Selector]:
    """All selectors of its targets and of its variables."""
    dashboard = load(path)
    names = {one["name"]: "x" for one in variables(dashboard)}
    exprs = [substituted(one.expr, {**BUILT_IN, **names}) for one in targets(dashboard)]
    exprs += [substituted(label_values(one["query"])[0], names) for one in variables(dashboard)]
    return [selector for expr in exprs for selector in selectors(expr)]


def asked_by_alerts() -> list[Selector]:
    """All selectors of the rules."""
    groups = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    return [selector for group in groups for rule in group["rules"] for selector in selectors(rule["expr"])]


ASKED = {**{path.stem: asked_by_dashboard(path) for path in dashboard_files()}, "alerts": asked_by_alerts()}


@pytest.mark.parametrize("where", ASKED)
def test_every_metric_that_is_asked_for_exists_with_these_labels(where: str) -> None:
    """Else a panel stays empty and an alert silent for ever."""
    known = labels_by_series()
    for selector in ASKED[where]:
        if selector.metric not in OF_PROMETHEUS:
            assert selector.metric in known
            assert selector.matchers.keys() <= known[selector.metric], selector.metric


def test_every_metric_that_exists_is_shown() -> None:
    """On a dashboard or in an alert: a metric that nobody looks at is not worth its series."""
    asked = {selector.metric for found in ASKED.values() for selector in found}
    shown = {name.removesuffix(end) for name in asked for end in (*HISTOGRAM, "")}
    assert {family.name for family in Metrics(version="1", servers={}).families} - shown == set()
