"""`meter-proxy usage`: who used how much, from the records on disk."""

import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import msgspec
import typer

from meter_proxy.cli.progress import shown
from meter_proxy.cli.tables import (
    ConfigArgument,
    CsvTable,
    StateDirOption,
    decimals_for,
    print_table,
    state_directory,
    usd,
)
from meter_proxy.errors import ConfigError
from meter_proxy.ledger.books import FIELDS
from meter_proxy.ledger.reading import iter_records
from meter_proxy.ledger.totals import parse_by, parse_since, summarise

HEADINGS = ("requests", "input", "output", "cached input", "reasoning", "cost USD")  # of FIELDS, in a table
OPTIONAL = ("reasoning", "cached input")  # parts of output and input

EXAMPLES = (
    "meter-proxy usage meter-proxy.yaml --by key --since 30d",
    "meter-proxy usage --by day,model --since 2026-01-01",
    "meter-proxy usage --state-dir state --format csv > usage.csv",
    "meter-proxy usage --by key --format json | jq '.[].cost_nano_usd'",
)


class Format(StrEnum):
    """How the totals are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"


def command(
    config: ConfigArgument = None,
    by: Annotated[str, typer.Option(metavar="COLUMNS", help="Total by any of key,model,day.")] = "key,model,day",
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="Only what was admitted since: 7d, 24h, 30m, or a date (UTC).")
    ] = "",
    format: Annotated[Format, typer.Option(help="How to print. Costs are nano-dollars except in the table.")] = (
        Format.TABLE
    ),
    state_dir: StateDirOption = None,
) -> None:
    """Print totals of requests, tokens and cost. Also while serve runs.

    A table that is wider than the terminal comes without a frame, and without the columns reasoning and cached input
    as needed; the other formats, and a table in a pipe, always have them.
    """
    try:
        columns = parse_by(by)
    except ValueError as exc:
        raise ConfigError([f"meter-proxy: --by: {exc}"]) from None
    try:
        since_at = parse_since(since, time.time()) if since else 0.0
    except ValueError as exc:
        raise ConfigError([f"meter-proxy: --since: {exc}"]) from None
    rows = summarise(shown(iter_records(state_directory(config, state_dir), since=since_at), "records read"), columns)
    match format:
        case Format.TABLE:
            if len(rows) > 1:
                rows.append(_total(rows, columns))
            decimals = decimals_for(int(row[FIELDS[-1]]) for row in rows)
            cells = [
                [*(row[name] for name in (*columns, *FIELDS[:-1])), usd(int(row[FIELDS[-1]]), decimals)] for row in rows
            ]
            print_table((*columns, *HEADINGS), frozenset(HEADINGS), cells, OPTIONAL)
        case Format.CSV:
            CsvTable((*columns, *FIELDS)).add(list(row.values()) for row in rows)
        case Format.JSON:
            print(msgspec.json.format(msgspec.json.encode(rows)).decode())
        case Format.JSONL:
            for row in rows:
                print(msgspec.json.encode(row).decode())


def _total(rows: list[dict[str, str | int]], columns: Sequence[str]) -> dict[str, str | int]:
    """The last line of a table of more than one row."""
    words = dict(zip(columns, ("total", *("" for _ in columns[1:])), strict=True))
    return {**words, **{field: sum(int(row[field]) for row in rows) for field in FIELDS}}
