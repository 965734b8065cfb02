"""One frame of `top`: a snapshot laid out for a terminal of so many columns and lines. No I/O, no clock.

From the top: the proxy, the rates, then QUOTAS (fullest first), KEYS (busiest first) and STREAMS (oldest first). What
does not fit is counted in the section's title, never silently gone. Names are the callers' own words: they cannot move
the cursor, and are cut to their column.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from meter_proxy.cli.snapshot import Quota, Snapshot, Stream
from meter_proxy.cli.tables import counted

NARROWEST, LOWEST = 40, 8
WIDE = 120  # from here on there is room for account, operation and id
BAR_FULL, BAR_RESERVED, BAR_EMPTY = "█", "▒", "░"
HEAD_LINES = 3
HINT = "q quits"
UNTOLD = "this server does not tell (its version is older than this command's)"


@dataclass(frozen=True)
class Column:
    """A column of a section: its title, its width in cells, and whether it holds numbers."""

    title: str
    width: int
    is_number: bool = False


@dataclass(frozen=True)
class Section:
    """A table, or why there is none. `total`: rows there are, of which `rows` may be some."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Text]]
    total: int
    says: str = ""


def frame(
    snapshot: Snapshot, before: Snapshot | None, *, url: str, width: int, height: int | None, now: float, note: str = ""
) -> Text:
    """Lay out a snapshot in at most `height` lines of at most `width` cells.

    `before` is an earlier one, for the speed of streams in between; `now` is the Unix time; `height` None shows all;
    `note` stands at the end of the first line, in red: what is wrong at the moment.
    """
    width = max(width, NARROWEST)
    speeds = _speeds(snapshot, before)
    sections = [
        _quotas(snapshot, width, now),
        _keys(snapshot, speeds, width),
        _streams(snapshot, speeds, width),
    ]
    lines = [_title(snapshot, url, width, note), _totals(snapshot, speeds), Text()]
    room = None if height is None else max(height, LOWEST) - HEAD_LINES
    for section, rows in zip(sections, _shares(sections, room), strict=True):
        if rows is not None:
            lines += _table(section, rows)
    lines = lines if height is None else lines[: max(height, LOWEST)]
    for line in lines:
        line.truncate(width)
    return Text("\n").join(lines)


def _title(snapshot: Snapshot, url: str, width: int, note: str) -> Text:
    alive, of = snapshot.workers
    state = ("ready", "green") if snapshot.ready else ("not ready", "bold red")
    line = Text.assemble(("meter-proxy", "bold"), f" {_clean(url)}  ", state, f"  up {_span(snapshot.uptime_s)}")
    line.append(f"  {alive}/{counted(of, 'worker')}", "" if alive == of else "red")
    if note:
        line.append(f"  {_clean(note)}", "bold red")
    elif line.cell_len + len(HINT) + 2 <= width:
        line.append(HINT.rjust(width - line.cell_len), "dim")
    return line


def _totals(snapshot: Snapshot, speeds: dict[str, float]) -> Text:
    count = snapshot.streams_total if snapshot.streams is not None else snapshot.inflight
    line = Text.assemble((f"{count:,}", "bold"), " in flight")
    rates = snapshot.rates
    if rates is None:
        return line
    line.append(f"   {rates.get('requests_per_s', 0):,.1f} requests/s")
    line.append(f"   in {rates.get('input_tokens_per_s', 0):,.0f} tokens/s")
    line.append(f"   out {rates.get('output_tokens_per_s', 0):,.0f} tokens/s")
    return line


def _quotas(snapshot: Snapshot, width: int, now: float) -> Section:
    names = max(15, min(32, (width - 48) // 3))
    bar = max(10, width - 2 * names - 40)
    columns = [
        Column("key", names), Column("rule", names), Column("", bar), Column("%", 4, True),
        Column("used / limit", 17, True), Column("resets", 9, True),
    ]  # fmt: skip
    if snapshot.quotas is None:
        return Section("QUOTAS", columns, (), 0, UNTOLD)
    rows: list[list[str | Text]] = [
        [
            _clean(quota.key),
            _clean(quota.rule),
            _bar(quota, bar),
            Text(f"{quota.share:.0%}" if quota.share < 9.99 else ">999%", _colour(quota)),
            f"{_amount(quota.used, quota.unit)} / {_amount(quota.limit, quota.unit)}",
            _until(quota.resets_at, now),
        ]
        for quota in snapshot.quotas
    ]
    return Section("QUOTAS", columns, rows, snapshot.quotas_total, "" if rows else "no rule is in force")


def _keys(snapshot: Snapshot, speeds: dict[str, float], width: int) -> Section:
    columns = [
        Column("key", max(12, min(40, width - 44))), Column("streams", 7, True), Column("input", 9, True),
        Column("output", 9, True), Column("tokens/s", 9, True),
    ]  # fmt: skip
    sums: dict[str, list[float]] = {}
    for stream in snapshot.streams or ():
        row = sums.setdefault(stream.key, [0, 0, 0, 0])
        for place, part in enumerate((1, stream.input_tokens, stream.output_tokens, speeds[stream.id])):
            row[place] += part
    busiest = sorted(sums.items(), key=lambda item: (-item[1][3], -item[1][0], item[0]))
    rows = [
        [_clean(key), f"{count:,.0f}", _amount(inp), _amount(out), f"{speed:,.1f}"]
        for key, (count, inp, out, speed) in busiest
    ]
    says = UNTOLD if snapshot.streams is None else "" if rows else "none in flight"
    return Section("KEYS", columns, rows, len(rows), says)


def _streams(snapshot: Snapshot, speeds: dict[str, float], width: int) -> Section:
    if snapshot.streams is None:
        return Section("STREAMS", (), (), 0, UNTOLD)
    is_wide = width >= WIDE
    fixed = 46 + (17 + 20 + 26 if is_wide else 0)
    names = max(10, min(40, (width - fixed) // 2))
    columns = [Column("key", names), Column("model", names)]
    columns += [Column("account", 15), Column("operation", 18), Column("id", 24)] if is_wide else []
    columns += [
        Column("age", 7, True), Column("input", 8, True), Column("output", 8, True), Column("tokens/s", 9, True),
    ]  # fmt: skip
    rows = [_stream_row(stream, speeds[stream.id], is_wide=is_wide) for stream in snapshot.streams]
    return Section("STREAMS", columns, rows, snapshot.streams_total, "" if rows else "none in flight")


def _stream_row(stream: Stream, speed: float, *, is_wide: bool) -> list[str | Text]:
    wide = [_clean(stream.account), _clean(stream.operation), _clean(stream.id)] if is_wide else []
    return [
        _clean(stream.key),
        _clean(stream.model),
        *wide,
        _span(stream.duration_ms / 1000),
        _amount(stream.input_tokens),
        _amount(stream.output_tokens),
        f"{speed:,.1f}",
    ]


def _speeds(snapshot: Snapshot, before: Snapshot | None) -> dict[str, float]:
    """Output tokens per second of each stream: since `before`, or over its life when it was not there yet."""
    earlier = {stream.id: stream.output_tokens for stream in (before.streams if before else None) or ()}
    passed_s = snapshot.at - before.at if before is not None else 0.0
    return {
        stream.id: max(0, stream.output_tokens - earlier[stream.id]) / passed_s
        if stream.id in earlier and passed_s > 0
        else stream.output_tokens / max(stream.duration_ms / 1000, 0.1)
        for stream in snapshot.streams or ()
    }


def _shares(sections: Sequence[Section], room: int | None) -> list[int | None]:
    """How many rows of each section are shown; None leaves it out. The last section gets what the others leave."""
    wanted = [len(section.rows) for section in sections]
    if room is None:
        return [*wanted]
    heads = [2 if section.rows else 1 for section in sections]  # its title with the names of columns; a blank line
    left = room - sum(heads) - (len(sections) - 1)
    shares: list[int | None] = []
    for place, count in enumerate(wanted):
        later = sum(min(wanted[after], 1) for after in range(place + 1, len(wanted)))
        part = left // 3 if place < len(wanted) - 1 else left
        spare = left - sum(wanted[place + 1 :])  # what nobody after it needs
        rows = max(0, min(count, max(part, spare), left - later))
        shares.append(rows)
        left -= rows
    return shares


def _table(section: Section, count: int) -> list[Text]:
    title = Text(section.title, "bold")
    if section.says:
        return [title.append(f"  {section.says}", "dim"), Text()]
    if count < section.total:
        title.append(f"  {count} of {section.total:,}", "dim")
    head = _line([column.title for column in section.columns], section.columns)
    head.stylize("dim")
    return [title, head, *(_line(row, section.columns) for row in section.rows[:count]), Text()]


def _line(cells: Iterable[str | Text], columns: Sequence[Column]) -> Text:
    line = Text()
    for cell, column in zip(cells, columns, strict=True):
        text = cell.plain if isinstance(cell, Text) else cell
        if cell_len(text) > column.width:
            text = set_cell_size(text, column.width - 1) + "…"
        padding = " " * (column.width - cell_len(text))
        line.append(padding if column.is_number else "")
        line.append(cell if isinstance(cell, Text) and cell.plain == text else text)
        line.append("  " if column.is_number else padding + "  ")
    line.rstrip()
    return line


def _bar(quota: Quota, width: int) -> Text:
    """Used, then reserved, then free. A single used token is seen, and only a full quota looks full."""
    share = min(1.0, quota.share)
    filled = width if quota.share >= 1 else min(width - 1, round(share * width))
    if filled == 0 and quota.used + quota.reserved > 0:
        filled = 1
    used = filled if quota.reserved <= 0 else min(filled, round(min(1.0, quota.used / quota.limit) * width))
    colour = _colour(quota)
    return Text.assemble(
        (BAR_FULL * used, colour), (BAR_RESERVED * (filled - used), colour), (BAR_EMPTY * (width - filled), "dim")
    )


def _colour(quota: Quota) -> str:
    if quota.share >= 1:
        return "bold red"
    return "yellow" if quota.share >= (quota.warn_at if quota.warn_at is not None else 0.8) else "green"


def _amount(number: float, unit: str = "") -> str:
    """`950`, `12.5k`, `3.40M`; dollars with cents, or as many digits as a small amount needs."""
    if unit == "cost_usd":
        return f"${number:,.2f}" if number >= 0.1 or not number else f"${number:.2g}"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            scaled = number / (1e3 if letter == "k" else size)
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f}{letter}"
    return f"{number:,.0f}"


def _span(seconds: float) -> str:
    """`0.4s`, `12s`, `3m05s`, `2h07m`, `5d03h`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f}s"
    whole = int(seconds)
    for size, part, letters in ((86_400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if whole >= size:
            return f"{whole // size}{letters[0]}{whole % size // part:02d}{letters[1]}"
    return f"{whole}s"


def _until(moment: str | None, now: float) -> str:
    if moment is None:
        return "never"
    try:
        at = datetime.fromisoformat(moment)
    except ValueError:
        return "-"
    return _span(max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now))


def _clean(text: str) -> str:
    """The text without what would move a terminal's cursor."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
