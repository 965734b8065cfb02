"""Comma-separated values that a spreadsheet can open without harm: model names are chosen by callers."""

import csv
import io
from collections.abc import Iterable, Sequence

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

Cell = str | int | float | bool | None


def csv_cell(cell: Cell) -> Cell:
    """`cell` as it is written; a text that a spreadsheet would take for a formula gets a `'` in front."""
    if isinstance(cell, bool):
        return str(cell).lower()
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell


def csv_lines(rows: Iterable[Sequence[Cell]]) -> str:
    """`rows` as lines; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([csv_cell(cell) for cell in row] for row in rows)
    return text.getvalue()
