"""The table of live exchanges: what must not be lost when this process is killed between two lines.

One memory-mapped file per worker, preallocated. A live exchange owns a slot from its admission to its
settlement: what its record needs stands in it by value (no index into a configuration that may have
changed by then), and before each forwarded read what was counted is stored in aligned 8-byte words.
No system call; the page cache outlives a `kill -9`.

A word is stored whole or not at all, and so is a store of Python's (`memoryview` cast to 'Q'; one byte
at a time could tear). Order does the rest: a slot's text is there before its state says "live", and a
usage's counts before its basis says that they may be believed.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from meter_proxy.metering.tally import Reading
from meter_proxy.usage import Basis, Usage

SLOTS = 16_384  # live exchanges per worker; beyond that, 503
SLOT_BYTES = 2_048
TEXT_BYTES = SLOT_BYTES - 128  # for the JSON of what does not change
FILE = "slots"

_MAGIC = b"mpslots2"
_HEADER_BYTES = 4_096
_WORD_BYTES = 8
_SLOT_WORDS = SLOT_BYTES // _WORD_BYTES
_FREE, _LIVE = 0, 1
# Words of a slot.
_STATE, _TEXT_LENGTH, _REACHED, _CONTENT_EVENTS, _STAGE, _STATUS, _TTFT = range(7)
_BASIS, _INPUT_BASIS, _INPUT, _OUTPUT, _CACHED, _REASONING = range(7, 13)
_FINISHED, _DONE, _FAILED = 1, 2, 4  # bits of _STAGE
_TEXT_AT = SLOT_BYTES - TEXT_BYTES  # from the slot's beginning
_pack_word = struct.Struct("@Q").pack
_CLEARED = bytes(_TEXT_AT - _WORD_BYTES * _REACHED)  # from there up to the text
_RUNNING, _REPORTED, _NONE = Basis.RUNNING, Basis.REPORTED, Basis.NONE  # looking them up there takes 0.2 us each
_BASES = (Basis.NONE, Basis.COUNTED, Basis.RUNNING, Basis.REPORTED)
_CODES = {basis: code for code, basis in enumerate(_BASES)}


class Progress(NamedTuple):
    """How far an exchange had come, as its slot tells it."""

    text: bytes  # what was given to `take`
    reached_upstream: bool
    content_events: int
    finished: bool
    done: bool
    failed: bool
    status: int | None
    reading: Reading
    ttft_us: int | None


class Slot:
    """One live exchange's place. Everything here is a few stores; nothing waits."""

    __slots__ = ("_at", "_free", "_noted", "_taken_at", "counter", "output", "words")

    def __init__(self, words: memoryview, at: int, free: list[int]) -> None:
        """`words[counter] = N` notes that N content events have come: the plain case of `note`, for each chunk.

        And `words[output] = N + 1` that, of a reading that was noted, now N output tokens are told.
        """
        self.words = words  # of the whole table
        self.counter = at + _CONTENT_EVENTS
        self.output = at + _OUTPUT
        self._at = at  # the slot's first word
        self._free = free  # where that goes in the end
        self._noted: Reading | None = None  # what stands there already
        self._taken_at = perf_counter()

    def forwarded(self) -> None:
        """Note that the request is about to reach an upstream: from here on it may cost something."""
        self.words[self._at + _REACHED] = 1

    def note(self, reading: Reading, *, content_events: int, finished: bool, done: bool, failed: bool) -> None:
        """Note everything that a meter knows."""
        words, at = self.words, self._at
        words[at + _CONTENT_EVENTS] = content_events
        if reading is not self._noted:
            self._noted = reading
            self._note_usage(reading)
        words[at + _STAGE] = _FINISHED * finished | _DONE * done | _FAILED * failed

    def _note_usage(self, reading: Reading) -> None:
        words, at, usage = self.words, self._at, reading.usage
        basis, input_basis = reading.basis, reading.input_basis
        if basis is _RUNNING or basis is _REPORTED or input_basis is not None:
            words[at + _INPUT] = _present(usage.input_tokens)
            words[at + _OUTPUT] = _present(usage.output_tokens)
            words[at + _CACHED] = _present(usage.cached_input_tokens)
            words[at + _REASONING] = _present(usage.reasoning_tokens)
            words[at + _INPUT_BASIS] = _CODES[input_basis or _NONE]
            words[at + _BASIS] = _CODES[basis]  # last: now they may be believed

    def answered(self, status: int) -> None:
        """Note that the client is about to get a head with this status."""
        self.words[self._at + _STATUS] = status

    def first_token(self, at: float) -> None:
        """Note when the first token came (`time.perf_counter`)."""
        self.words[self._at + _TTFT] = max(0, round((at - self._taken_at) * 1e6)) + 1

    def free(self) -> None:
        """The exchange is in the journal: the slot is anybody's."""
        self.words[self._at + _STATE] = _FREE
        self._free.append(self._at)


class SlotTable:
    """The slots of one worker and incarnation."""

    def __init__(self, directory: Path, slots: int = SLOTS) -> None:
        """Make the file anew, all slots free; what a former incarnation left must have been recovered.

        Raises `OSError`, also where the disk has no room for it.
        """
        size = _HEADER_BYTES + slots * SLOT_BYTES
        path = directory / FILE
        scratch = path.with_suffix(".new")
        fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)  # a sparse file would end in SIGBUS on a full disk
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._map[: len(_MAGIC)] = _MAGIC
        scratch.replace(path)
        self.words = memoryview(self._map).cast("Q")
        first = _HEADER_BYTES // _WORD_BYTES
        self._free = list(range(first + (slots - 1) * _SLOT_WORDS, first - 1, -_SLOT_WORDS))

    def take(self, text: bytes) -> Slot | None:
        """A slot for an exchange that `text` (at most TEXT_BYTES) describes; None when all are taken."""
        if not self._free:
            return None
        at = self._free.pop()
        start = (at + _TEXT_LENGTH) * _WORD_BYTES
        content = _pack_word(len(text)) + _CLEARED + text  # all but the state, in one go
        self._map[start : start + len(content)] = content
        self.words[at + _STATE] = _LIVE
        return Slot(self.words, at, self._free)

    def close(self) -> None:
        """Let the file go; it stays as it is."""
        self.words.release()
        self._map.close()


def remove_slots(directory: Path) -> None:
    """Remove the table: nothing is in flight any more."""
    (directory / FILE).unlink(missing_ok=True)


def read_live(directory: Path) -> list[Progress]:
    """What the last process was serving when it ended; nothing without a table."""
    try:
        data = (directory / FILE).read_bytes()
    except FileNotFoundError:
        return []
    if not data.startswith(_MAGIC) or len(data) < _HEADER_BYTES:
        return []
    return list(_live(data))


def _live(data: bytes) -> Iterator[Progress]:
    view = memoryview(data)[: len(data) // _WORD_BYTES * _WORD_BYTES]
    words = view.cast("Q")
    for at in range(_HEADER_BYTES // _WORD_BYTES, len(words) - _SLOT_WORDS + 1, _SLOT_WORDS):
        if words[at + _STATE] == _LIVE:
            yield _progress(data, words, at)


def read_some(directory: Path, first: int, count: int) -> tuple[list[Progress], bool]:
    """What a running process is serving, read beside it: the exchanges in `count` slots from the number `first` on.

    Both are even. Also tells whether there are slots behind these. The process goes on meanwhile: text that is being
    replaced may come in parts of two, counts are of some moment in between. No mapping is kept: the file will be
    replaced.
    """
    begin, length = _HEADER_BYTES + first * SLOT_BYTES, count * SLOT_BYTES
    try:
        fd = os.open(directory / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return [], False
    try:
        end = os.fstat(fd).st_size
        if begin >= end:
            return [], False
        data = mmap.mmap(fd, min(length, end - begin), prot=mmap.PROT_READ, offset=begin)
    finally:
        os.close(fd)
    with data, memoryview(data) as view, view.cast("Q") as words:
        found = [_progress(data, words, at) for at in range(0, len(words), _SLOT_WORDS) if words[at + _STATE] == _LIVE]
    return found, begin + length < end


def _progress(data: bytes | mmap.mmap, words: memoryview, at: int) -> Progress:
    start = at * _WORD_BYTES + _TEXT_AT
    content_events, stage = words[at + _CONTENT_EVENTS], words[at + _STAGE]
    basis = _BASES[words[at + _BASIS]]
    input_basis = _BASES[words[at + _INPUT_BASIS]] if words[at + _BASIS] else Basis.NONE
    if basis in (Basis.RUNNING, Basis.REPORTED):
        usage = Usage(
            _absent(words[at + _INPUT]),
            _absent(words[at + _OUTPUT]),
            _absent(words[at + _CACHED]),
            _absent(words[at + _REASONING]),
        )
    else:
        known = _absent(words[at + _INPUT]) if input_basis is not Basis.NONE else None
        usage = Usage(input_tokens=known, output_tokens=content_events)
        basis = Basis.COUNTED if content_events else Basis.NONE
    return Progress(
        text=data[start : start + min(words[at + _TEXT_LENGTH], TEXT_BYTES)],
        reached_upstream=bool(words[at + _REACHED]),
        content_events=content_events,
        finished=bool(stage & _FINISHED),
        done=bool(stage & _DONE),
        failed=bool(stage & _FAILED),
        status=words[at + _STATUS] or None,
        reading=Reading(usage, basis, None if input_basis is Basis.NONE else input_basis),
        ttft_us=_absent(words[at + _TTFT]),
    )


def _present(count: int | None) -> int:
    return 0 if count is None else count + 1


def _absent(word: int) -> int | None:
    return word - 1 if word else None
