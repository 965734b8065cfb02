"""What `usage` and `records` share: where the records are, and how rows are printed.

Model names are the callers' own words: on a terminal they cannot move its cursor, in a spreadsheet they cannot
be a formula. Tables show costs in USD; the formats for programs keep integers.
"""

import csv
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from meter_proxy.config.load import load_config
from meter_proxy.errors import ConfigError

NANO_PER_USD = 1_000_000_000
DEFAULT_STATE_DIR = Path("state")  # the configuration's own default, where no CONFIG is named
TABLE_WIDTH = 10_000  # a table is as wide as it is: ids are never cut, the terminal may wrap

Cell = str | int | float | bool | None


class Writer(Protocol):
    """Prints rows; `write` may be called again and again, the heading comes once."""

    def write(self, rows: Iterable[Sequence[Cell]]) -> None: ...


def state_directory(config: Path | None, state_dir: Path | None) -> Path:
    """Return the state directory that the command line names. Raises `ConfigError` where there is none."""
    if state_dir is None:
        state_dir = load_config(config, os.environ).state_dir if config is not None else DEFAULT_STATE_DIR
    if not state_dir.is_dir():
        hint = "name the configuration that `serve` runs with, or use --state-dir"
        raise ConfigError([f"meter-proxy: no state directory at {state_dir.absolute()}: {hint}"])
    return state_dir


def usd(nano_usd: int) -> str:
    """Write an amount exactly, with at least four decimals."""
    decimals = f"{nano_usd % NANO_PER_USD:09d}"
    return f"{nano_usd // NANO_PER_USD}.{decimals[:4]}{decimals[4:].rstrip('0')}"


class CsvWriter:
    """Comma-separated values for spreadsheets and programs."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._csv = csv.writer(sys.stdout, lineterminator="\n")
        self._csv.writerow(columns)

    def write(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Print rows, a formula among their texts quoted with `'`."""
        self._csv.writerows([_csv_cell(cell) for cell in row] for row in rows)


class PlainWriter:
    """Aligned columns, two spaces apart: for pipes, files, and lines that come one by one."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._widths: list[int] = []

    def write(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Print rows; the widths are those of the first call, a wider cell later shifts its line only."""
        texts = [[_text(cell) for cell in row] for row in rows]
        if not self._widths:
            self._widths = [max(map(len, column)) for column in zip(self._columns, *texts, strict=True)]
            self._print(self._columns, [isinstance(cell, str) for cell in self._columns])
        for row, cells in zip(texts, rows, strict=True):
            self._print(row, [not isinstance(cell, int | float) for cell in cells])

    def _print(self, texts: Sequence[str], left: Sequence[bool]) -> None:
        cells = (
            text.ljust(width) if is_left else text.rjust(width)
            for text, width, is_left in zip(texts, self._widths, left, strict=True)
        )
        print("  ".join(cells).rstrip())


class RichWriter:
    """A table for the eyes, on a terminal; all rows in one call."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns

    def write(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Print the table."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        rows = list(rows)
        table = Table()
        for number, column in enumerate(self._columns):
            is_number = bool(rows) and isinstance(rows[0][number], int | float)
            table.add_column(column, justify="right" if is_number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(_text(cell)) for cell in row))
        Console(width=TABLE_WIDTH).print(table)
