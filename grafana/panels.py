"""Small builders for Grafana's classic dashboard JSON: what is the same in each panel stands here.

Written for Grafana 10 (schemaVersion 38); later versions migrate it. `dashboard` gives each panel its place: from left
to right, row by row, as wide as it says.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Json = dict[str, Any]

SCHEMA_VERSION = 38  # Grafana 10.0
GRID_COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COMMON = 'job=~"$job",instance=~"$instance"'
RATE = "[$__rate_interval]"
RANGE = "[$__range]"
GREEN, YELLOW, RED = "green", "yellow", "red"


class Query(NamedTuple):
    """One target: what is asked, and the name of its series."""

    expr: str
    legend: str


class Column(NamedTuple):
    """One column of numbers in a table: its query must keep exactly the labels that the table has."""

    title: str
    expr: str
    unit: str
    is_bar: bool = False  # a share of 1, shown as a bar that is yellow from 80% on and red at 100%


# PromQL.


def select(metric: str, *matchers: str) -> str:
    """The series of a metric with these matchers, of the chosen jobs and instances."""
    return f"{metric}{{{','.join([COMMON, *matchers])}}}"


def rate(metric: str, *matchers: str, by: str = "") -> str:
    """Its increase per second, added up by these labels (separated by commas)."""
    return f"{_sum(by)}(rate({select(metric, *matchers)}{RATE}))"


def grown(metric: str, *matchers: str, by: str = "") -> str:
    """Its increase over the time shown, added up."""
    return f"{_sum(by)}(increase({select(metric, *matchers)}{RANGE}))"


def quantile(share: float, metric: str, *matchers: str, by: str = "") -> str:
    """A quantile of a histogram, of what was observed lately."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', *matchers, by=labels)})"


def share(part: str, whole: str) -> str:
    """part / whole. Where there is a whole and no series of the part, that is 0; where there is no whole, nothing."""
    return f"({part} or 0 * {whole}) / {whole}"


def _sum(by: str) -> str:
    return f"sum by ({by}) " if by else "sum "


# Panels.


def row(title: str) -> Json:
    """A heading."""
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"h": 1, "w": GRID_COLUMNS}}


def stat(
    title: str,
    description: str,
    query: Query,
    unit: str,
    *,
    over_range: bool = False,
    since: str = "",
    thresholds: Sequence[tuple[float, str]] = (),
) -> Json:
    """One number. `over_range`: it is of all the time shown; `since`: of the time from then on (`now/d`) instead."""
    instant = over_range or bool(since)
    options = {
        "colorMode": "value" if thresholds else "none",
        "graphMode": "none" if instant else "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "value",
    }
    panel = _panel("stat", title, description, [query], unit, options, instant=instant, thresholds=thresholds)
    return _sized(_since(panel, since), 4, 4)


def timeseries(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    axis: str = "",
    stacked: bool = False,
    most: float | None = None,
    w: int = 12,
) -> Json:
    """Lines over time, or areas on each other. `most`: where the axis ends."""
    options = {
        "legend": {"calcs": ["lastNotNull", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    panel = _panel("timeseries", title, description, queries, unit, options)
    panel["fieldConfig"]["defaults"] |= {
        "min": 0,
        **({} if most is None else {"max": most}),
        "custom": {
            "axisLabel": axis,
            "drawStyle": "line",
            "fillOpacity": 30 if stacked else 10,
            "lineWidth": 1,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
        },
    }
    return _sized(panel, w, 8)


def bars(title: str, description: str, query: Query, unit: str, *, w: int = 12) -> Json:
    """One horizontal bar per series, for the time shown."""
    options = {
        "displayMode": "basic",
        "minVizHeight": 10,
        "minVizWidth": 0,
        "orientation": "horizontal",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showUnfilled": True,
        "valueMode": "color",
    }
    panel = _panel("bargauge", title, description, [query], unit, options, instant=True)
    panel["fieldConfig"]["defaults"]["min"] = 0
    return _sized(panel, w, 8)


def heatmap(title: str, description: str, metric: str, *matchers: str) -> Json:
    """Where the observations of a histogram in seconds lie, over time."""
    query = Query(f"sum by (le) (increase({select(f'{metric}_bucket', *matchers)}{RATE}))", "{{le}}")
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"exponent": 0.5, "fill": "dark-orange", "mode": "scheme", "scheme": "Oranges", "steps": 64},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"show": True, "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": "s"},
    }
    panel = _panel("heatmap", title, description, [query], "short", options)
    panel["targets"][0]["format"] = "heatmap"
    return _sized(panel, 12, 8)


def table(
    title: str, description: str, labels: Sequence[str], *columns: Column, since: str = "", w: int = 12, h: int = 8
) -> Json:
    """A line per combination of labels, sorted by the first column of numbers, the highest first."""
    queries = [Query(column.expr, column.title) for column in columns]
    options = {
        "cellHeight": "sm",
        "footer": {"countRows": False, "fields": "", "reducer": ["sum"], "show": False},
        "showHeader": True,
        "sortBy": [{"desc": True, "displayName": columns[0].title}],
    }
    panel = _panel("table", title, description, queries, columns[0].unit, options, instant=True)
    names = {}
    for target, column in zip(panel["targets"], columns, strict=True):
        target["format"] = "table"
        # What the merged table calls it: a lone query's column is just "Value".
        names["Value" if len(columns) == 1 else f"Value #{target['refId']}"] = column.title
        properties: list[Json] = [{"id": "unit", "value": column.unit}]
        if column.is_bar:
            steps = _steps([(0.8, YELLOW), (1, RED)])
            properties += [
                {"id": "custom.cellOptions", "value": {"type": "gauge", "mode": "basic"}},
                {"id": "min", "value": 0},
                {"id": "max", "value": 1},
                {"id": "thresholds", "value": {"mode": "absolute", "steps": steps}},
            ]
        override = {"matcher": {"id": "byName", "options": column.title}, "properties": properties}
        panel["fieldConfig"]["overrides"].append(override)
    order = {name: index for index, name in enumerate([*labels, *names])}
    organize = {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": names}
    panel["transformations"] = [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}]
    return _sized(_since(panel, since), w, h)


def _panel(
    kind: str,
    title: str,
    description: str,
    queries: Sequence[Query],
    unit: str,
    options: Json,
    *,
    instant: bool = False,
    thresholds: Sequence[tuple[float, str]] = (),
) -> Json:
    targets = [
        {
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "format": "time_series",
            "instant": instant,
            "legendFormat": query.legend,
            "range": not instant,
            "refId": chr(ord("A") + index),
        }
        for index, query in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "fieldConfig": {
            "defaults": {"unit": unit, "thresholds": {"mode": "absolute", "steps": _steps(thresholds)}},
            "overrides": [],
        },
        "options": options,
        "targets": targets,
    }


def _steps(thresholds: Sequence[tuple[float, str]]) -> list[Json]:
    return [{"color": GREEN, "value": None}, *({"color": color, "value": value} for value, color in thresholds)]


def _since(panel: Json, since: str) -> Json:
    return {**panel, "timeFrom": since} if since else panel


def _sized(panel: Json, w: int, h: int) -> Json:
    return {**panel, "gridPos": {"h": h, "w": w}}


# Dashboards.


def chosen(name: str, label: str, query: str, *, all_value: str | None = None) -> Json:
    """A variable of which several values may be chosen, at first all. `query`: a `label_values(...)`.

    Without `all_value`, "All" stands for the values listed: so it follows the variables that `query` uses.
    """
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": query,
        "refresh": 2,  # when the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        **({} if all_value is None else {"allValue": all_value}),
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def dashboard(uid: str, title: str, description: str, variables: Sequence[Json], panels: Sequence[Json]) -> Json:
    """The whole document."""
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}
    common = [
        chosen("job", "Job", "label_values(meter_proxy_build_info, job)", all_value=".+"),
        chosen("instance", "Instance", 'label_values(meter_proxy_build_info{job=~"$job"}, instance)', all_value=".+"),
    ]
    links = {"title": "meter-proxy", "type": "dashboards", "tags": ["meter-proxy"], "asDropdown": False}
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["meter-proxy"],
        "editable": False,
        "graphTooltip": 1,
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",  # Grafana 10 takes the `since` of a panel by the browser's clock in any case
        "refresh": "30s",
        "links": [{**links, "includeVars": True, "keepTime": True, "targetBlank": False, "icon": "external link"}],
        "templating": {"list": [source, *common, *variables]},
        "panels": list(_placed(panels)),
    }


def _placed(panels: Sequence[Json]) -> Iterator[Json]:
    x = y = height = 0
    for number, panel in enumerate(panels, start=1):
        size = panel["gridPos"]
        if x + size["w"] > GRID_COLUMNS:
            x, y, height = 0, y + height, 0
        yield {"id": number, **panel, "gridPos": {**size, "x": x, "y": y}}
        x += size["w"]
        height = max(height, size["h"])
