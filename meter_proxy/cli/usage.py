"""`meter-proxy usage`: who used how much, from the records on disk."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from meter_proxy.cli.tables import CsvTable, print_table, state_directory, usd
from meter_proxy.errors import ConfigError
from meter_proxy.ledger.books import FIELDS
from meter_proxy.ledger.reading import iter_records
from meter_proxy.ledger.totals import parse_by, parse_since, summarise

HEADINGS = ("requests", "input", "output", "cached input", "reasoning", "cost USD")  # of FIELDS, in a table


class Format(StrEnum):
    """How the totals are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"


def command(
    config: Annotated[Path | None, typer.Argument(help="The configuration of serve; else ./state is read.")] = None,
    by: Annotated[str, typer.Option(help="Total by any of key,model,day.")] = "key,model,day",
    since: Annotated[str, typer.Option(help="Only what was admitted since: 7d, 24h, 30m, or a date (UTC).")] = "",
    format: Annotated[Format, typer.Option(help="How to print. Costs are nano-dollars except in the table.")] = (
        Format.TABLE
    ),
    state_dir: Annotated[Path | None, typer.Option(help="Where serve keeps its records.")] = None,
) -> None:
    """Print totals of requests, tokens and cost; also while serve runs."""
    try:
        columns = parse_by(by)
    except ValueError as exc:
        raise ConfigError([f"meter-proxy: --by: {exc}"]) from None
    try:
        since_at = parse_since(since, time.time()) if since else 0.0
    except ValueError as exc:
        raise ConfigError([f"meter-proxy: --since: {exc}"]) from None
    rows = summarise(iter_records(state_directory(config, state_dir), since=since_at), columns)
    match format:
        case Format.TABLE:
            shown = [[*(row[name] for name in (*columns, *FIELDS[:-1])), usd(int(row[FIELDS[-1]]))] for row in rows]
            print_table((*columns, *HEADINGS), frozenset(HEADINGS), shown)
        case Format.CSV:
            CsvTable((*columns, *FIELDS)).add(list(row.values()) for row in rows)
        case Format.JSON:
            print(msgspec.json.format(msgspec.json.encode(rows)).decode())
        case Format.JSONL:
            for row in rows:
                print(msgspec.json.encode(row).decode())
