"""The books of a journal on disk: totals up to a position, so that a start replays minutes, not months.

`checkpoint` is a short cut and may be missing or bad: then everything is replayed. `base` is not: it holds the totals
of segments that were removed, so that base and segments together always give the books, line by line.
"""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from meter_proxy.errors import DamagedJournal
from meter_proxy.ledger.books import Book, Books, DayBook
from meter_proxy.ledger.journal import JournalRecord, write_atomically
from meter_proxy.ledger.reading import decoded
from meter_proxy.ledger.segments import examine, journal_id, read_lines, segments
from meter_proxy.quota.charge import Unit

CHECKPOINT = "checkpoint"
BASE = "base"
SLICE = 500  # books that are encoded before the loop gets its turn: 1 ms

_log = logging.getLogger("meter_proxy.ledger")


class _Day(msgspec.Struct, array_like=True):
    account: str
    key: str
    day: str
    totals: dict[str, list[int]]
    acked_requests: dict[str, int]


class _Counter(msgspec.Struct, array_like=True):
    account: str
    holder: str
    owner: str
    rule: str
    window: str
    unit: Unit
    ends_at: int
    used: int
    acked_used: int


class _Totals(msgspec.Struct):
    position: int
    days: list[_Day]
    counters: list[_Counter]


class Loaded(NamedTuple):
    """Books as of the end of a journal."""

    books: Books
    position: int  # behind the last good line
    segment_start: int  # of the segment that it is in
    ids: set[str]  # of the records that were replayed


def encode_books(books: Books, position: int) -> bytes:
    """The totals of `books`, which hold the journal up to `position`: for `checkpoint` or `base`."""
    image = _Image(books, position)
    image.encode_some(len(image))
    return image.whole()


async def encode_in_slices(books: Books, position: int) -> bytes:
    """The same, of the books as they are now, though they go on meanwhile: the loop is held for 1 ms at most."""
    image = _Image(books, position)
    books.before_change = image.encode
    try:
        for _ in range(0, len(image), SLICE):
            image.encode_some(SLICE)
            await asyncio.sleep(0)
    finally:
        books.before_change = None
    return image.whole()


class _Image:
    """Books as they were at one moment. A book that is to change before its turn has come is encoded before."""

    def __init__(self, books: Books, position: int) -> None:
        self._position = position
        self._books = list(books)  # also counters of which nothing is used: something may be held in them
        self._encoded: dict[Book, bytes] = {}
        self._days: list[bytes] = []  # of those whose turn has come
        self._counters: list[bytes] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._books)

    def encode_some(self, count: int) -> None:
        """Encode the next `count`."""
        for book in self._books[self._next : self._next + count]:
            self.encode(book)
            (self._days if isinstance(book, DayBook) else self._counters).append(self._encoded[book])
        self._next += count

    def encode(self, book: Book) -> None:
        """Encode one, if it is not encoded yet."""
        if book not in self._encoded:
            self._encoded[book] = _encode_book(book)

    def whole(self) -> bytes:
        """All of them, in their order."""
        days, counters = b",".join(self._days), b",".join(self._counters)
        return b'{"position":%d,"days":[%b],"counters":[%b]}' % (self._position, days, counters)


_encode = msgspec.json.Encoder().encode


def _encode_book(book: Book) -> bytes:
    if isinstance(book, DayBook):
        return _encode((book.account, book.key, book.day, book.totals, book.acked_requests))
    return _encode(
        (
            book.account,
            book.holder,
            book.owner,
            book.rule,
            book.window,
            book.unit,
            book.ends_at,
            book.used,
            book.acked_used,
        )
    )


def write_checkpoint(directory: Path, data: bytes) -> None:
    """Put `encode_books` in place. Raises `OSError`."""
    write_atomically(directory / CHECKPOINT, data)


def load(directory: Path, *, strict: bool) -> Loaded:
    """The books of a journal, from its checkpoint and the lines after it.

    `strict`: it will be written again, so damage is refused. Else wrong lines are left out, with a line in the log.
    Raises `DamagedJournal`, `OSError`.
    """
    books, position = _read(directory / CHECKPOINT, journal_id(directory)) or load_base(directory)
    ids: set[str] = set()
    segment_start = position
    for segment, record, end in _records(directory, position, strict=strict):
        segment_start = segment
        if record is not None:
            books.add(record, record.model_label, record.charges)
            ids.add(record.id)
        position = end
    return Loaded(books, position, segment_start, ids)


def recompute(directory: Path) -> Books:
    """The books of a journal line by line, whatever its checkpoint says. Wrong lines are left out."""
    books, position = load_base(directory)
    for _, record, _ in _records(directory, position, strict=False):
        if record is not None:
            books.add(record, record.model_label, record.charges)
    return books


def load_base(directory: Path) -> tuple[Books, int]:
    """The totals of what was removed; nothing, where nothing was."""
    based = _read(directory / BASE, journal_id(directory))
    if based is not None:
        return based
    first = next(iter(segments(directory)), None)
    if first is not None and first.start > 0:
        raise DamagedJournal(str(first.path), 0, f"the totals of what came before are missing: {directory / BASE}")
    return Books(journal_id(directory)), 0


def _read(path: Path, journal: str) -> tuple[Books, int] | None:
    try:
        totals = msgspec.json.decode(path.read_bytes(), type=_Totals)
    except FileNotFoundError:
        return None
    except ValueError as exc:
        _log.warning("%s cannot be read and is left out: %s", path, exc)
        return None
    books = Books(journal)
    for day in totals.days:
        book = books.day(day.account, day.key, day.day)
        book.totals, book.acked_requests = day.totals, day.acked_requests
    for one in totals.counters:
        counter = books.counter(one.account, one.holder, one.owner, one.rule, one.window, one.unit, one.ends_at)
        counter.used, counter.acked_used = one.used, one.acked_used
    return books, totals.position


def _records(directory: Path, position: int, *, strict: bool) -> Iterator[tuple[int, JournalRecord | None, int]]:
    """From `position` on: the segment's start, the record (None: nothing good there), the position behind it."""
    found = segments(directory)
    for place, segment in enumerate(found):
        following = found[place + 1].start if place + 1 < len(found) else None
        if following is not None and following <= position:
            continue
        offset = max(0, position - segment.start)
        good_until: int | None = None
        if strict:
            good_until = _examined(segment.path, offset, is_last=following is None)
        yield segment.start, None, segment.start + offset
        for line in read_lines(segment.path, offset):
            if good_until is not None and line.offset >= good_until:
                break
            record = decoded(segment.path, line.offset, line.text)
            yield segment.start, record, segment.start + line.offset + line.length
        if following is not None:
            yield segment.start, None, following


def _examined(path: Path, offset: int, *, is_last: bool) -> int:
    """Where the good data of a segment ends. Raises `DamagedJournal` for what no killed process can have left."""
    result = examine(path, offset)
    if result.damaged_at is not None:
        raise DamagedJournal(str(path), result.damaged_at, "something good follows something wrong")
    if result.torn_bytes and not is_last:
        raise DamagedJournal(str(path), result.good_bytes, "it does not end with a whole line")
    if result.torn_bytes:
        _log.warning("%s: %d bytes of a torn line at byte %d are cut off", path, result.torn_bytes, result.good_bytes)
    return result.good_bytes
