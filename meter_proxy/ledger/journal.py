"""The append-only log of settled exchanges: one line each. What stands in it is billed.

A line is a `UsageRecord` plus `model_label`, the name under which its tokens are totalled everywhere (see labels.py),
and where quotas apply `charges` (to which counters it belongs) and `cut_by` (the rule that ended the stream).
One `pwrite` is the commit point; how often that reaches the disk itself is `journal.fsync`.

Exactly one process writes to a directory, held by `flock`.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import msgspec

from meter_proxy.errors import CannotStart
from meter_proxy.ledger.segments import ZEROS, framed, segment_path
from meter_proxy.quota.charge import Charge
from meter_proxy.usage import UsageRecord

SEGMENT_BYTES = 16 * 1024 * 1024
SPARE = "spare"  # the next segment, allocated before it is needed


class SettledRecord(UsageRecord, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A settled exchange as it is shown and counted."""

    model_label: str
    cut_by: str | None = None  # `k/RULE` or `a/RULE`: the key's or the account's

    @property
    def admitted_at(self) -> float:
        """Return the admission in Unix seconds."""
        return instant(self.time)

    @property
    def settled_at(self) -> float:
        """Return the settlement in Unix seconds, as well as the record tells it (ms)."""
        return self.admitted_at + self.duration_ms / 1000


class JournalRecord(SettledRecord, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A settled exchange as it stands in the journal."""

    charges: tuple[Charge, ...] = ()


def instant(time: str) -> float:
    """RFC 3339 in Unix seconds. Raises `ValueError`."""
    ms = time[20:23]
    if len(time) == 24 and time[19] == "." and time[23] == "Z" and ms.isdigit():  # as we write it
        return (_second(time[:19]) * 1000 + int(ms)) / 1000
    return datetime.fromisoformat(time).timestamp()


@lru_cache(maxsize=4096)  # parsing takes 0.7 us; records come in the order of their settlement, so seconds repeat
def _second(time: str) -> int:
    return int(datetime.fromisoformat(time + "Z").timestamp())


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(JournalRecord).decode
_decode_settled = msgspec.json.Decoder(SettledRecord).decode


def encode_line(
    record: UsageRecord, model_label: str, charges: Sequence[Charge] = (), cut_by: str | None = None
) -> bytes:
    """Return the journal line of `record`, newline included. Raises `UnicodeEncodeError`: see `legible`."""
    # Spliced, not copied into a JournalRecord first: half the time, and settling is on the hot path.
    text = _encode(record)[:-1] + _labelled(model_label)
    if charges:
        text += b',"charges":' + _encode(charges)
    if cut_by is not None:
        text += b',"cut_by":' + _encode(cut_by)
    return framed(text + b"}")


@lru_cache(maxsize=1024)  # there are few: see labels.py
def _labelled(model_label: str) -> bytes:
    return b',"model_label":%b' % _encode(model_label)


def decode_record(text: bytes) -> JournalRecord:
    """Parse the JSON of a line. Raises `ValueError` for anything else."""
    record = _decode(text)  # msgspec's errors are ValueErrors
    instant(record.time)  # ... and so is this one: readers rely on the time
    return record


def decode_settled(text: bytes) -> SettledRecord:
    """The same, without the charges: for those who do not ask for them, at two thirds of the price."""
    record = _decode_settled(text)
    instant(record.time)
    return record


def without_charges(text: bytes) -> bytes:
    """The JSON of a line as it is shown. Inside a string the quotes of these names would be escaped."""
    begin = text.rfind(b',"charges":[')
    if begin < 0:
        return text
    end = text.rfind(b',"cut_by":')
    return text[:begin] + text[end if end > begin else -1 :]


def legible(record: UsageRecord) -> UsageRecord:
    """Return `record` with a `?` for what is not text: bytes of a header that are not UTF-8, half a surrogate pair."""
    members = msgspec.structs.asdict(record)
    texts = {name: value.encode("utf-8", "replace").decode() for name, value in members.items() if type(value) is str}
    return msgspec.structs.replace(record, **texts)


class DirectoryLock:
    """Exclusive ownership of a directory by this process, until `release()` or its death."""

    def __init__(self, directory: Path) -> None:
        """Take the lock, creating the directory where it is missing. Raises `CannotStart` naming the owner."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise CannotStart(f"cannot write to {directory}: {exc.strerror}") from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            owner = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise CannotStart(f"{directory} is in use by process {owner}; stop it, or use another state_dir") from exc
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Let the next process in. The file stays: removing it would let two processes lock two files."""
        os.close(self._fd)


class Journal:
    """The segment that is written now, and the next one. For one thread, but for `sync`."""

    def __init__(
        self, directory: Path, start: int = 0, length_bytes: int = 0, *, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        """Go on in the segment at `start` of `directory` (made if missing), behind `length_bytes` of good data.

        The caller holds the lock. What stands behind is cleared: a torn line. Raises `OSError`, also for a full disk.
        """
        directory.mkdir(mode=0o700, exist_ok=True)
        self.directory = directory
        self._segment_bytes = segment_bytes
        self._start = start
        self._length = length_bytes
        self._fd = _allocated(segment_path(directory, start), max(segment_bytes, length_bytes))
        self._capacity = os.fstat(self._fd).st_size
        self._clear_rest()
        self._has_spare = False
        self._torn = False
        self._unsynced = False
        self._fd_in_use = threading.Lock()
        self.make_spare()
        sync_directory(directory)

    @property
    def position(self) -> int:
        """How many bytes of lines were ever written: where the next line begins."""
        return self._start + self._length

    @property
    def path(self) -> Path:
        """The segment that is written now."""
        return segment_path(self.directory, self._start)

    @property
    def segment_start(self) -> int:
        """Where the segment that is written now begins."""
        return self._start

    @property
    def has_room(self) -> bool:
        """Whether there is room for everything that may be in flight: the next segment, or half of this one."""
        return self._has_spare or self._capacity - self._length > self._segment_bytes // 2

    def append(self, line: bytes) -> None:
        """Commit `line` in one write.

        After an `OSError` nothing of it is in the journal, and it may be tried again.
        """
        if self._torn:
            self._clear_rest()
        if self._length + len(line) > self._capacity:
            self._rotate(len(line))
        self._torn = True
        written = os.pwrite(self._fd, line, self._length)
        if written != len(line):
            raise OSError(errno.ENOSPC, "only a part of the record could be written")  # what short writes mean
        self._torn = False
        self._unsynced = True
        self._length += written

    def _clear_rest(self) -> None:
        """Take back half a line: the data ends where the good data ends."""
        for at in range(self._length, self._capacity, len(ZEROS)):
            rest = os.pread(self._fd, len(ZEROS), at)
            if rest != ZEROS[: len(rest)]:
                os.pwrite(self._fd, bytes(len(rest)), at)
        self._torn = False

    def _rotate(self, needed_bytes: int) -> None:
        """Go on in a new segment; the old one is cut to its data, and never written again."""
        start = self.position
        path = segment_path(self.directory, start)
        if self._has_spare:
            (self.directory / SPARE).rename(path)
            self._has_spare = False
        fd = _allocated(path, max(self._segment_bytes, needed_bytes))
        if self._unsynced:
            os.fdatasync(self._fd)
        os.ftruncate(self._fd, self._length)
        with self._fd_in_use:
            os.close(self._fd)
            self._fd = fd
        self._start, self._length = start, 0
        self._capacity = os.fstat(fd).st_size
        sync_directory(self.directory)
        self.make_spare()

    def make_spare(self) -> None:
        """Allocate the next segment, if that is possible now."""
        if self._has_spare:
            return
        path = self.directory / SPARE
        try:
            os.close(_allocated(path, self._segment_bytes))
            self._has_spare = True
        except OSError:
            path.unlink(missing_ok=True)  # what little room it took is wanted by others

    def sync(self) -> None:
        """Bring what was written to the disk itself; waits for the disk. In any thread. Raises `OSError`."""
        with self._fd_in_use:  # a rotation that wants to close it waits, as it does for its own flush
            self._unsynced = False
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Sync and close the file."""
        try:
            self.sync()
        finally:
            os.close(self._fd)

    def __repr__(self) -> str:
        return f"<Journal {self.directory.name} at {self.position}{' torn' if self._torn else ''}>"


def _allocated(path: Path, size: int) -> int:
    """Open a file that has room for `size` bytes, whatever happens to the disk later."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file, durably: whoever reads finds the old or the new, whole. Raises `OSError`."""
    scratch = path.with_name(path.name + ".new")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        sync_directory(path.parent)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
