"""The files of a journal, and the lines in them: how they are found, read, and judged.

A journal is a directory `journal-<id>` of segments named after the position at which they begin; positions count the
bytes of all lines ever written. A segment is preallocated and full of zeros: its data ends at the first zero byte. A
line is the CRC-32 of its JSON in eight hex digits, a space, the JSON, a newline.

What is wrong at the very end is torn: the last write of a process or machine that died. It was never acknowledged and
is left out. What is wrong and followed by something good is damage, and nobody writes behind it.
"""

import logging
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

PREFIX = "journal-"
SUFFIX = ".log"
BLOCK_BYTES = 65_536  # read at once: about 100 records
ZEROS = bytes(65_536)

_CRC_BYTES = 9  # eight digits and a space

_log = logging.getLogger("meter_proxy.ledger.journal")


class Segment(NamedTuple):
    """One file: the positions from `start` on."""

    start: int
    path: Path


class Line(NamedTuple):
    """One line: where it begins in its file, how long it is (newline included), and its JSON; None if it is wrong."""

    offset: int
    length: int
    text: bytes | None


def framed(text: bytes) -> bytes:
    """A line around JSON."""
    return b"%08x %b\n" % (crc32(text), text)


def unframed(line: bytes) -> bytes | None:
    """The JSON of a line without its newline; None if it does not match its checksum."""
    text = line[_CRC_BYTES:]
    return text if line[:_CRC_BYTES] == b"%08x " % crc32(text) else None


def journal_directories(directory: Path) -> list[Path]:
    """The journals in a worker's directory."""
    return sorted(path for path in directory.glob(PREFIX + "*") if path.is_dir())


def journal_id(directory: Path) -> str:
    """Whose journal it is, from its directory's name."""
    return directory.name.removeprefix(PREFIX)


def segments(directory: Path) -> list[Segment]:
    """The segments of a journal, in order."""
    found = [Segment(int(path.stem), path) for path in directory.glob(f"*{SUFFIX}") if path.stem.isdigit()]
    return sorted(found)


def segment_path(directory: Path, start: int) -> Path:
    """The file of the segment that begins at a position."""
    return directory / f"{start:016d}{SUFFIX}"


def read(path: Path, offset: int, length: int) -> bytes:
    """Up to `length` bytes of a file's data, fewer only at its end; nothing from a file that is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        data = os.pread(fd, length, offset)
    finally:
        os.close(fd)
    zero = data.find(0)
    return data if zero < 0 else data[:zero]


def data_length(path: Path) -> int:
    """Where the data of a segment ends; 0 if the file is gone. Found by halving: there is no zero byte in a line."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        low, high = 0, os.fstat(fd).st_size
        while low < high:
            middle = (low + high) // 2
            if os.pread(fd, 1, middle) in (b"\0", b""):
                high = middle
            else:
                low = middle + 1
        return low
    finally:
        os.close(fd)


def read_lines(path: Path, offset: int = 0) -> Iterator[Line]:
    """The whole lines of a segment from `offset` on; what has no newline yet is left out."""
    rest = b""
    while block := read(path, offset + len(rest), BLOCK_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield Line(offset, len(line) + 1, unframed(line))
            offset += len(line) + 1


class Examined(NamedTuple):
    """What a segment holds: its good data ends at `good_bytes`; then `torn_bytes` that nobody may believe.

    `damaged_at`: where something wrong stands before something good; None if nowhere.
    """

    good_bytes: int
    torn_bytes: int
    damaged_at: int | None


def examine(path: Path, offset: int = 0) -> Examined:
    """Judge a segment from `offset` (a line's beginning) to its end, zeros included. Raises `OSError`."""
    good = offset
    wrong_at: int | None = None
    if path.stat().st_size == 0:
        return Examined(0, 0, None)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = len(data)
        while end > good and data[end - 1] == 0:  # compared as blocks: 16 MiB in 2 ms
            block = max(good, end - len(ZEROS))
            rest = data[block:end]
            end = block if rest == ZEROS[: len(rest)] else block + len(rest.rstrip(b"\0"))
        at = good
        while at < end:
            newline = data.find(b"\n", at, end)
            stop = end if newline < 0 else newline + 1
            line = data[at : newline if newline >= 0 else end]
            is_good = newline >= 0 and unframed(line) is not None
            if is_good and wrong_at is None:
                good = stop
            elif is_good or (newline >= 0 and unframed(line.lstrip(b"\0")) is not None):
                return Examined(good, end - good, at if wrong_at is None else wrong_at)
            elif wrong_at is None:
                wrong_at = at
            at = stop
    return Examined(good, end - good, None)


def read_all_lines(path: Path) -> Iterator[Line]:
    """Everything in a segment that ends with a newline, whatever stands in it: zeros inside a line make it wrong."""
    offset = 0
    for line in path.read_bytes().rstrip(b"\0").split(b"\n"):
        yield Line(offset, len(line) + 1, unframed(line))
        offset += len(line) + 1
