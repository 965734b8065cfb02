"""Reads the journals of a state directory: beside a running `serve`, or without one; never writes.

No file stays open between two reads, so any number of journals can be read. A journal that disappears
meanwhile is as one that was never there. Whole lines only: the torn last line of a killed worker is not a
record. It is logged by whoever reads it to its end, and so is a damaged line; both are left out.
"""

import heapq
import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from meter_proxy.ledger.journal import FILE_PATTERN, JournalRecord, decode_line

BLOCK_BYTES = 65_536  # read at once: about 100 records
MAX_POLL_BYTES = 4_194_304  # of one file in one poll; the rest comes with the next

_log = logging.getLogger("meter_proxy.ledger.reading")


def journal_files(state_dir: Path, *, since: float = 0.0) -> list[Path]:
    """Return the journals of all workers, less those that had nothing new at `since` (Unix seconds) or later."""
    return [path for path in state_dir.glob(f"w*/{FILE_PATTERN}") if _is_newer(path, since)]


def iter_records(state_dir: Path, *, since: float = 0.0) -> Iterator[JournalRecord]:
    """Yield the records of all workers in the order of their settlement, those admitted before `since` left out."""
    journals = [read_journal(path) for path in journal_files(state_dir, since=since)]
    for record in heapq.merge(*journals, key=_settled_at):
        if not since or record.admitted_at >= since:
            yield record


def newest_records(state_dir: Path, *, limit: int, key: str | None = None, since: float = 0.0) -> list[JournalRecord]:
    """Return the newest `limit` records, oldest first by settlement; optionally of one key, admitted since then.

    Reads the journals from their ends, no further than needed.
    """
    journals = [_read_backwards(path, since) for path in journal_files(state_dir, since=since)]
    newest_first = (
        record
        for record in heapq.merge(*journals, key=_settled_at, reverse=True)
        if (key is None or record.key == key) and (not since or record.admitted_at >= since)
    )
    return list(itertools.islice(newest_first, limit))[::-1]


def read_journal(path: Path) -> Iterator[JournalRecord]:
    """Yield the records of one journal as they were written."""
    offset, rest = 0, b""
    while block := _read(path, offset + len(rest), BLOCK_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if (record := _decoded(path, offset, line)) is not None:
                yield record
            offset += len(line) + 1
    if rest:
        _log.warning("%s: the last line, at byte %d, is torn (a killed process?) and left out", path, offset)


def _read_backwards(path: Path, since: float) -> Iterator[JournalRecord]:
    """Yield the records of one journal, last one first, down to the last that was settled before `since`."""
    end = size_of(path)
    rest, at_tail = b"", True
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        block = _read(path, start, end - start)
        rest, *lines = (block + rest).split(b"\n")
        end = start
        if start == 0:
            lines.insert(0, rest)
        for line in reversed(lines):
            if at_tail:  # what comes after the last newline: nothing, or torn
                at_tail = False
                continue
            record = _decoded(path, start, line)
            if record is None:
                continue
            if since and record.settled_at < since:
                return
            yield record


class RecordTail:
    """Follows the journals of all workers: `poll()` returns what was settled since the last call.

    Sees journals that appear later from their beginning. A poll costs one `stat` per journal and reads
    only what is new.
    """

    def __init__(self, state_dir: Path) -> None:
        """Begin at the present ends of the journals that exist."""
        self._state_dir = state_dir
        self._offsets = {path: _end_of_last_line(path) for path in journal_files(state_dir)}

    def poll(self) -> list[JournalRecord]:
        """Return the new records, in the order of settlement among themselves; the empty list if there are none."""
        records: list[JournalRecord] = []
        offsets: dict[Path, int] = {}
        for path in journal_files(self._state_dir):
            offsets[path] = self._read_new(path, self._offsets.get(path, 0), records)
        self._offsets = offsets
        records.sort(key=_settled_at)
        return records

    def _read_new(self, path: Path, offset: int, records: list[JournalRecord]) -> int:
        if size_of(path) <= offset:
            return offset
        *lines, _ = _read(path, offset, MAX_POLL_BYTES).split(b"\n")
        for line in lines:
            if (record := _decoded(path, offset, line)) is not None:
                records.append(record)
            offset += len(line) + 1
        return offset


def _settled_at(record: JournalRecord) -> float:
    return record.settled_at


def _decoded(path: Path, offset: int, line: bytes) -> JournalRecord | None:
    try:
        return decode_line(line)
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


def size_of(path: Path) -> int:
    """Return the size of a journal in bytes; 0 if it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(path: Path, offset: int, length: int) -> bytes:
    """Return up to `length` bytes, fewer only at the end; nothing from a file that is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def _end_of_last_line(path: Path) -> int:
    end = size_of(path)
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        newline = _read(path, start, end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
