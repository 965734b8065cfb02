"""What commands share that print: where the records are, how rows are printed, and how things are counted.

Model names are the callers' own words: on a terminal they cannot move its cursor, in a spreadsheet they cannot
be a formula. Tables show costs in USD; the formats for programs keep integers.
"""

import csv
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from meter_proxy.config.load import state_dir_of
from meter_proxy.errors import ConfigError
from meter_proxy.telemetry import csvtext
from meter_proxy.telemetry.csvtext import csv_cell
from meter_proxy.usage import NANO_USD

MIN_DECIMALS, MAX_DECIMALS = 4, 9
DEFAULT_STATE_DIR = Path("state")  # the configuration's own default, where no CONFIG is named
TABLE_WIDTH = 10_000  # a table is as wide as it is, wide characters included: ids are never cut
CHUNK_ROWS = 1000  # laid out at once; who reads the first line need not wait for the last

Cell = csvtext.Cell
ConfigArgument: TypeAlias = Annotated[
    Path | None,
    typer.Argument(metavar="CONFIG", readable=False, help="The configuration of serve; else ./state is read."),
]
StateDirOption: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="DIR", readable=False, help="Where serve keeps its records.")
]


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 record`, `2 records`; `many` where that is not the word with an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def state_directory(config: Path | None, state_dir: Path | None) -> Path:
    """Return the state directory that the command line names. Raises `ConfigError` where none can be read."""
    if state_dir is not None:
        missing = f"no state directory at {state_dir.absolute()}"
    elif config is not None:
        state_dir = state_dir_of(config, os.environ)
        missing = f"serve has not run with {config} yet (no {state_dir})"
    else:
        state_dir = DEFAULT_STATE_DIR
        hint = "name the configuration that `serve` runs with, or use --state-dir"
        missing = f"no state directory at {state_dir.absolute()}: {hint}"
    try:
        for directory in chain([state_dir], state_dir.glob("w*/")):  # glob() itself passes over what it may not read
            os.scandir(directory).close()
    except FileNotFoundError:
        raise ConfigError([f"meter-proxy: {missing}"]) from None
    except OSError as exc:
        message = f"meter-proxy: cannot read the state directory {exc.filename}: {exc.strerror}"
        raise ConfigError([message]) from exc
    return state_dir


def usd(nano_usd: int, decimals: int = MAX_DECIMALS) -> str:
    """Write an amount with so many decimals, which must be enough for it: see `decimals_for`."""
    dollars, nano = divmod(nano_usd, NANO_USD)
    return f"{dollars}.{f'{nano:0{MAX_DECIMALS}d}'[:decimals]}"


def decimals_for(nano_usd: Iterable[int]) -> int:
    """Return how many decimals show all these amounts exactly; at least four."""
    return max([MIN_DECIMALS, *(len(usd(amount).rstrip("0").partition(".")[2]) for amount in nano_usd)])


class CsvTable:
    """Comma-separated values, for spreadsheets and programs. The heading is printed at once, `add` prints rows."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._csv = csv.writer(sys.stdout, lineterminator="\n")
        self._csv.writerow(columns)

    def add(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Print `rows`; a text that a spreadsheet would take for a formula gets a `'` in front."""
        self._csv.writerows([csv_cell(cell) for cell in row] for row in rows)


class PlainTable:
    """Aligned columns without frames: for pipes and files, and for lines that come one by one."""

    def __init__(self, columns: Sequence[str], numbers: frozenset[str], optional: Sequence[str] = ()) -> None:
        """`numbers` are the columns to align at their right; for `optional`, see `print_table`."""
        self._columns = columns
        self._numbers = numbers
        self._optional = optional
        self._widths: dict[str, int] = {}  # of the columns that are shown; empty before the first `add`

    def add(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Print `rows` as they come, the heading before the first. A wider cell widens its column from there on."""
        texts = ([_text(cell) for cell in row] for row in rows)
        heading: list[Sequence[str]] = [] if self._widths else [self._columns]
        while chunk := heading + list(islice(texts, CHUNK_ROWS)):
            widths = _widths(self._columns, chunk)
            if heading:
                self._widths = self._fitting(widths)
                heading = []
            self._widths = {name: max(width, widths[name]) for name, width in self._widths.items()}
            for row in chunk:
                print(self._line(dict(zip(self._columns, row, strict=True))))

    def _fitting(self, widths: dict[str, int]) -> dict[str, int]:
        """Leave out what is optional, one by one, until the terminal is wide enough."""
        fitting = dict(widths)
        for name in self._optional if sys.stdout.isatty() else ():
            if sum(fitting.values()) + len("  ") * (len(fitting) - 1) <= shutil.get_terminal_size().columns:
                break
            del fitting[name]
        return fitting

    def _line(self, texts: dict[str, str]) -> str:
        cells = [
            texts[name].rjust(width) if name in self._numbers else texts[name].ljust(width)
            for name, width in self._widths.items()
        ]
        return "  ".join(cells).rstrip()


def print_table(
    columns: Sequence[str], numbers: frozenset[str], rows: Iterable[Sequence[Cell]], optional: Sequence[str] = ()
) -> None:
    """Print `rows` for the eyes: in a frame if the terminal is wide enough for it, else plain.

    Nothing is ever cut. Of the plain form, columns in `optional` are left out on a terminal that is too narrow for
    that as well, the first ones first.
    """
    rows = iter(rows)
    first = list(islice(rows, CHUNK_ROWS))
    width = sum(_widths(columns, [[_text(cell) for cell in row] for row in first]).values()) + 3 * len(columns) + 1
    is_whole = len(first) < CHUNK_ROWS
    if not (sys.stdout.isatty() and is_whole and width <= shutil.get_terminal_size().columns):
        PlainTable(columns, numbers, optional).add(chain(first, rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    for row in first:
        table.add_row(*(Text(_text(cell)) for cell in row))
    Console(width=TABLE_WIDTH).print(table)


def _widths(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> dict[str, int]:
    """The widest text of each column, its name included."""
    return {name: max(map(len, texts)) for name, texts in zip(columns, zip(columns, *rows, strict=True), strict=True)}


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(cell))
