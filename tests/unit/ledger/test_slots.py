"""A slot tells, after any kill, what had been counted; its process need not have said goodbye."""

from pathlib import Path

import pytest

from meter_proxy.ledger.slots import SLOT_BYTES, TEXT_BYTES, Slot, SlotTable, read_live, read_some
from meter_proxy.metering.tally import Reading
from meter_proxy.usage import Basis, Usage


@pytest.fixture
def table(tmp_path: Path) -> SlotTable:
    """Four slots."""
    return SlotTable(tmp_path, slots=4)


def take(table: SlotTable, text: bytes = b"{}") -> Slot:
    slot = table.take(text)
    assert slot is not None
    return slot


def note(slot: Slot, reading: Reading, *, content_events: int, finished: bool = False, done: bool = False) -> None:
    slot.note(reading, content_events=content_events, finished=finished, done=done, failed=False)


def test_a_taken_slot_is_live_with_its_text_until_it_is_freed(table: SlotTable, tmp_path: Path) -> None:
    """Readable from the file alone, while the table is open."""
    slot = take(table, b'{"id":"a"}')
    found = read_live(tmp_path)
    assert found is not None
    (progress,) = found
    assert (progress.text, progress.reading.basis) == (b'{"id":"a"}', Basis.NONE)
    slot.free()
    assert read_live(tmp_path) == []


def test_live_slots_are_read_some_at_a_time_beside_the_process(table: SlotTable, tmp_path: Path) -> None:
    """So many slots from one on; and whether there are more. Nothing is written, no mapping kept."""
    slots = [take(table, b"%d" % number) for number in range(4)]
    slots[1].free()
    before = (tmp_path / "slots").read_bytes()
    some, is_more = read_some(tmp_path, 0, 2)
    assert ([progress.text for progress in some], is_more) == ([b"0"], True)
    rest, is_more = read_some(tmp_path, 2, 2)
    assert ([progress.text for progress in rest], is_more) == ([b"2", b"3"], False)
    assert read_some(tmp_path, 2, 100)[0] == rest
    assert read_some(tmp_path, 4, 2) == ([], False)
    assert (tmp_path / "slots").read_bytes() == before
    assert Path("/proc/self/maps").read_text().count(f"{tmp_path}/slots") == 1  # the table's own
    assert read_some(tmp_path / "nowhere", 0, 2) == ([], False)


def test_counts_are_there_at_once(table: SlotTable, tmp_path: Path) -> None:
    """One store per read: the number of content events is the bill of a stream without usage."""
    slot = take(table)
    slot.forwarded()
    slot.answered(200)
    slot.words[slot.counter] = 7
    (progress,) = read_live(tmp_path)
    assert (progress.content_events, progress.status, progress.reached_upstream) == (7, 200, True)
    assert (progress.reading.basis, progress.reading.usage.output_tokens) == (Basis.COUNTED, 7)


@pytest.mark.parametrize("basis", [Basis.RUNNING, Basis.REPORTED])
def test_usage_is_there_whole(table: SlotTable, tmp_path: Path, basis: Basis) -> None:
    """None and 0 stay different things."""
    reading = Reading(Usage(9, 0, None, 0), basis, basis)
    note(take(table), reading, content_events=3, finished=True, done=True)
    (progress,) = read_live(tmp_path)
    assert progress.reading == reading
    assert (progress.finished, progress.done, progress.failed) == (True, True, False)


def test_known_input_stays_known_beside_counted_output(table: SlotTable, tmp_path: Path) -> None:
    """Running usage may say the input, and its output not be believed."""
    note(take(table), Reading(Usage(9, 2), Basis.COUNTED, Basis.RUNNING), content_events=2)
    (progress,) = read_live(tmp_path)
    assert progress.reading == Reading(Usage(9, 2), Basis.COUNTED, Basis.RUNNING)


def test_counts_go_on_after_a_note(table: SlotTable, tmp_path: Path) -> None:
    """A slot that is used again begins from nothing."""
    slot = take(table)
    note(slot, Reading(Usage(9, 5), Basis.REPORTED, Basis.REPORTED), content_events=3, finished=True)
    slot.free()
    again = take(table)
    again.words[again.counter] = 1
    (progress,) = read_live(tmp_path)
    assert (progress.finished, progress.reading) == (False, Reading(Usage(output_tokens=1), Basis.COUNTED, None))


def test_no_more_than_all_slots_can_be_taken(table: SlotTable) -> None:
    """The fifth of four is refused, and none is given out twice."""
    slots = [take(table) for _ in range(4)]
    assert table.take(b"{}") is None
    slots[2].free()
    assert table.take(b"{}") is not None
    assert table.take(b"{}") is None


def test_the_file_is_preallocated_and_texts_stay_in_their_slot(table: SlotTable, tmp_path: Path) -> None:
    """A sparse file would kill us on a full disk; a long text must not reach the next slot."""
    size = (tmp_path / "slots").stat()
    assert size.st_blocks * 512 >= size.st_size == 4096 + 4 * SLOT_BYTES
    texts = [bytes([65 + number]) * TEXT_BYTES for number in range(4)]
    for text in texts:
        take(table, text)
    live = read_live(tmp_path)
    assert sorted(progress.text for progress in live) == texts


def test_a_new_table_replaces_the_old_one_whole(table: SlotTable, tmp_path: Path) -> None:
    """Until the new one is complete, the old one is what a reader finds."""
    take(table)
    SlotTable(tmp_path, slots=2)
    assert read_live(tmp_path) == []


def test_no_table_and_a_foreign_file_are_nothing(tmp_path: Path) -> None:
    """Nothing was in flight."""
    assert read_live(tmp_path) == []
    (tmp_path / "slots").write_bytes(b"something else")
    assert read_live(tmp_path) == []
