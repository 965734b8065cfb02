"""What a killed process left is settled once, however often, and however early, the recovery is killed too."""

from decimal import Decimal
from pathlib import Path

import pytest

from meter_proxy.ledger.admission import Admission, read_admission
from meter_proxy.ledger.checkpoint import load
from meter_proxy.ledger.journal import encode_line
from meter_proxy.ledger.labels import ModelLabels
from meter_proxy.ledger.reading import iter_records
from meter_proxy.ledger.recovery import recover
from meter_proxy.ledger.slots import TEXT_BYTES, Slot, SlotTable
from meter_proxy.metering.billing import NOTHING
from meter_proxy.metering.pricing import TokenPrice
from meter_proxy.metering.tally import Reading
from meter_proxy.quota.charge import Charge, Unit
from meter_proxy.usage import Basis, Operation, Outcome, Usage, UsageRecord
from tests.support.journals import open_journal

NOW = 1_767_225_610.0
PRICE = TokenPrice(Decimal("2.50"), Decimal("10"), Decimal("1.25"))


def admission(id: str, **members: object) -> Admission:
    whole = {
        "id": id,
        "time": "2026-01-01T00:00:00.000Z",
        "key": "alice",
        "account": "team",
        "model": "m",
        "upstream_model": "big",
        "upstream": "local",
        "operation": Operation.CHAT,
        "stream": True,
        "input_text_bytes": 10,
        "price": PRICE,
        **members,
    }
    return Admission(**whole)  # type: ignore[arg-type]


class Killed:
    """A worker's directory, written as a worker does, and left as a kill leaves it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "w0"
        self.directory.mkdir(parents=True)
        self.journal = open_journal(self.directory)
        self.table = SlotTable(self.directory, slots=8)
        self.labels = ModelLabels(directory / "models", ["m"])

    def serve(self, id: str, **members: object) -> Slot:
        slot = self.table.take(admission(id, **members).slot_text())
        assert slot is not None
        slot.forwarded()
        return slot

    def recover(self) -> int:
        """As a worker's start does it."""
        journal = open_journal(self.directory)

        def commit(record: UsageRecord, charges: tuple[Charge, ...], held: tuple[Charge, ...]) -> None:
            journal.append(encode_line(record, self.labels.label(record.model, record.status), charges))

        return recover(self.directory, load(journal.directory, strict=True).ids, commit, NOW)


@pytest.fixture
def killed(tmp_path: Path) -> Killed:
    return Killed(tmp_path)


def test_a_live_stream_is_billed_as_counted_and_crashed(killed: Killed, tmp_path: Path) -> None:
    """Every member of the record is what it would have been."""
    slot = killed.serve("a", client_request_id="mine")
    slot.answered(200)
    slot.words[slot.counter] = 3
    assert killed.recover() == 1
    (record,) = iter_records(tmp_path)
    assert (record.outcome, record.basis, record.output_tokens, record.status) == ("crashed", "counted", 3, 200)
    assert (record.input_basis, record.input_tokens) == (Basis.ESTIMATED, 3)
    assert (record.key, record.account, record.model, record.upstream_model) == ("alice", "team", "m", "big")
    assert record.cost_nano_usd == 3 * 2_500 + 3 * 10_000
    assert (record.client_request_id, record.duration_ms) == ("mine", 10_000.0)


def test_running_usage_makes_a_crash_exact(killed: Killed, tmp_path: Path) -> None:
    """The last running count is the bill."""
    slot = killed.serve("a")
    reading = Reading(Usage(9, 12), Basis.RUNNING, Basis.RUNNING)
    slot.note(reading, content_events=5, finished=False, done=False, failed=False)
    killed.recover()
    (record,) = iter_records(tmp_path)
    assert (record.basis, record.output_tokens, record.input_tokens) == (Basis.RUNNING, 12, 9)


def test_a_completed_exchange_is_no_crash(killed: Killed, tmp_path: Path) -> None:
    """Killed between its usage and its settlement: `completed`, `reported`."""
    slot = killed.serve("a")
    slot.answered(200)
    reading = Reading(Usage(9, 12, 4, 2), Basis.REPORTED, Basis.REPORTED)
    slot.note(reading, content_events=5, finished=True, done=True, failed=False)
    killed.recover()
    (record,) = iter_records(tmp_path)
    assert (record.outcome, record.basis) == (Outcome.COMPLETED, Basis.REPORTED)
    assert (record.cached_input_tokens, record.reasoning_tokens) == (4, 2)


def test_before_the_first_token_nothing_is_billed(killed: Killed, tmp_path: Path) -> None:
    """As for a hang-up; `bill_prompt: always` bills the prompt if it had left."""
    killed.serve("a")
    killed.serve("b", prompt_always=True)
    killed.table.take(admission("c", prompt_always=True).slot_text())  # never forwarded
    killed.recover()
    assert {r.id: (r.input_tokens, r.basis) for r in iter_records(tmp_path)} == {
        "a": (0, Basis.NONE),
        "b": (3, Basis.NONE),
        "c": (0, Basis.NONE),
    }


def test_a_settled_exchange_whose_slot_was_not_freed_is_billed_once(killed: Killed, tmp_path: Path) -> None:
    """The journal is the commit point; the slot comes after it."""
    slot = killed.serve("a")
    slot.words[slot.counter] = 3
    settled = admission("a").record(
        NOTHING, outcome=Outcome.COMPLETED, status=200, response_model=None, ttft_ms=None, duration_ms=1.0
    )
    killed.journal.append(encode_line(settled, "m"))
    assert killed.recover() == 0
    assert [record.outcome for record in iter_records(tmp_path)] == [Outcome.COMPLETED]


def test_recovering_again_changes_nothing(killed: Killed, tmp_path: Path) -> None:
    """A recovery that was killed before the slots were made anew runs again: same books."""
    for number in range(5):
        slot = killed.serve(str(number))
        slot.words[slot.counter] = number
    assert killed.recover() == 5
    first = list(iter_records(tmp_path))
    assert killed.recover() == 0
    assert list(iter_records(tmp_path)) == first


def test_a_recovery_killed_in_the_middle_of_a_line_goes_on(killed: Killed, tmp_path: Path) -> None:
    """The torn line is cut off, and its exchange written anew."""
    for number in range(3):
        slot = killed.serve(str(number))
        slot.words[slot.counter] = 1
    killed.recover()
    path = killed.journal.path
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 20] + bytes(1000))
    assert killed.recover() == 1
    assert sorted(record.id for record in iter_records(tmp_path)) == ["0", "1", "2"]


def test_a_slot_that_cannot_be_read_does_not_stop_the_others(killed: Killed, tmp_path: Path) -> None:
    """It is logged; the rest is billed."""
    killed.table.take(b"not json")
    slot = killed.serve("a")
    slot.words[slot.counter] = 1
    assert killed.recover() == 1
    assert [record.id for record in iter_records(tmp_path)] == ["a"]


def test_long_names_are_cut_so_that_a_slot_holds_them() -> None:
    """Callers choose names; a slot has its size."""
    long = admission("a", model="模" * 2_000, upstream_model="x" * 2_000, client_request_id="c" * 2_000)
    text = long.slot_text()
    assert len(text) <= TEXT_BYTES
    assert read_admission(text).upstream_model == "x" * 200


def test_a_slot_text_is_read_as_it_was_written() -> None:
    """Prices keep every digit."""
    whole = admission("a", client_request_id="é", prompt_always=True)
    assert read_admission(whole.slot_text()) == whole


def test_a_crash_is_charged_to_the_counters_of_its_admission(killed: Killed, tmp_path: Path) -> None:
    """Unless nothing of it had reached an upstream: then it was no request."""
    charge = Charge("k", "requests-day", "20260101", Unit.REQUESTS, 1_767_312_000)
    slot = killed.serve("a", charges=(charge,))
    slot.words[slot.counter] = 1
    killed.table.take(admission("b", charges=(charge,)).slot_text())
    killed.recover()
    assert {record.id: record.charges for record in iter_records(tmp_path)} == {"a": (charge,), "b": ()}
