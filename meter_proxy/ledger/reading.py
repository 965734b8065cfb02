"""Reads the journals of a state directory: beside a running `serve`, or without one; never writes.

No file stays open between two reads, so any number of journals can be read. A segment that disappears meanwhile is as
one that was never there. Whole lines only: the torn last line of a killed worker is not a record. A damaged line is
logged by whoever meets it, and left out.
"""

import heapq
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

from meter_proxy.ledger import segments
from meter_proxy.ledger.journal import JournalRecord, decode_record
from meter_proxy.ledger.segments import data_length, journal_directories, unframed

MAX_POLL_BYTES = 4_194_304  # of one journal in one poll; the rest comes with the next

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
    for segment in segments.segments(journal):
        if not _is_newer(segment.path, since):
            continue
        yield from read_segment(segment.path, None if until is None else until - segment.start)


def read_segment(path: Path, until: int | None = None) -> Iterator[JournalRecord]:
    """Yield the records of one segment, up to the offset `until`."""
    for line in segments.read_lines(path):
        if until is not None and line.offset >= until:
            return
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


class RecordTail:
    """Follows the journals of all workers: `poll()` returns what was settled since the last call.

    Sees journals that appear later from their beginning. A poll costs one small read per journal and reads
    only what is new.
    """

    def __init__(self, state_dir: Path) -> None:
        """Begin at the present ends of the journals that exist."""
        self._state_dir = state_dir
        self.began_at = {journal: _end(journal) for journal in journals(state_dir)}  # positions
        self._positions = dict(self.began_at)

    def poll(self) -> list[JournalRecord]:
        """Return the new records, in the order of settlement among themselves; the empty list if there are none."""
        records: list[JournalRecord] = []
        self._positions = {
            journal: _read_new(journal, self._positions.get(journal, 0), records)
            for journal in journals(self._state_dir)
        }
        records.sort(key=_settled_at)
        return records


def _read_new(journal: Path, position: int, records: list[JournalRecord]) -> int:
    """Read on from a position, over the ends of segments; -> the position behind the last whole line."""
    found = segments.segments(journal)
    for segment, following in itertools.zip_longest(found, found[1:]):
        if following is not None and following.start <= position:
            continue
        offset = max(0, position - segment.start)  # below 0: what was there has been removed
        *lines, _ = segments.read(segment.path, offset, MAX_POLL_BYTES).split(b"\n")
        for line in lines:
            if (record := decoded(segment.path, offset, unframed(line))) is not None:
                records.append(record)
            offset += len(line) + 1
        position = segment.start + offset
        if following is not None and position < following.start:
            break  # more of this one with the next poll
    return position


def _end(journal: Path) -> int:
    """The position behind the last whole line."""
    found = segments.segments(journal)
    if not found:
        return 0
    start, path = found[-1]
    end = data_length(path)
    while end > 0:
        begin = max(0, end - segments.BLOCK_BYTES)
        newline = segments.read(path, begin, end - begin).rfind(b"\n")
        if newline >= 0:
            return start + begin + newline + 1
        end = begin
    return start


def _settled_at(record: JournalRecord) -> float:
    return record.settled_at


def decoded(path: Path, offset: int, text: bytes | None) -> JournalRecord | None:
    """Parse the JSON of a line; None, and a word in the log, for what is no record."""
    try:
        return decode_record(text or b"")
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
