"""What is in flight, read beside the process that serves it; and rates."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from meter_proxy.ledger.admission import Admission
from meter_proxy.ledger.journal import instant
from meter_proxy.ledger.slots import Slot, SlotTable
from meter_proxy.metering.tally import Reading
from meter_proxy.telemetry import live
from meter_proxy.telemetry.live import WINDOW_S, Flow, LiveExchange, in_flight
from meter_proxy.usage import Basis, Operation, Usage
from tests.unit.telemetry.journal_records import journal_record

TIME = "2026-03-01T12:00:00.000Z"
NOON = instant(TIME)


def admission(**members: Any) -> Admission:
    """A stream of alice, asked with 40 bytes of text."""
    given: dict[str, Any] = {
        "id": "r1", "time": TIME, "key": "alice", "account": "acme", "model": "m", "upstream_model": "m",
        "upstream": "local", "operation": Operation.CHAT, "stream": True, "input_text_bytes": 40,
    }  # fmt: skip
    return Admission(**{**given, **members})


def take(table: SlotTable, **members: Any) -> Slot:
    slot = table.take(admission(**members).slot_text())
    assert slot is not None
    return slot


@pytest.fixture
def table(tmp_path: Path) -> SlotTable:
    """The slots of worker 0."""
    (tmp_path / "w0").mkdir()
    return SlotTable(tmp_path / "w0", slots=700)


async def test_a_stream_shows_what_it_would_cost_now(table: SlotTable, tmp_path: Path) -> None:
    """Nothing before its first token; then the estimate; then what the upstream says."""
    slot = take(table)

    async def shown() -> tuple[object, object]:
        (exchange,) = await in_flight([tmp_path / "w0"])
        row = exchange.shown(NOON + 2.5)
        assert (row["id"], row["key"], row["account"], row["model"]) == ("r1", "alice", "acme", "m")
        assert (row["started"], row["duration_ms"], row["stream"], row["operation"]) == (TIME, 2500, True, "chat")
        return row["input_tokens"], row["output_tokens"]

    slot.forwarded()
    assert await shown() == (0, 0)
    slot.words[slot.counter] = 7
    assert await shown() == (10, 7)
    reading = Reading(Usage(12, 9, None, None), Basis.RUNNING, Basis.RUNNING)
    slot.note(reading, content_events=9, finished=False, done=False, failed=False)
    assert await shown() == (12, 9)
    slot.free()
    assert await in_flight([tmp_path / "w0"]) == []


async def test_all_are_found_oldest_first_in_slices(
    table: SlotTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all workers, whatever slots they are in; a worker without a table serves nothing."""
    monkeypatch.setattr(live, "SLICE", 8)
    slots = [take(table, id=str(number), time=f"2026-03-01T12:00:{59 - number:02d}.000Z") for number in range(60)]
    for slot in slots[10:20]:
        slot.free()
    (tmp_path / "w1").mkdir()
    take(SlotTable(tmp_path / "w1", slots=4), id="other", time="2026-03-01T12:00:30.500Z")
    found = await in_flight(tmp_path / name for name in ("w0", "w1", "w2"))
    ids = [exchange.admission.id for exchange in found]
    expected = [str(number) for number in reversed(range(60)) if not 10 <= number < 20]
    expected.insert(expected.index("28"), "other")
    assert ids == expected


async def test_a_slot_that_is_being_written_is_passed_over(table: SlotTable, tmp_path: Path) -> None:
    """Half a text is no exchange."""
    table.take(admission().slot_text()[:50])
    table.take(msgspec.json.encode({"id": "r"}))
    assert await in_flight([tmp_path / "w0"]) == []


async def test_rates_of_settled_exchanges() -> None:
    """A request counts when it began, its output when it came; nothing that is older than the window."""
    flow = Flow()
    now = NOON + 9.999
    flow.settled(journal_record(duration_ms=1000.0, ttft_ms=100.0, input_tokens=30, output_tokens=60), now)
    rates = await flow.rates([], now)
    assert rates == pytest.approx(
        {"requests_per_s": 0.1, "input_tokens_per_s": 3.0, "output_tokens_per_s": 6.0}, rel=0.01
    )
    assert await flow.rates([], now + WINDOW_S + 1) == dict.fromkeys(rates, 0.0)


async def test_a_long_stream_counts_for_its_last_seconds_only() -> None:
    """One that sent 600 tokens in a minute makes ten a second, in flight or settled now."""
    now = NOON + 60
    flow = Flow()
    exchange = LiveExchange(admission(), NOON, NOON, input_tokens=1000, output_tokens=600)
    in_flight_rates = await flow.rates([exchange], now)
    flow.settled(journal_record(duration_ms=60_000.0, ttft_ms=0.0, input_tokens=1000, output_tokens=600), now)
    for rates in (in_flight_rates, await flow.rates([], now)):
        assert rates["requests_per_s"] == rates["input_tokens_per_s"] == 0
        assert rates["output_tokens_per_s"] == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("ttft_ms", [None, 0.0, 500.0, 900.0])
async def test_no_token_is_lost_or_doubled(ttft_ms: float | None) -> None:
    """However the seconds lie."""
    for offset in (0.0, 0.3, 0.999):
        flow, now = Flow(), NOON + 5 + offset
        flow.settled(journal_record(duration_ms=900.0, ttft_ms=ttft_ms, output_tokens=77), now)
        rates = await flow.rates([], now)
        assert rates["output_tokens_per_s"] * (9 + offset) == pytest.approx(77, rel=0.001)


async def test_memory_is_bounded() -> None:
    """However long what is settled has lasted."""
    flow = Flow()
    for second in range(1000):
        flow.settled(journal_record(duration_ms=5000.0), NOON + second)
    assert len(flow._seconds) <= 3 * WINDOW_S
    for second in range(1000):
        flow.settled(journal_record(duration_ms=second * 60_000.0), NOON + 1000)
    assert len(flow._seconds) <= 4 * WINDOW_S
