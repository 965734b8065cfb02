"""The journal: what is in it, and what is never in it."""

import os
from pathlib import Path

import pytest

from meter_proxy.errors import CannotStart
from meter_proxy.ledger.journal import DirectoryLock, Journal, decode_line, encode_line
from meter_proxy.ledger.reading import read_journal
from tests.support.records import usage_record


def test_a_line_is_the_record_and_its_label() -> None:
    """What is written is read back whole, and its times are instants."""
    record = usage_record(
        model='quo"te|\n', client_request_id=None, time="2026-03-01T12:00:00.500Z", duration_ms=1500.0
    )
    line = encode_line(record, "other")
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    read = decode_line(line)
    assert read.model_label == "other"
    assert {name: getattr(read, name) for name in record.__struct_fields__} == {
        name: getattr(record, name) for name in record.__struct_fields__
    }
    assert read.settled_at - read.admitted_at == 1.5
    assert read.admitted_at == 1772366400.5


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"\0\0\0", b'{"id":"x"}'])
def test_anything_else_is_not_a_record(line: bytes) -> None:
    """A line that is not a whole record raises ValueError."""
    with pytest.raises(ValueError, match=r".*"):
        decode_line(line)


def test_a_record_without_a_time_is_not_a_record() -> None:
    """A reader may rely on the time of every record."""
    with pytest.raises(ValueError, match="isoformat"):
        decode_line(encode_line(usage_record(time="yesterday"), "m1"))


def test_every_incarnation_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Nobody appends to a predecessor's file; one without a record is removed."""
    first, second, third = Journal(tmp_path), Journal(tmp_path), Journal(tmp_path)
    assert len({first.id, second.id, third.id}) == 3
    first.append(encode_line(usage_record(), "m1"))
    second.append(encode_line(usage_record(), "m1"))
    for journal in (first, second, third):
        journal.close()
    assert {path.name for path in tmp_path.iterdir()} == {first.path.name, second.path.name}


class PartOfWrites:
    """`os.write` on a disk that fills up after `room` bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._write = os.write

    def __call__(self, fd: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        written = self._write(fd, data[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 300])
def test_a_full_disk_leaves_no_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """What a full disk took of a record is cut back; the record can be written again later, once."""
    journal = Journal(tmp_path)
    lines = [encode_line(usage_record(id=f"r{number}"), "m1") for number in range(3)]
    journal.append(lines[0])
    with monkeypatch.context() as full:
        full.setattr(os, "write", PartOfWrites(room))
        for _ in range(2):
            with pytest.raises(OSError):
                journal.append(lines[1])
    assert journal.path.read_bytes() == lines[0]
    journal.append(lines[1])
    journal.append(lines[2])
    assert journal.path.read_bytes() == b"".join(lines)
    assert journal.length_bytes == len(b"".join(lines))
    journal.close()


def test_a_cut_that_fails_is_made_before_the_next_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if cutting back fails at first, no record is ever glued to a torn one."""
    journal = Journal(tmp_path)

    def refuse(fd: int, length: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", PartOfWrites(100))
        broken.setattr(os, "ftruncate", refuse)
        for _ in range(2):
            with pytest.raises(OSError):
                journal.append(encode_line(usage_record(id="first"), "m1"))
    journal.append(encode_line(usage_record(id="second"), "m1"))
    assert [record.id for record in read_journal(journal.path)] == ["second"]
    journal.close()


def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    """The second is told who holds it, and gets it when the first is gone."""
    first = DirectoryLock(tmp_path / "deep" / "w0")
    with pytest.raises(CannotStart, match=f"in use by process {os.getpid()}"):
        DirectoryLock(tmp_path / "deep" / "w0")
    first.release()
    DirectoryLock(tmp_path / "deep" / "w0").release()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """One line says which directory and why."""
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match="file/w0: Not a directory"):
        DirectoryLock(tmp_path / "file" / "w0")
