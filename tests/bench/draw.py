"""The comparison as an SVG for the README: python -m tests.bench.draw BENCH.json BENCH.svg

One panel a figure, one bar a proxy: the median, shorter is better. A bar that would be more than LONGEST times the
shortest is cut, and says so by a gap; its number tells. Colours follow the reader's light or dark theme.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tests.bench.results import Run, against, brief, difference, values
from tests.bench.targets import METER_PROXY

LONGEST = 12
WIDTH, MARGIN, GUTTER = 860, 24, 40
PANEL_WIDTH = (WIDTH - 2 * MARGIN - GUTTER) / 2
NAME_WIDTH, VALUE_WIDTH = 94, 80
BAR_WIDTH = PANEL_WIDTH - NAME_WIDTH - VALUE_WIDTH
ROW_HEIGHT, TITLE_HEIGHT, PANEL_GAP, HEAD_HEIGHT, FOOT_HEIGHT = 22, 30, 22, 56, 34

STYLE = """\
    .title { font-size: 17px; font-weight: 700; fill: #1c2430 }
    .panel { font-size: 14px; font-weight: 600; fill: #1c2430 }
    .name, .value { fill: #1c2430 } .note { fill: #5b6575; font-size: 12px }
    .bar { fill: #b3bccb } .ours { fill: #2f6fde } .gap { stroke: #fff; stroke-width: 4 } .card { fill: #fff }
    .strong { font-weight: 700 }
    @media (prefers-color-scheme: dark) {
      .title, .panel, .name, .value { fill: #e6edf3 } .note { fill: #9aa5b5 }
      .bar { fill: #515c6d } .ours { fill: #5b93f5 } .gap { stroke: #0d1117 } .card { fill: #0d1117 }
    }"""


@dataclass(frozen=True)
class Panel:
    """A figure to compare."""

    title: str
    scenario: str
    figure: str
    unit: str
    is_added: bool = False  # over asking the upstream directly


PANELS = (
    Panel("CPU per token, 100 paced streams", "paced", "cpu_us", "us"),
    Panel("CPU per token, as fast as it goes", "burst", "cpu_us", "us"),
    Panel("CPU per short stream", "streams", "cpu_us", "us"),
    Panel("CPU per plain request", "json", "cpu_us", "us"),
    Panel("Added time to the first token, median", "latency", "first_p50_us", "us", is_added=True),
    Panel("Memory per open stream, 1,000 quiet ones", "quiet-1k", "kib_per_stream", "KiB"),
)


def svg(outcome: dict[str, Any]) -> str:
    """The drawing of what `compare --json` wrote; panels without figures are left out."""
    runs = [Run(**run) for run in outcome["runs"]]
    panels = [(panel, rows) for panel in PANELS if (rows := _medians(runs, panel))]
    tallest = max((len(rows) for _, rows in panels), default=0)
    panel_height = TITLE_HEIGHT + tallest * ROW_HEIGHT + PANEL_GAP
    height = HEAD_HEIGHT + (len(panels) + 1) // 2 * panel_height + FOOT_HEIGHT
    body = []
    for index, (panel, rows) in enumerate(panels):
        x = MARGIN + index % 2 * (PANEL_WIDTH + GUTTER)
        y = HEAD_HEIGHT + index // 2 * panel_height
        body.append(_panel(panel, rows, x, y))
    facts = outcome["machine"]
    foot = f"One core ({facts['cpu']}), Python {facts['python']}; medians of {outcome['rounds']} interleaved runs"
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" \
font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="{escape(_in_words(panels))}">
  <style>
{STYLE}
  </style>
  <rect class="card" width="{WIDTH}" height="{height}" rx="12"/>
  <text class="title" x="{MARGIN}" y="34">What a proxy costs</text>
  <text class="note" x="{WIDTH - MARGIN}" y="34" text-anchor="end">shorter is better</text>
{chr(10).join(body)}
  <text class="note" x="{MARGIN}" y="{height - 16}">{escape(foot)}</text>
</svg>
"""


def _medians(runs: Sequence[Run], panel: Panel) -> dict[str, float]:
    """target -> median, in the order of the runs."""
    found = {}
    for target in dict.fromkeys(run.target for run in runs if run.target != "direct"):
        if panel.is_added:
            numbers = against(runs, panel.scenario, target, panel.figure, "direct", difference)
        else:
            numbers = list(values(runs, panel.scenario, target, panel.figure).values())
        if numbers:
            found[target] = statistics.median(numbers)
    return found


def _panel(panel: Panel, rows: dict[str, float], x: float, y: float) -> str:
    longest = _full_length(list(rows.values()))
    lines = [f'  <text class="panel" x="{x:.0f}" y="{y + 14:.0f}">{escape(panel.title)}</text>']
    for index, (target, value) in enumerate(rows.items()):
        top = y + TITLE_HEIGHT + index * ROW_HEIGHT
        is_ours, is_cut = target == METER_PROXY, value > longest
        length = BAR_WIDTH if is_cut else max(2.0, value / longest * BAR_WIDTH)
        start = x + NAME_WIDTH
        strong = " strong" if is_ours else ""
        lines.append(
            f'  <text class="name{strong}" x="{x:.0f}" y="{top + 12:.0f}">{escape(target)}</text>'
            f'<rect class="{"ours" if is_ours else "bar"}" x="{start:.0f}" y="{top:.0f}" width="{length:.1f}" '
            'height="15" rx="3"/>'
        )
        if is_cut:
            gap = start + BAR_WIDTH - 22
            lines.append(f'  <path class="gap" d="M{gap:.0f} {top + 17:.0f} l7 -19"/>')
        lines.append(
            f'  <text class="value{strong}" x="{start + length + 7:.0f}" y="{top + 12:.0f}">'
            f"{brief(value)} {_sign(panel.unit)}</text>"
        )
    return "\n".join(lines)


def _full_length(numbers: Sequence[float]) -> float:
    """The value whose bar is as long as there is room."""
    return min(max(numbers), LONGEST * max(min(numbers), max(numbers) / 1000))


def _sign(unit: str) -> str:
    return {"us": "\u00b5s"}.get(unit, unit)


def _in_words(panels: Sequence[tuple[Panel, dict[str, float]]]) -> str:
    """For those who do not see it."""
    parts = [
        f"{panel.title}: " + ", ".join(f"{target} {brief(value)} {_sign(panel.unit)}" for target, value in rows.items())
        for panel, rows in panels
    ]
    return ". ".join(parts) + "."


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    Path(sys.argv[2]).write_text(svg(json.loads(Path(sys.argv[1]).read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
