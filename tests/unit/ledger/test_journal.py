"""The journal: what is in it, and what is never in it."""

import itertools
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meter_proxy.errors import CannotStart, DamagedJournal
from meter_proxy.ledger.checkpoint import load, recompute
from meter_proxy.ledger.journal import SPARE, DirectoryLock, decode_record, encode_line, instant, without_charges
from meter_proxy.ledger.reading import read_journal
from meter_proxy.ledger.segments import data_length, examine, segments, unframed
from meter_proxy.quota.charge import Charge, Unit
from tests.support.journals import open_journal
from tests.support.records import usage_record


def decode_line(line: bytes) -> Any:
    text = unframed(line[:-1])
    assert text is not None
    return decode_record(text)


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
        decode_record(line)


def test_a_record_without_a_time_is_not_a_record() -> None:
    """A reader may rely on the time of every record."""
    with pytest.raises(ValueError, match="isoformat"):
        decode_line(encode_line(usage_record(time="yesterday"), "m1"))


class PartOfWrites:
    """`os.pwrite` on a disk that fills up after `room` bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._write = os.pwrite

    def __call__(self, fd: int, data: bytes, offset: int) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        written = self._write(fd, data[: self.room], offset)
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 300])
def test_a_full_disk_leaves_no_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """What a full disk took of a record is cut back; the record can be written again later, once."""
    journal = open_journal(tmp_path)
    lines = [encode_line(usage_record(id=f"r{number}"), "m1") for number in range(3)]
    journal.append(lines[0])
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", PartOfWrites(room))
        for _ in range(2):
            with pytest.raises(OSError):
                journal.append(lines[1])
    journal.append(lines[1])
    journal.append(lines[2])
    assert journal.path.read_bytes().rstrip(b"\0") == b"".join(lines)
    assert journal.position == len(b"".join(lines))
    journal.close()


def test_the_next_incarnation_goes_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    """A torn line is cleared; the positions count on."""
    journal = open_journal(tmp_path)
    journal.append(encode_line(usage_record(id="first"), "m1"))
    journal.close()
    with journal.path.open("r+b") as file:
        file.seek(journal.position)
        file.write(encode_line(usage_record(id="torn"), "m1")[:-7])
    again = open_journal(tmp_path)
    assert again.position == journal.position
    again.append(encode_line(usage_record(id="second"), "m1"))
    assert [record.id for record in read_journal(again.directory)] == ["first", "second"]


@pytest.mark.parametrize("kept", [0, 1, 50, 300])
def test_a_line_torn_anywhere_is_no_damage(tmp_path: Path, kept: int) -> None:
    """Whatever part of its last write a process leaves behind, the next one starts."""
    journal = open_journal(tmp_path)
    for number in range(3):
        journal.append(encode_line(usage_record(id=f"r{number}"), "m1"))
    with journal.path.open("r+b") as file:
        file.seek(journal.position)
        file.write(encode_line(usage_record(id="torn"), "m1")[:kept])
    assert load(journal.directory, strict=True).ids == {"r0", "r1", "r2"}


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_damage_in_the_middle_is_refused_with_its_place(tmp_path: Path) -> None:
    """Nobody writes behind it: file, offset, and what to do."""
    journal = open_journal(tmp_path)
    lines = [encode_line(usage_record(), "m1") for _ in range(3)]
    for line in lines:
        journal.append(line)
    damage(journal.path, len(lines[0]) + 100)
    at_byte = f"at byte {len(lines[0])}"
    with pytest.raises(DamagedJournal, match=f"(?s){journal.path.name}.*{at_byte}.*meter-proxy repair"):
        load(journal.directory, strict=True)
    assert examine(journal.path).damaged_at == len(lines[0])
    assert len(list(read_journal(journal.directory))) == 2  # readers leave it out


def test_a_hole_before_something_good_is_damage(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for _ in range(3):
        journal.append(encode_line(usage_record(), "m1"))
    with journal.path.open("r+b") as file:
        file.write(bytes(20))
    with pytest.raises(DamagedJournal):
        load(journal.directory, strict=True)


def test_a_full_segment_is_followed_by_the_next(tmp_path: Path) -> None:
    """Closed ones hold data only; positions count on; every record is read once; a spare one is always ready."""
    journal = open_journal(tmp_path, segment_bytes=2_000)
    lines = [encode_line(usage_record(id=f"r{number}"), "m1") for number in range(20)]
    for line in lines:
        journal.append(line)
        assert (journal.directory / SPARE).stat().st_size == 2_000
    found = segments(journal.directory)
    assert len(found) >= 5
    for one, following in itertools.pairwise(found):
        assert one.start + one.path.stat().st_size == following.start
        assert data_length(one.path) == one.path.stat().st_size
    assert [record.id for record in read_journal(journal.directory)] == [f"r{number}" for number in range(20)]
    assert open_journal(tmp_path).position == journal.position == sum(map(len, lines))
    assert next(recompute(journal.directory).days).totals["m1"][0] == 20


def test_without_room_for_the_next_segment_there_is_room_for_what_is_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: no new work is taken, what is open is recorded to its end; then all goes on."""
    journal = open_journal(tmp_path, segment_bytes=20_000)

    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    line = encode_line(usage_record(), "m1")
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", refuse)
        while journal.segment_start == 0:
            try:
                journal.append(line)
            except OSError:
                break
            if not journal.has_room:
                break
        journal.make_spare()
    assert journal.has_room is False or journal.segment_start == 0
    journal.make_spare()
    assert journal.has_room
    journal.append(line)


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


@pytest.mark.parametrize(
    "time", ["2026-03-01T12:00:00.123Z", "2026-03-01T12:00:00Z", "2026-03-01T12:00:00.123456+02:00"]
)
def test_an_instant_is_what_python_says_it_is(time: str) -> None:
    """To the last bit, whoever wrote it: `since` compares."""
    assert instant(time) == datetime.fromisoformat(time).timestamp()


@pytest.mark.parametrize("charges", [(), (Charge("k", 'a]],"cut_by":', "total", Unit.TOKENS, 0),)])
@pytest.mark.parametrize("cut_by", [None, 'k/a,"charges":['])
def test_what_is_shown_has_no_charges(charges: tuple[Charge, ...], cut_by: str | None) -> None:
    """All else stays as it is, whatever the names contain."""
    text = unframed(encode_line(usage_record(model='m,"charges":[]]'), "m1", charges, cut_by)[:-1])
    assert text is not None
    shown = msgspec.json.decode(without_charges(text))
    assert shown == {name: value for name, value in msgspec.json.decode(text).items() if name != "charges"}
