"""Totals of usage records, as `/api/usage` and the command `usage` show them."""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from meter_proxy.ledger.books import FIELDS, DayBook
from meter_proxy.ledger.journal import JournalRecord

DIMENSIONS: dict[str, Callable[[JournalRecord], str]] = {
    "key": lambda record: record.key,
    "model": lambda record: record.model_label,
    "day": lambda record: record.time[:10],
}
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_by(text: str) -> tuple[str, ...]:
    """Parse `key,model,day`: one or more of them, in the order of the columns. Raises `ValueError`."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in DIMENSIONS:
            raise ValueError(f"cannot total by {name!r}: choose from {','.join(DIMENSIONS)}")
    if len(set(names)) != len(names):
        raise ValueError(f"{text!r} names something twice")
    return names


def parse_since(text: str, now: float) -> float:
    """Parse `7d`, `24h`, `30m`, `90s` (before `now`), a date or an RFC 3339 time (UTC if it names no zone).

    Returns Unix seconds. Raises `ValueError` with a sentence to show.
    """
    if match := re.fullmatch(r"(\d{1,9})([smhd])", text):
        return now - int(match[1]) * UNIT_S[match[2]]
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as exc:
        raise ValueError(f"{text!r} is neither a time span such as 7d, 24h, 30m nor a date such as 2026-01-31") from exc


def summarise(
    records: Iterable[JournalRecord], by: Sequence[str] = ("key", "model", "day"), since: float = 0.0
) -> list[dict[str, str | int]]:
    """Total `records` admitted at `since` (Unix seconds) or later; a row has the columns `by` and `books.FIELDS`.

    `model` is the label (see labels.py), so that the rows add up to what Redis and Prometheus show; `day` the UTC
    day of admission, `2026-01-31`. Rows are sorted by their columns. No record, no row.
    """
    groups: dict[tuple[str, ...], DayBook] = {}
    of = [DIMENSIONS[name] for name in by]
    for record in records:
        if since and record.admitted_at < since:
            continue
        group = tuple(value(record) for value in of)
        if group not in groups:
            groups[group] = DayBook("", "", "", "")
        groups[group].add(record, "")
    return [
        {**dict(zip(by, group, strict=True)), **dict(zip(FIELDS, groups[group].totals[""], strict=True))}
        for group in sorted(groups)
    ]
