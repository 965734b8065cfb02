"""Follows the journals of a state directory while workers write them.

Made for a reader that looks several times a second, at journals in which mostly nothing happens: a look at one of
these is one small read. No file stays open between two looks, so any number of journals can be followed. Directories
are listed only when they have changed.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from meter_proxy.ledger import segments
from meter_proxy.ledger.journal import JournalRecord
from meter_proxy.ledger.reading import decoded, journals
from meter_proxy.ledger.segments import data_length, journal_directories, segment_path, unframed

MAX_POLL_BYTES = 4_194_304  # of one journal in one poll; the rest comes with the next
FIRST_BYTES = 4_096  # read to see whether there is something; what is preallocated is zeros
BLOCK_BYTES = 262_144
SETTLED_NS = 100_000_000  # a directory that changed later than this may change again under the same time stamp


class _Journal:
    """One journal, and how far it has been read."""

    __slots__ = ("directory", "path", "position", "start")

    def __init__(self, directory: Path, position: int) -> None:
        self.directory = directory
        self.position = position  # behind the last whole line
        self.start = 0  # of the segment that is read
        self.path = directory  # of the same; nothing that can be read: it is looked for when it is needed

    def look_for_segment(self) -> bool:
        """Go to the segment that holds the position; to the next one if it has been removed. False: there is none."""
        found = segments.segments(self.directory)
        for segment in reversed(found):
            self.start, self.path = segment
            if segment.start <= self.position:
                break
        self.position = max(self.position, self.start)
        return bool(found)

    def go_on(self) -> bool:
        """Go to the segment that begins at the position; False: there is none."""
        path = segment_path(self.directory, self.position)
        if self.position == self.start or not path.exists():
            return False
        self.start, self.path = self.position, path
        return True

    def read(self, length: int) -> tuple[bytes, bool]:
        """Up to `length` bytes of data behind the position; and whether the file ends there, zeros and all."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(fd, length, self.position - self.start)
        finally:
            os.close(fd)
        zero = data.find(0)
        return (data, len(data) < length) if zero < 0 else (data[:zero], False)


class RecordTail:
    """`poll()` returns what was settled since the last call, by whatever worker; also in journals that appear later."""

    def __init__(self, state_dir: Path, *, max_bytes: int | None = None) -> None:
        """Begin at the present ends of the journals that exist. `max_bytes`: of one journal in one poll."""
        self._max_bytes = max_bytes
        self._directories = _Directories(state_dir)
        self.began_at = {journal: _end(journal) for journal in journals(state_dir)}  # positions
        self._journals = {journal: _Journal(journal, position) for journal, position in self.began_at.items()}
        self.is_behind = False  # the last poll has left something for the next

    def poll(self) -> list[JournalRecord]:
        """The new records, in the order of settlement among themselves; the empty list if there are none."""
        found = (decoded(*line) for line in self.new_lines())
        return sorted((record for record in found if record is not None), key=lambda record: record.settled_at)

    def new_lines(self) -> list[tuple[Path, int, bytes | None]]:
        """The new lines, each as its file, the offset, and its JSON: None if it is wrong."""
        self.is_behind = False
        present = self._directories.journals()
        if present.keys() != self._journals.keys():
            self._journals = {path: self._journals.get(path) or _Journal(path, 0) for path in present}
        lines: list[tuple[Path, int, bytes | None]] = []
        for journal in self._journals.values():
            lines += self._new_lines(journal)
        return lines

    def _new_lines(self, journal: _Journal) -> Iterator[tuple[Path, int, bytes | None]]:
        left = MAX_POLL_BYTES if self._max_bytes is None else self._max_bytes
        length = FIRST_BYTES
        while left > 0:
            wanted = min(length, left)
            try:
                data, is_end = journal.read(wanted)
            except (FileNotFoundError, IsADirectoryError):
                if not journal.look_for_segment():
                    return
                continue
            *lines, rest = data.split(b"\n")
            offset = journal.position - journal.start
            for line in lines:
                yield journal.path, offset, unframed(line)
                offset += len(line) + 1
            journal.position = journal.start + offset
            if len(data) < wanted and not (is_end and not rest and journal.go_on()):
                return
            left -= len(data)
            length = BLOCK_BYTES if lines else length + BLOCK_BYTES  # a long line
        self.is_behind = True


class _Directories:
    """Which journals there are; lists a directory again only when it has changed."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._listed: dict[Path, tuple[int, list[Path]]] = {}  # -> time of its change, what is in it

    def journals(self) -> dict[Path, None]:
        """All of them, former ones too."""
        workers = self._in(self._state_dir)
        return dict.fromkeys(journal for worker in workers for journal in self._in(worker))

    def _in(self, directory: Path) -> list[Path]:
        try:
            changed_ns = directory.stat().st_mtime_ns
        except OSError:
            return []
        known = self._listed.get(directory)
        if known is not None and known[0] == changed_ns:
            return known[1]
        is_settled = time.time_ns() - changed_ns > SETTLED_NS
        found = sorted(directory.glob("w*")) if directory == self._state_dir else journal_directories(directory)
        self._listed[directory] = changed_ns if is_settled else -1, found
        return found


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
