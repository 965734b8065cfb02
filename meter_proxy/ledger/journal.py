"""The append-only log of settled exchanges: one JSON line each, one file per incarnation of a worker.

A line is a `UsageRecord` plus `model_label`, the name under which its tokens are totalled everywhere
(see labels.py). A line exists when its newline does: whoever reads skips what comes after the last one.
Exactly one process writes to a directory, held by `flock`; it never touches the files of its predecessors.
"""

import errno
import fcntl
import os
import secrets
from datetime import datetime
from pathlib import Path

import msgspec

from meter_proxy.errors import CannotStart
from meter_proxy.usage import UsageRecord

FILE_PATTERN = "records-*.jsonl"


class JournalRecord(UsageRecord, frozen=True, kw_only=True):
    """A settled exchange as it stands in the journal."""

    model_label: str

    @property
    def admitted_at(self) -> float:
        """Return the admission in Unix seconds."""
        return datetime.fromisoformat(self.time).timestamp()

    @property
    def settled_at(self) -> float:
        """Return the settlement in Unix seconds, as well as the record tells it (ms)."""
        return self.admitted_at + self.duration_ms / 1000


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(JournalRecord).decode


def encode_line(record: UsageRecord, model_label: str) -> bytes:
    """Return the journal line of `record`, newline included. Raises `UnicodeEncodeError`: see `legible`."""
    # Spliced, not copied into a JournalRecord first: half the time, and settling is on the hot path.
    return b'%b,"model_label":%b}\n' % (_encode(record)[:-1], _encode(model_label))


def decode_line(line: bytes) -> JournalRecord:
    """Parse a whole line, with or without its newline. Raises `ValueError` for anything else."""
    record = _decode(line)  # msgspec's errors are ValueErrors
    datetime.fromisoformat(record.time)  # ... and so is this one: readers rely on the time
    return record


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
    """This incarnation's file. Create it, `append` lines, `close` it; not thread-safe."""

    def __init__(self, directory: Path, *, id: str | None = None) -> None:
        """Start a new file in `directory`, whose lock the caller holds; with `id`, go on with that one if it is there.

        A torn last line, of a process that was killed as it wrote it, is cut off. Raises `OSError`.
        """
        self.id = id or secrets.token_hex(16)
        self.path = directory / f"records-{self.id}.jsonl"
        self._torn = False
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(self.path, flags, 0o600)
        self.length_bytes = _whole_lines(self._fd)  # what a reader may believe
        self._cut_back()

    def append(self, line: bytes) -> None:
        """Commit `line` in one write. After an `OSError` nothing of it is in the file, and it may be tried again."""
        if self._torn:
            self._cut_back()
        try:
            written = os.write(self._fd, line)
        except OSError:
            self._cut_back()  # ext4 and others may keep a part of a write that failed
            raise
        if written != len(line):
            self._cut_back()
            raise OSError(errno.ENOSPC, "only a part of the record could be written")  # what short writes mean
        self.length_bytes += written

    def _cut_back(self) -> None:
        self._torn = True
        os.ftruncate(self._fd, self.length_bytes)
        self._torn = False

    def close(self) -> None:
        """Close the file; one without a record is removed."""
        os.close(self._fd)
        if self.length_bytes == 0:
            self.path.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"<Journal {self.id[:8]} {self.length_bytes} bytes{' torn' if self._torn else ''}>"


def _whole_lines(fd: int) -> int:
    """How many bytes of a file are whole lines; read from its end."""
    end = os.fstat(fd).st_size
    while end:
        start = max(0, end - 65_536)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
