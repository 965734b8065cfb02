"""What `usage` and `records` share: where the records are, and how rows are printed.

Model names are the callers' own words: on a terminal they cannot move its cursor, in a spreadsheet they cannot
be a formula. Tables show costs in USD; the formats for programs keep integers.
"""

import csv
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from meter_proxy.config.load import state_dir_of
from meter_proxy.errors import ConfigError

NANO_PER_USD = 1_000_000_000
DEFAULT_STATE_DIR = Path("state")  # the configuration's own default, where no CONFIG is named
TABLE_WIDTH = 10_000  # a table is as wide as it is: ids are never cut, the terminal may wrap
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

Cell = str | int | float | bool | None


def state_directory(config: Path | None, state_dir: Path | None) -> Path:
    """Return the state directory that the command line names. Raises `ConfigError` where there is none."""
    if state_dir is None:
        state_dir = state_dir_of(config, os.environ) if config is not None else DEFAULT_STATE_DIR
    if not state_dir.is_dir():
        hint = "name the configuration that `serve` runs with, or use --state-dir"
        raise ConfigError([f"meter-proxy: no state directory at {state_dir.absolute()}: {hint}"])
    return state_dir


def usd(nano_usd: int) -> str:
    """Write an amount exactly, with at least four decimals."""
    decimals = f"{nano_usd % NANO_PER_USD:09d}"
    return f"{nano_usd // NANO_PER_USD}.{decimals[:4]}{decimals[4:].rstrip('0')}"


class CsvTable:
    """Comma-separated values, for spreadsheets and programs. The heading is printed at once, `add` prints rows."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._csv = csv.writer(sys.stdout, lineterminator="\n")
        self._csv.writerow(columns)

    def add(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Print `rows`; a text that a spreadsheet would take for a formula gets a `'` in front."""
        self._csv.writerows([_csv_cell(cell) for cell in row] for row in rows)


class PlainTable:
    """Aligned columns without frames: for pipes and files, and for lines that come one by one."""

    def __init__(self, columns: Sequence[str], numbers: frozenset[str]) -> None:
        """`numbers` are the columns to align at their right."""
        self._columns = columns
        self._numbers = numbers
        self._widths = [0] * len(columns)

    def add(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Print `rows`, the heading before the first. A wider cell in a later call widens its column."""
        texts = [[_text(cell) for cell in row] for row in rows]
        if not any(self._widths):
            texts.insert(0, list(self._columns))
        for row in texts:
            self._widths = [max(width, len(text)) for width, text in zip(self._widths, row, strict=True)]
        for row in texts:
            cells = [
                text.rjust(width) if name in self._numbers else text.ljust(width)
                for name, text, width in zip(self._columns, row, self._widths, strict=True)
            ]
            print("  ".join(cells).rstrip())


def print_table(columns: Sequence[str], numbers: frozenset[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Print `rows` for the eyes: framed on a terminal, plain elsewhere."""
    if not sys.stdout.isatty():
        PlainTable(columns, numbers).add(rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_text(cell)) for cell in row))
    Console(width=TABLE_WIDTH).print(table)


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(cell))


def _csv_cell(cell: Cell) -> Cell:
    if isinstance(cell, bool):
        return str(cell).lower()
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell
