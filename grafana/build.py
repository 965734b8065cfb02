"""Write the dashboards: `python -m grafana.build`. The same files on every run."""

import json
from pathlib import Path

from grafana.billing import billing
from grafana.latency import latency
from grafana.overview import overview
from grafana.panels import Json

DIRECTORY = Path(__file__).parent / "dashboards"


def dashboards() -> dict[str, Json]:
    """All of them, by file name."""
    return {f"{one['uid']}.json": one for one in (overview(), billing(), latency())}


def as_text(dashboard: Json) -> str:
    """The file's content."""
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write each file."""
    DIRECTORY.mkdir(exist_ok=True)
    for name, dashboard in dashboards().items():
        (DIRECTORY / name).write_text(as_text(dashboard))


if __name__ == "__main__":
    main()
