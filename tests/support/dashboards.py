"""The checked-in dashboards as tests read them: panels, targets, and what Grafana would make of the variables."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.proc import REPOSITORY

Json = dict[str, Any]
DASHBOARDS = REPOSITORY / "grafana" / "dashboards"
RULES = REPOSITORY / "deploy" / "prometheus"

_LABEL_VALUES = re.compile(r"label_values\((?P<series>.+), (?P<label>\w+)\)")


class Target(NamedTuple):
    """One query of one panel."""

    dashboard: str  # its uid
    panel: str  # its title
    ref: str
    expr: str

    def __str__(self) -> str:
        return f"{self.dashboard} / {self.panel} / {self.ref}"


def dashboard_files() -> list[Path]:
    """All that are checked in."""
    return sorted(DASHBOARDS.glob("*.json"))


def load(path: Path) -> Json:
    """One dashboard."""
    dashboard: Json = json.loads(path.read_text())
    return dashboard


def panels(dashboard: Json) -> list[Json]:
    """Those that show something: all but the rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets(dashboard: Json) -> Iterator[Target]:
    """All queries."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield Target(dashboard["uid"], panel["title"], target["refId"], target["expr"])


def variables(dashboard: Json) -> list[Json]:
    """Those with a query, in their order: a later one may use the earlier ones."""
    return [one for one in dashboard["templating"]["list"] if one["type"] == "query"]


def label_values(query: str) -> tuple[str, str]:
    """The series and the label that a variable's query names."""
    match = _LABEL_VALUES.fullmatch(query)
    assert match is not None, query
    return match["series"], match["label"]


def all_of(variable: Json, values: list[str]) -> str:
    """What "All" is replaced with: `allValue`, else every value that there is, as a regular expression in a string."""
    if "allValue" in variable:
        return str(variable["allValue"])
    return f"({'|'.join(re.escape(value).replace(chr(92), chr(92) * 2) for value in values)})"


def substituted(text: str, values: Mapping[str, str]) -> str:
    """`text` with each $name replaced; AssertionError if one has no value."""
    for name in sorted(values, key=len, reverse=True):
        text = text.replace(f"${name}", values[name]).replace(f"${{{name}}}", values[name])
    assert "$" not in text, text
    return text
