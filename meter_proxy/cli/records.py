"""`meter-proxy records`: one line for each exchange, newest last."""

import sys
import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
import typer

from meter_proxy.cli.tables import (
    Cell,
    ConfigArgument,
    CsvTable,
    PlainTable,
    StateDirOption,
    print_table,
    state_directory,
    usd,
)
from meter_proxy.errors import ConfigError
from meter_proxy.ledger.journal import JournalRecord
from meter_proxy.ledger.reading import iter_records, newest_records
from meter_proxy.ledger.tail import RecordTail
from meter_proxy.ledger.totals import parse_since
from meter_proxy.usage import UsageRecord

POLL_S = 0.25
FIELDS = (*UsageRecord.__struct_fields__, "model_label")
COLUMNS = (
    "time", "key", "model", "operation", "input", "output", "cost USD", "basis", "outcome", "status", "ms", "id",
)  # fmt: skip
NUMBERS = frozenset({"input", "output", "cost USD", "status", "ms"})
OPTIONAL = ("id", "operation", "ms", "status")  # the most dispensable first

EXAMPLES = (
    "meter-proxy records meter-proxy.yaml --limit 20",
    "meter-proxy records --follow --key alice",
    "meter-proxy records --since 24h --format csv > records.csv",
    "meter-proxy records --format jsonl | jq 'select(.outcome != \"completed\")'",
)


class Format(StrEnum):
    """How the records are printed."""

    TABLE = "table"
    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"


class Printer(Protocol):
    """Prints records as they come."""

    def __call__(self, records: Iterable[JournalRecord]) -> None: ...


def command(
    config: ConfigArgument = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until Ctrl-C.")] = False,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the newest so many; else all.")] = None,
    key: Annotated[str | None, typer.Option(metavar="ID", help="Only those of this key's id.")] = None,
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="Only what was admitted since: 7d, 24h, 30m, or a date (UTC).")
    ] = "",
    format: Annotated[Format, typer.Option(help="How to print. Costs are nano-dollars except in the table.")] = (
        Format.TABLE
    ),
    state_dir: StateDirOption = None,
) -> None:
    """Print usage records, newest last. Also while serve runs.

    A table that is wider than the terminal comes without a frame, and without the columns id, operation, ms and
    status as needed; jsonl and csv, and a table in a pipe, always have them.
    """
    try:
        since_at = parse_since(since, time.time()) if since else 0.0
    except ValueError as exc:
        raise ConfigError([f"meter-proxy: --since: {exc}"]) from None
    if follow and format is Format.JSON:
        raise typer.BadParameter("a list that never ends is no JSON; take jsonl", param_hint="--format")
    directory = state_directory(config, state_dir)
    show = _printer(format, follow=follow)
    if not follow:
        show(_present(directory, limit, key, since_at))
        return
    try:
        _follow(directory, show, limit, key, since_at)
    except KeyboardInterrupt:
        return


def _present(directory: Path, limit: int | None, key: str | None, since: float) -> Iterator[JournalRecord]:
    if limit is not None:
        yield from newest_records(directory, limit=limit, key=key, since=since)
        return
    for record in iter_records(directory, since=since):
        if key is None or record.key == key:
            yield record


def _follow(directory: Path, show: Printer, limit: int | None, key: str | None, since: float) -> None:
    tail = RecordTail(directory)  # before the present is read: what is settled meanwhile comes twice, not never
    present = list(_present(directory, limit, key, since))
    show(present)
    sys.stdout.flush()
    shown = {record.id for record in present[-1000:]}
    while True:
        time.sleep(POLL_S)
        new = [record for record in tail.poll() if (key is None or record.key == key) and record.id not in shown]
        if new:
            show(new)
            sys.stdout.flush()


def _printer(format: Format, *, follow: bool) -> Printer:
    match format:
        case Format.JSONL:
            return _print_jsonl
        case Format.JSON:
            return _print_json
        case Format.CSV:
            csv = CsvTable(FIELDS)
            return lambda records: csv.add([getattr(record, name) for name in FIELDS] for record in records)
        case Format.TABLE if follow:
            plain = PlainTable(COLUMNS, NUMBERS, OPTIONAL)  # a frame could not grow
            return lambda records: plain.add(_cells(record) for record in records)
        case _:
            return lambda records: print_table(COLUMNS, NUMBERS, (_cells(record) for record in records), OPTIONAL)


def _print_jsonl(records: Iterable[JournalRecord]) -> None:
    for record in records:
        print(msgspec.json.encode(msgspec.structs.replace(record, charges=())).decode())


def _print_json(records: Iterable[JournalRecord]) -> None:
    """A list, a record a line; written as it is read."""
    start = "["
    for record in records:
        print(start + msgspec.json.encode(msgspec.structs.replace(record, charges=())).decode(), end="")
        start = ",\n "
    print("]" if start != "[" else "[]")


def _cells(record: JournalRecord) -> list[Cell]:
    return [
        record.time,
        record.key,
        record.model,
        record.operation,
        record.input_tokens,
        record.output_tokens,
        usd(record.cost_nano_usd),
        record.basis,
        record.outcome,
        record.status,
        round(record.duration_ms),
        record.id,
    ]
