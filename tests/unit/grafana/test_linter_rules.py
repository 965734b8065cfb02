"""The rules of Grafana's dashboard-linter, by their names there, and some of our own.

https://github.com/grafana/dashboard-linter/blob/main/docs/index.md; its program cannot be installed here. No rule is
excluded; `target-logql-*` do not apply. The rules about panels hold for every kind of panel but rows.
"""

import re

import pytest

from tests.support.dashboards import (
    Json,
    Target,
    dashboard_files,
    label_values,
    load,
    panels,
    substituted,
    targets,
    variables,
)
from tests.support.promql import BUILT_IN, RATE_INTERVAL_S, Selector, selectors

# Of Grafana's list (valueFormats/categories.ts), those that are used. Ratios are percentunit: 1 is 100%.
UNITS = {"short", "percentunit", "s", "reqps", "cps", "currencyUSD", "bool_yes_no"}


@pytest.fixture(params=dashboard_files(), ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> Json:
    """Each dashboard."""
    return load(request.param)


def parsed(dashboard: Json) -> list[tuple[Target, list[Selector]]]:
    """Every target with its selectors; the chosen values of the variables stay as they are, inside of strings."""
    names = {one["name"]: f"<{one['name']}>" for one in variables(dashboard)}
    return [(one, selectors(substituted(one.expr, {**BUILT_IN, **names}))) for one in targets(dashboard)]


def test_there_are_three_dashboards() -> None:
    """Else the tests below would have nothing to look at."""
    assert [path.stem for path in dashboard_files()] == [
        "meter-proxy-billing",
        "meter-proxy-latency",
        "meter-proxy-overview",
    ]


def test_template_datasource_rule(dashboard: Json) -> None:
    """One variable chooses the data source, under the name and label that the linter knows."""
    sources = [one for one in dashboard["templating"]["list"] if one["type"] == "datasource"]
    assert [(one["name"], one["label"], one["query"]) for one in sources] == [
        ("datasource", "Data source", "prometheus")
    ]


@pytest.mark.parametrize(("name", "label"), [("job", "Job"), ("instance", "Instance")])
def test_template_job_and_instance_rule(dashboard: Json, name: str, label: str) -> None:
    """Both can be chosen, several at once; "All" is every value that is not empty."""
    found = [one for one in variables(dashboard) if one["name"] == name]
    wanted = {"label": label, "multi": True, "includeAll": True, "allValue": ".+"}
    assert [{member: one[member] for member in wanted} for one in found] == [wanted]


def test_template_label_promql_rule(dashboard: Json) -> None:
    """The query of each variable is PromQL inside of label_values, of the chosen data source."""
    for variable in variables(dashboard):
        series, label = label_values(variable["query"])
        assert len(selectors(series)) == 1
        assert label.isidentifier()
        assert variable["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_template_on_time_change_reload_rule(dashboard: Json) -> None:
    """What can be chosen is what there was in the time shown."""
    assert {one["name"]: one["refresh"] for one in variables(dashboard)} == {
        one["name"]: 2 for one in variables(dashboard)
    }


def test_panel_datasource_rule(dashboard: Json) -> None:
    """Panels and targets alike."""
    for panel in panels(dashboard):
        for one in [panel, *panel["targets"]]:
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]


def test_panel_title_description_rule(dashboard: Json) -> None:
    """Each has both; titles are short and unique, descriptions are sentences."""
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(set(titles)) == len(titles)
    for panel in panels(dashboard):
        assert 0 < len(panel["title"]) < 40
        assert not panel["title"].endswith(".")
        assert panel["description"].endswith("."), panel["title"]


def test_panel_units_rule(dashboard: Json) -> None:
    """A unit of Grafana's on each panel, and on each column of numbers of a table."""
    for panel in panels(dashboard):
        config = panel["fieldConfig"]
        units = [one["value"] for over in config["overrides"] for one in over["properties"] if one["id"] == "unit"]
        assert {config["defaults"]["unit"], *units} <= UNITS, panel["title"]
        assert panel["type"] != "table" or len(units) == len(panel["targets"])


def test_panel_no_targets_rule(dashboard: Json) -> None:
    """Something is asked, each under a letter of its own."""
    for panel in panels(dashboard):
        refs = [target["refId"] for target in panel["targets"]]
        assert refs
        assert len(set(refs)) == len(refs), panel["title"]


def test_target_promql_rule(dashboard: Json) -> None:
    """Every expression is PromQL and chooses series."""
    for target, found in parsed(dashboard):
        assert found, str(target)


def test_target_rate_interval_rule(dashboard: Json) -> None:
    """`rate` is never over another time; and `irate` is not used, it forgets what is between two points."""
    for target, found in parsed(dashboard):
        for one in found:
            caller = one.callers[0] if one.callers else ""
            assert caller != "irate", str(target)
            assert caller != "rate" or one.range_s == RATE_INTERVAL_S, str(target)


@pytest.mark.parametrize("label", ["job", "instance"])
def test_target_job_and_instance_rule(dashboard: Json, label: str) -> None:
    """Every selector of every expression follows both choices."""
    for target, found in parsed(dashboard):
        for one in found:
            assert one.matchers.get(label) == ("=~", f"<{label}>"), str(target)


def test_target_counter_agg_rule(dashboard: Json) -> None:
    """A counter is only looked at through a function that knows of resets: also sums, counts and buckets."""
    for target, found in parsed(dashboard):
        for one in found:
            if one.metric.endswith(("_total", "_bucket", "_sum", "_count")):
                assert one.callers[:1] in (["rate"], ["increase"]), f"{target}: {one.metric}"


def test_target_histogram_rule(dashboard: Json) -> None:
    """Buckets make a quantile, or a heat map that keeps `le`."""
    kinds = {panel["title"]: panel["type"] for panel in panels(dashboard)}
    for target, found in parsed(dashboard):
        for one in found:
            if one.metric.endswith("_bucket"):
                assert "histogram_quantile" in one.callers or kinds[target.panel] == "heatmap", str(target)


def test_uneditable_dashboard_rule(dashboard: Json) -> None:
    """What is provisioned is changed in the script."""
    assert dashboard["editable"] is False


# Ours.


def test_nothing_of_an_export_is_left(dashboard: Json) -> None:
    """`__inputs` would make provisioning fail; ids of one Grafana mean nothing in another."""
    assert not {"__inputs", "__requires", "__elements", "id", "iteration"} & dashboard.keys()
    assert dashboard["schemaVersion"] == 38  # Grafana 10.0
    assert re.fullmatch(r"[a-z-]{1,40}", dashboard["uid"])


def test_legends_name_labels_that_the_series_have(dashboard: Json) -> None:
    """Never `__auto`; and what stands in braces is grouped by, or a label of the single series."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            legend = target["legendFormat"]
            assert legend, panel["title"]
            assert legend != "__auto"
            kept = [
                name.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for name in group.split(",")
            ]
            for name in re.findall(r"\{\{(\w+)\}\}", legend):
                assert name in kept or name in ("instance", "what"), f"{panel['title']}: {name}"


def test_panels_fill_a_grid_without_overlap(dashboard: Json) -> None:
    """24 columns; each place belongs to one panel, and each panel has an id of its own."""
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not taken & cells, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_what_is_of_all_the_time_shown_is_asked_once(dashboard: Json) -> None:
    """An increase over `$__range` for each point of a line would be costly, and mean nothing."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            assert ("$__range" not in target["expr"]) or target["instant"], panel["title"]
            assert target["instant"] is not target["range"]
