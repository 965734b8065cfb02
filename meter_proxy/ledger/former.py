"""Looks after journals that nobody writes any more, and after directories that nobody serves.

A directory keeps its former journals when it begins a new one (see identity.py); and worker 0 looks after the
directories of workers beyond the present number. Their books are sent to Redis like our own, each under its journal's
id, so that whatever had been sent before counts once. What Redis has acknowledged is noted in their checkpoints.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from meter_proxy.ledger.books import Books
from meter_proxy.ledger.checkpoint import encode_books, load, write_checkpoint
from meter_proxy.ledger.segments import journal_directories
from meter_proxy.ledger.sync import Sync

_log = logging.getLogger("meter_proxy.ledger.former")


def worker_directories(own: Path, workers: int) -> list[Path]:
    """Return whose journals the worker of directory `own` looks after: its own, and for `w0` those of workers
    beyond the present number `workers`, left over from a time when there were more."""
    if own.name != "w0":
        return [own]
    beyond = [path for path in own.parent.glob("w*") if path.name[1:].isdigit() and int(path.name[1:]) >= workers]
    return [own, *sorted(path for path in beyond if path.is_dir() and path != own)]


def former_journals(directories: Iterable[Path], live: Path) -> list[Path]:
    """All journals in `directories` but the one that is written now."""
    return [journal for directory in directories for journal in journal_directories(directory) if journal != live]


async def adopt(sync: Sync, journals: Sequence[Path], *, again: bool) -> None:
    """Bring what Redis lacks of `journals` there; ends when it has it. `again`: everything, for it has lost data."""
    for journal in journals:
        try:
            loaded = load(journal, strict=False)
        except OSError as exc:
            _log.error("cannot read %s: %s", journal, exc.strerror)
            continue
        if again:
            await sync.acknowledged(sync.resend(loaded.books))
        elif waiting := sync.send_new(loaded.books):
            await sync.acknowledged(waiting)
        else:
            continue
        _note(journal, loaded.books, loaded.position)


def _note(journal: Path, books: Books, position: int) -> None:
    try:
        write_checkpoint(journal, encode_books(books, position))
    except OSError as exc:
        _log.warning("cannot note that Redis has %s, it will be sent again at the next start: %s", journal, exc)
