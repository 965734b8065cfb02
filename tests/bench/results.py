"""From what the load generator saw to figures, medians and tables. Pure: no process and no clock.

A run is one scenario on one target in one round. Ratios and differences are taken within a round first, and their
median afterwards: machines that others use change their speed between rounds.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.scenarios import BY_NAME, Scenario
from tests.bench.targets import METER_PROXY, NGINX

Number = float | int


@dataclass(frozen=True)
class Run:
    """What one run came to. None: not measured there (the mock, asked directly, is no proxy)."""

    round: int
    target: str
    scenario: str
    per_s: float = 0.0  # chunks, requests or hang-ups, as the scenario counts
    cpu_us: float | None = None  # per such unit: all processes of the proxy
    core: float | None = None  # how much of its core it used
    load_core: float = 0.0  # how much of its core the load generator used
    first_p50_us: float | None = None  # from the request to the first token; of plain answers: to their end
    first_p99_us: float | None = None
    delay_p50_us: float | None = None  # of a chunk, from the mock to the client
    delay_p99_us: float | None = None
    late: int = 0  # open loop: how often all connections were busy
    streams: int | None = None  # of the quiet ones: open at the end of the window
    not_opened: int = 0
    dropped: int = 0
    kib_per_stream: float | None = None
    requests: int = 0  # of the whole run: answered with 200, to the end
    wrong: int = 0  # errors, other statuses, streams without [DONE], answers that never ended
    books_differ_by: int | None = None  # tokens that meter-proxy's books have more than the mock generated
    failed: str = ""  # the run was given up: why

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def run_of(round_: int, target: str, scenario: Scenario, load: dict[str, Any], held: int, *, has_cpu: bool) -> Run:
    """The figures of a run of the load generator. `held`: so many quiet streams were asked for."""
    window_s, units = load["window_s"], load[scenario.per]
    total = load["total"]
    first = load["first_event_us"] or load["answer_us"] or {}
    delay = load["event_us"] or {}
    broken = total["errors"] + total["not_200"]
    streams = load["open"] if held else None
    growth_kib = load["rss_kib"] - load["rss_before_kib"]
    return Run(
        round=round_,
        target=target,
        scenario=scenario.name,
        per_s=units / window_s,
        cpu_us=load["cpu_s"] * 1e6 / units if has_cpu and units else None,
        core=load["cpu_s"] / window_s if has_cpu else None,
        load_core=load["load_cpu_s"] / window_s,
        first_p50_us=first.get("p50"),
        first_p99_us=first.get("p99"),
        delay_p50_us=delay.get("p50"),
        delay_p99_us=delay.get("p99"),
        late=load["late"],
        streams=streams,
        not_opened=held - load["open"] if held else 0,
        dropped=broken if held else 0,
        kib_per_stream=growth_kib / streams if has_cpu and streams else None,
        requests=total["requests"],
        wrong=broken + total["without_done"] + total["unfinished"],
    )


def line(run: Run) -> str:
    """A run in one line, as it is printed while the benchmark goes on."""
    begin = f"{run.round}  {run.target:12} {run.scenario:15}"
    if run.failed:
        return f"{begin} FAILED: {run.failed}"
    unit = BY_NAME[run.scenario].unit
    parts = [f"{run.per_s:9,.0f} {unit}s/s"]
    if run.cpu_us is not None and run.core is not None:
        parts.append(f"{run.cpu_us:9.2f} us CPU per {unit} ({run.core:.0%} of a core)")
    if run.kib_per_stream is not None:
        parts.append(
            f"{run.kib_per_stream:.1f} KiB per stream, {run.streams} open, {run.not_opened} not, {run.dropped} dropped"
        )
    if run.first_p50_us is not None:
        parts.append(f"first {run.first_p50_us:,.0f}/{run.first_p99_us:,.0f} us")
    if run.delay_p50_us is not None:
        parts.append(f"delay {run.delay_p50_us:,.0f} us")
    if run.wrong:
        parts.append(f"{run.wrong} WRONG")
    if run.books_differ_by is not None:
        parts.append(f"books {run.books_differ_by:+d}" if run.books_differ_by else "books agree")
    return f"{begin} {', '.join(parts)}"


def faults(runs: Iterable[Run]) -> list[str]:
    """What meter-proxy got wrong, in words; the figures of such a run are worth nothing."""
    found = []
    for run in runs:
        if run.target != METER_PROXY:
            continue
        where = f"round {run.round}, {run.scenario}"
        if run.failed:
            found.append(f"{where}: {run.failed}")
        if run.wrong:
            found.append(f"{where}: {run.wrong} answers were wrong, broken or not finished")
        if run.not_opened:
            found.append(f"{where}: {run.not_opened} streams could not be opened")
        if run.books_differ_by and not BY_NAME[run.scenario].has_hang_ups:
            found.append(f"{where}: the books differ by {run.books_differ_by:+d} tokens from what was generated")
    return found


# -- Medians and tables -----------------------------------------------------------------------------------------------


def values(runs: Iterable[Run], scenario: str, target: str, figure: str) -> dict[int, Number]:
    """round -> figure, where it was measured."""
    return {
        run.round: value
        for run in runs
        if run.scenario == scenario and run.target == target and not run.failed
        if (value := getattr(run, figure)) is not None
    }


def against(
    runs: Sequence[Run],
    scenario: str,
    target: str,
    figure: str,
    base: str,
    combine: Callable[[Number, Number], float],
) -> list[float]:
    """`combine(target's, base's)` of each round that has both."""
    own, other = values(runs, scenario, target, figure), values(runs, scenario, base, figure)
    return [combine(own[number], other[number]) for number in own if other.get(number)]


def ratio(own: Number, other: Number) -> float:
    return own / other


def difference(own: Number, other: Number) -> float:
    return own - other


def spread(numbers: Iterable[Number], unit: str = "") -> str:
    """`median [min-max]`, or a dash."""
    found = list(numbers)
    if not found:
        return "-"
    median, low, high = (brief(number) for number in (statistics.median(found), min(found), max(found)))
    return f"{median}{unit} [{low}-{high}]" if len(found) > 1 else f"{median}{unit}"


def brief(number: Number) -> str:
    """Three digits that matter."""
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


def table(runs: Sequence[Run], scenario: Scenario) -> str:
    """One scenario as a Markdown table."""
    is_quiet, is_latency = bool(scenario.streams_held), scenario.name == "latency"
    heads = ["target", f"{scenario.unit}s/s", f"CPU per {scenario.unit}, us", "x nginx"]
    if is_quiet:
        heads += ["KiB per stream", "x nginx", "streams", "dropped"]
    if is_latency:
        heads += ["added to first token p50, us", "p99", "added per chunk p50, us"]
    heads += ["first p50, us", "p99", "delay p50, us", "wrong"]
    rows = []
    for target in dict.fromkeys(run.target for run in runs):
        mine = [run for run in runs if run.scenario == scenario.name and run.target == target]
        if not mine:
            continue
        if all(run.failed for run in mine):
            rows.append([target, f"failed: {mine[0].failed}"] + [""] * (len(heads) - 2))
            continue

        def of(figure: str, target: str = target) -> str:
            return spread(values(runs, scenario.name, target, figure).values())

        def to_nginx(figure: str, target: str = target) -> str:
            return spread(against(runs, scenario.name, target, figure, NGINX, ratio))

        def added(figure: str, target: str = target) -> str:
            return (
                "-"
                if target == "direct"
                else spread(against(runs, scenario.name, target, figure, "direct", difference))
            )

        row = [target, of("per_s"), of("cpu_us"), to_nginx("cpu_us")]
        if is_quiet:
            row += [of("kib_per_stream"), to_nginx("kib_per_stream"), of("streams"), of("dropped")]
        if is_latency:
            row += [added("first_p50_us"), added("first_p99_us"), added("delay_p50_us")]
        row += [of("first_p50_us"), of("first_p99_us"), of("delay_p50_us"), str(sum(run.wrong for run in mine))]
        rows.append(row)
    return f"### {scenario.name}: {scenario.what}\n\n{markdown(heads, rows)}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is also readable on a terminal."""
    lines = [list(heads), *map(list, rows)]
    widths = [max(len(row[column]) for row in lines) for column in range(len(heads))]

    def text(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text(lines[0]), rule, *map(text, lines[1:])])
