"""Reads the journals of a state directory: beside a running `serve`, or without one; never writes.

No file stays open between two reads, so any number of journals can be read. A segment that disappears meanwhile is as
one that was never there. Whole lines only: the torn last line of a killed worker is not a record. A damaged line is
logged by whoever meets it, and left out.
"""

import heapq
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from meter_proxy.ledger import segments
from meter_proxy.ledger.journal import JournalRecord, SettledRecord, decode_record
from meter_proxy.ledger.segments import data_length, journal_directories, unframed

R = TypeVar("R", bound=SettledRecord)

_log = logging.getLogger("meter_proxy.ledger.reading")


def journals(state_dir: Path) -> list[Path]:
    """The journals of all workers, former ones too."""
    return [journal for worker in sorted(state_dir.glob("w*")) for journal in journal_directories(worker)]


def iter_records(state_dir: Path, *, since: float = 0.0) -> Iterator[JournalRecord]:
    """Yield the records of all workers in the order of their settlement, those admitted before `since` left out."""
    found = [read_journal(journal, since=since) for journal in journals(state_dir)]
    for record in heapq.merge(*found, key=_settled_at):
        if not since or record.admitted_at >= since:
            yield record


def newest_records(state_dir: Path, *, limit: int, key: str | None = None, since: float = 0.0) -> list[JournalRecord]:
    """Return the newest `limit` records, oldest first by settlement; optionally of one key, admitted since then.

    Reads the journals from their ends, no further than needed.
    """
    found = [_read_backwards(journal, since) for journal in journals(state_dir)]
    newest_first = (
        record
        for record in heapq.merge(*found, key=_settled_at, reverse=True)
        if (key is None or record.key == key) and (not since or record.admitted_at >= since)
    )
    return list(itertools.islice(newest_first, limit))[::-1]


def read_journal(journal: Path, *, since: float = 0.0, until: int | None = None) -> Iterator[JournalRecord]:
    """Yield the records of one journal as they were written, up to the position `until`.

    Segments without news at `since` (Unix seconds) or later are left out.
    """
    for path, offset, text in read_texts(journal, since=since, until=until):
        if (record := decoded(path, offset, text)) is not None:
            yield record


def read_texts(
    journal: Path, *, since: float = 0.0, until: int | None = None
) -> Iterator[tuple[Path, int, bytes | None]]:
    """Yield the lines of one journal as they were written, each as its file, the offset, and its JSON: None if wrong.

    `since`, `until`: see `read_journal`.
    """
    for start, path in segments.segments(journal):
        if _is_newer(path, since):
            for offset, _, text in segments.read_lines(path):
                if until is not None and start + offset >= until:
                    return
                yield path, offset, text


def read_segment(path: Path) -> Iterator[JournalRecord]:
    """Yield the records of one segment."""
    for line in segments.read_lines(path):
        if (record := decoded(path, line.offset, line.text)) is not None:
            yield record


def _read_backwards(journal: Path, since: float) -> Iterator[JournalRecord]:
    """Yield the records of one journal, last one first, down to the last that was settled before `since`."""
    for segment in reversed(segments.segments(journal)):
        if not _is_newer(segment.path, since):
            return
        for record in _segment_backwards(segment.path):
            if since and record.settled_at < since:
                return
            yield record


def _segment_backwards(path: Path) -> Iterator[JournalRecord]:
    end = data_length(path)
    rest, at_tail = b"", True
    while end > 0:
        start = max(0, end - segments.BLOCK_BYTES)
        rest, *lines = (segments.read(path, start, end - start) + rest).split(b"\n")
        end = start
        if start == 0:
            lines.insert(0, rest)
        for line in reversed(lines):
            if at_tail:  # what comes after the last newline: nothing, or torn
                at_tail = False
            elif (record := decoded(path, start, unframed(line))) is not None:
                yield record


def _settled_at(record: JournalRecord) -> float:
    return record.settled_at


def decoded(path: Path, offset: int, text: bytes | None) -> JournalRecord | None:
    """Parse the JSON of a line; None, and a word in the log, for what is no record."""
    return decoded_by(decode_record, path, offset, text)


def decoded_by(decode: Callable[[bytes], R], path: Path, offset: int, text: bytes | None) -> R | None:
    """The same, with another decoder."""
    try:
        return decode(text or b"")
    except ValueError as exc:
        _log.warning("%s: the line at byte %d is damaged and left out: %s", path, offset, exc)
        return None


def _is_newer(path: Path, since: float) -> bool:
    if not since:
        return True
    try:
        return path.stat().st_mtime >= since
    except FileNotFoundError:
        return False
