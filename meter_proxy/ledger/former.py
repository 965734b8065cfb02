"""Brings the journals of former incarnations to Redis: of workers that were killed, or stopped while Redis was away.

Each is replayed into books under its own journal id, so that whatever had been sent before counts once. When
Redis has acknowledged all of them, a marker beside the journal says so; it keeps the last book, with which the
next start checks in one message whether Redis still has what it acknowledged.

No lock is needed to read another worker's journal: the totals of a file that still grows are older, not wrong.
"""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec

from meter_proxy.ledger.books import REQUESTS, Books, DayBook
from meter_proxy.ledger.journal import FILE_PATTERN
from meter_proxy.ledger.reading import read_journal, size_of
from meter_proxy.ledger.sync import Sync

RECORDS_PER_TURN = 100  # replayed before traffic gets its turn: ~0.5 ms

_log = logging.getLogger("meter_proxy.ledger.former")


class Marker(msgspec.Struct, frozen=True):
    """Says that Redis has acknowledged the first `length_bytes` of a journal, and which book came last."""

    length_bytes: int
    account: str
    key: str
    day: str
    totals: dict[str, list[int]]


def write_marker(journal: Path, length_bytes: int, last: DayBook) -> None:
    """Note that Redis has all of `journal`, atomically. Raises `OSError`."""
    path = journal.with_suffix(".synced")
    scratch = journal.with_suffix(".synced-new")
    marker = Marker(length_bytes, last.account, last.key, last.day, last.totals)
    scratch.write_bytes(msgspec.json.encode(marker))
    scratch.replace(path)


async def adopt(sync: Sync, directories: Iterable[Path], *, live: Path, again: bool) -> None:
    """Bring every journal in `directories`, except the one at `live`, to Redis; ends when Redis has them all.

    With `again`, also those that a marker says Redis has: it has lost data. Otherwise these are only checked.
    """
    for directory in directories:
        for journal in sorted(directory.glob(FILE_PATTERN)):
            if journal != live:
                await _adopt_journal(sync, journal, again=again)


async def _adopt_journal(sync: Sync, journal: Path, *, again: bool) -> None:
    length_bytes = size_of(journal)
    marker = _read_marker(journal)
    if marker is not None and marker.length_bytes == length_bytes and not again:
        book = DayBook(_journal_id(journal), marker.account, marker.key, marker.day)
        book.totals = marker.totals
        book.acked_requests = {label: totals[REQUESTS] for label, totals in marker.totals.items()}
        sync.check(book)
        return
    books = Books(_journal_id(journal))
    last: DayBook | None = None
    for number, record in enumerate(read_journal(journal), start=1):
        last = books.add(record, record.model_label)
        if number % RECORDS_PER_TURN == 0:
            await asyncio.sleep(0)
    if last is None:
        return
    await sync.acknowledged(sync.resend(books))
    try:
        write_marker(journal, length_bytes, last)
    except OSError as exc:
        _log.warning("cannot note that Redis has %s, it will be sent again at the next start: %s", journal, exc)


def _read_marker(journal: Path) -> Marker | None:
    """Return the marker of `journal`; None if it has none, or not one that can be trusted."""
    try:
        return msgspec.json.decode(journal.with_suffix(".synced").read_bytes(), type=Marker)
    except (OSError, ValueError):
        return None


def _journal_id(journal: Path) -> str:
    return journal.stem.removeprefix("records-")


def worker_directories(own: Path, workers: int) -> list[Path]:
    """Return whose journals the worker of directory `own` looks after: its own, and for `w0` those of workers
    beyond the present number `workers`, left over from a time when there were more."""
    if own.name != "w0":
        return [own]
    beyond = [path for path in own.parent.glob("w*") if path.name[1:].isdigit() and int(path.name[1:]) >= workers]
    return [own, *sorted(path for path in beyond if path.is_dir() and path != own)]
