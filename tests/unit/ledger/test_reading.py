"""Reading journals: merged, followed, and whatever happened to them."""

import itertools
import logging
import os
from pathlib import Path

import pytest

from meter_proxy.ledger import segments
from meter_proxy.ledger import tail as tail_module
from meter_proxy.ledger.journal import Journal, encode_line
from meter_proxy.ledger.reading import iter_records, newest_records, read_journal, read_segment
from meter_proxy.ledger.tail import RecordTail
from tests.support.journals import open_journal
from tests.support.records import usage_record

_ids = itertools.count(1)
DAY_AT = 1772323200.0  # 2026-03-01T00:00:00Z


def line(settled_s: float, id: str, *, took_s: float = 0.0, key: str = "alice") -> bytes:
    """A record that was settled `settled_s` after midnight, and admitted `took_s` before that."""
    seconds = settled_s - took_s
    time = f"2026-03-01T00:{int(seconds // 60):02d}:{seconds % 60:06.3f}Z"
    return encode_line(usage_record(id=id, key=key, time=time, duration_ms=took_s * 1000), "m1")


def journal_in(state_dir: Path, worker: int, *lines: bytes) -> Journal:
    journal = open_journal(state_dir / f"w{worker}", id=f"{next(_ids):032x}")
    for each in lines:
        journal.append(each)
    return journal


def put(journal: Journal, data: bytes) -> None:
    """What a process leaves that is killed as it writes."""
    with journal.path.open("r+b") as file:
        file.seek(journal.position - journal.segment_start)
        file.write(data)


@pytest.fixture(params=[65_536, 700, 64])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Files are read in blocks of any size: many lines, one line, parts of a line."""
    monkeypatch.setattr(segments, "BLOCK_BYTES", request.param)
    return int(request.param)


def test_records_of_all_workers_come_in_the_order_of_settlement(tmp_path: Path, block_bytes: int) -> None:
    """Workers and incarnations are merged; a long stream comes when it ended, not when it began."""
    journal_in(tmp_path, 0, line(1, "a"), line(4, "d", took_s=4))
    journal_in(tmp_path, 0, line(5, "e"))
    journal_in(tmp_path, 1, line(2, "b"), line(3, "c"), line(6, "f"))
    assert [record.id for record in iter_records(tmp_path)] == list("abcdef")
    assert [record.id for record in newest_records(tmp_path, limit=10)] == list("abcdef")
    for limit in range(7):
        assert [record.id for record in newest_records(tmp_path, limit=limit)] == list("abcdef")[6 - limit :]


def test_newest_of_one_key(tmp_path: Path, block_bytes: int) -> None:
    """The limit counts what is asked for, not what is passed over."""
    journal_in(tmp_path, 0, *(line(number, f"r{number}", key=f"k{number % 3}") for number in range(30)))
    assert [record.id for record in newest_records(tmp_path, limit=2, key="k1")] == ["r25", "r28"]


def test_since_is_the_admission(tmp_path: Path, block_bytes: int) -> None:
    """What was admitted before is left out, also when it was settled after."""
    journal_in(tmp_path, 0, line(1, "early"), line(5, "late"), line(6, "across", took_s=3), line(7, "later"))
    since = DAY_AT + 4
    assert [record.id for record in iter_records(tmp_path, since=since)] == ["late", "later"]
    assert [record.id for record in newest_records(tmp_path, limit=9, since=since)] == ["late", "later"]


def test_old_journals_are_not_opened_for_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that nobody wrote to since then has nothing from then."""
    old = journal_in(tmp_path, 0, line(1, "old"))
    os.utime(old.path, (DAY_AT + 1, DAY_AT + 1))
    monkeypatch.setattr(segments, "read_lines", None)
    assert list(iter_records(tmp_path, since=DAY_AT + 2)) == []


@pytest.mark.parametrize("torn", [b"{", b'{"id":"half', line(2, "b")[:-1]])
def test_a_torn_last_line_is_left_out(tmp_path: Path, block_bytes: int, torn: bytes) -> None:
    """The record of a worker that was killed while writing it is not a record, from either end."""
    journal = journal_in(tmp_path, 0, line(1, "a"))
    put(journal, torn)
    assert [record.id for record in read_journal(journal.directory)] == ["a"]
    assert [record.id for record in newest_records(tmp_path, limit=5)] == ["a"]


def test_a_damaged_line_costs_itself_only(tmp_path: Path, block_bytes: int, caplog: pytest.LogCaptureFixture) -> None:
    """What stands before and after damage is read; the damage is logged with its place."""
    journal = journal_in(tmp_path, 0, line(1, "a"), b"?" * 300 + b"\n", line(2, "b"))
    caplog.set_level(logging.WARNING)
    assert [record.id for record in read_journal(journal.directory)] == ["a", "b"]
    assert f"the line at byte {len(line(1, 'a'))} is damaged" in caplog.text
    assert [record.id for record in newest_records(tmp_path, limit=5)] == ["a", "b"]


def test_no_journals_no_records(tmp_path: Path) -> None:
    """An empty or absent directory has no records; empty files neither."""
    assert list(iter_records(tmp_path / "absent")) == []
    journal_in(tmp_path, 0)
    assert newest_records(tmp_path, limit=5) == []


def test_tail_sees_what_is_new_once(tmp_path: Path) -> None:
    """Each record comes with exactly one poll, in the order of settlement; what was there before does not come."""
    first = journal_in(tmp_path, 0, line(1, "old"))
    tail = RecordTail(tmp_path)
    assert tail.poll() == []
    second = journal_in(tmp_path, 1, line(3, "b"), line(4, "c"))
    first.append(line(2, "a"))
    first.append(line(5, "d"))
    assert [record.id for record in tail.poll()] == ["a", "b", "c", "d"]
    assert tail.poll() == []
    second.append(line(6, "e"))
    assert [record.id for record in tail.poll()] == ["e"]


def test_tail_waits_for_whole_lines(tmp_path: Path) -> None:
    """Half a line is nothing yet; if it is cut back and written anew, it comes once and right."""
    journal = journal_in(tmp_path, 0, line(1, "a"))
    whole = line(2, "b")
    put(journal, line(2, "never")[:50])
    tail = RecordTail(tmp_path)
    assert tail.poll() == []
    put(journal, bytes(50))
    assert tail.poll() == []
    for end in (10, len(whole) - 1):
        put(journal, whole[:end])
        assert tail.poll() == []
        put(journal, bytes(end))
    journal.append(whole)
    assert [record.id for record in tail.poll()] == ["b"]


def test_tail_reads_a_flood_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll takes a bounded amount; nothing is lost or doubled at its borders."""
    monkeypatch.setattr(tail_module, "MAX_POLL_BYTES", 1500)
    tail = RecordTail(tmp_path)
    journal_in(tmp_path, 0, *(line(number / 10, f"r{number}") for number in range(20)))
    seen: list[str] = []
    polls = 0
    while records := tail.poll():
        seen += [record.id for record in records]
        polls += 1
    assert seen == [f"r{number}" for number in range(20)]
    assert polls > 5


def test_tail_survives_a_removed_journal(tmp_path: Path) -> None:
    """A file that an operator archived is gone, the others go on."""
    first, second = journal_in(tmp_path, 0, line(1, "a")), journal_in(tmp_path, 1)
    tail = RecordTail(tmp_path)
    first.path.unlink()
    second.append(line(2, "b"))
    assert [record.id for record in tail.poll()] == ["b"]


def test_tail_passes_a_damaged_line_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damage is logged once, not at each poll."""
    tail = RecordTail(tmp_path)
    journal_in(tmp_path, 0, b"damage\n", line(1, "a"))
    assert [record.id for record in tail.poll()] == ["a"]
    assert tail.poll() == []
    assert len(caplog.records) == 1


def test_tail_goes_on_in_the_next_segment(tmp_path: Path) -> None:
    """However many were filled between two polls, and though the first ones have been removed."""
    journal = open_journal(tmp_path / "w0", segment_bytes=2_000)
    tail = RecordTail(tmp_path)
    numbers = itertools.count()
    for count in (1, 1, 3, 20, 1, 7):
        expected = [f"r{next(numbers)}" for _ in range(count)]
        for number, id in enumerate(expected):
            journal.append(line(number / 10, id))
        assert [record.id for record in tail.poll()] == expected
    for number in range(9):
        journal.append(line(number / 10, f"late{number}"))
    *removed, last = segments.segments(journal.directory)
    for segment in removed:
        segment.path.unlink()
    assert [record.id for record in tail.poll()] == [record.id for record in read_segment(last.path)]
    assert tail.poll() == []


def test_tail_reads_little_where_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One small read a journal; no directory is listed again."""
    for worker in range(3):
        journal_in(tmp_path, worker, line(1, "a"))
    tail = RecordTail(tmp_path)
    long_ago = (1_000_000_000, 1_000_000_000)
    for directory in (tmp_path, *tmp_path.glob("w*")):
        os.utime(directory, long_ago)
    tail.poll()
    reads: list[int] = []
    pread = os.pread

    def counted(fd: int, length: int, offset: int) -> bytes:
        reads.append(length)
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    monkeypatch.setattr(Path, "glob", None)
    assert tail.poll() == []
    assert reads == [tail_module.FIRST_BYTES] * 3
