"""The newest records, and totals."""

import asyncio
from typing import Any

import msgspec
import pytest

from meter_proxy.ledger.journal import JournalRecord, encode_line
from meter_proxy.ledger.segments import unframed
from meter_proxy.ledger.totals import summarise
from meter_proxy.telemetry.records import SLACK, SLICE, RecentRecords, UsageTotals, as_row, rows
from tests.unit.telemetry.journal_records import journal_record


def at(second: int, **members: Any) -> JournalRecord:
    """A record that was admitted at 12:00 plus `second`, and took 100 ms; its id is the second."""
    time = f"2026-03-01T12:{second // 60:02d}:{second % 60:02d}.000Z"
    return journal_record(id=str(second), time=time, **members)


def line(record: JournalRecord) -> tuple[JournalRecord, bytes]:
    """The record and its JSON, as the feed brings them."""
    text = unframed(encode_line(record, record.model_label, record.charges, record.cut_by)[:-1])
    assert text is not None
    return record, text


def add(recent: RecentRecords, record: JournalRecord) -> None:
    """Keep it, as the feed does."""
    recent.add(*line(record))


def ids(records: list[bytes]) -> list[int]:
    """The ids of records as JSON."""
    return [int(msgspec.json.decode(record)["id"]) for record in records]


async def test_the_newest_come_oldest_first() -> None:
    """By settlement, whatever the order in which they came to us."""
    recent = RecentRecords()
    for second in (3, 1, 2, 5, 4):
        add(recent, at(second))
    assert ids(await recent.newest(3)) == [3, 4, 5]
    assert ids(await recent.newest(100)) == [1, 2, 3, 4, 5]


async def test_settlement_is_admission_plus_duration() -> None:
    """A long stream that began first may end last."""
    recent = RecentRecords()
    add(recent, at(2))
    add(recent, at(1, duration_ms=60_000.0))
    assert ids(await recent.newest(2)) == [2, 1]


async def test_records_are_filtered_by_key_and_admission() -> None:
    """The limit counts what matches."""
    recent = RecentRecords()
    for second in range(10):
        add(recent, at(second, key="odd" if second % 2 else "even"))
    since = at(3).admitted_at
    assert ids(await recent.newest(2, key="odd")) == [7, 9]
    assert ids(await recent.newest(100, since=since)) == [3, 4, 5, 6, 7, 8, 9]
    assert ids(await recent.newest(100, key="even", since=since)) == [4, 6, 8]
    assert await recent.newest(100, key="nobody") == []


async def test_a_long_stream_hides_no_record_behind_it() -> None:
    """It was settled last, but admitted before the time that is asked for."""
    recent = RecentRecords()
    add(recent, at(1, duration_ms=60_000.0))
    add(recent, at(30))
    add(recent, at(2))
    assert ids(await recent.newest(10, since=at(10).admitted_at)) == [30]


async def test_a_record_is_shown_with_all_its_fields() -> None:
    """As it stands in the journal."""
    recent = RecentRecords()
    record = at(1)
    add(recent, record)
    assert msgspec.json.decode((await recent.newest(1))[0]) == msgspec.to_builtins(record)


async def test_memory_is_bounded_to_the_newest() -> None:
    """The oldest go, also when they come late."""
    recent = RecentRecords(size=10)
    count = 10 + SLACK + 5
    for second in range(count):
        add(recent, at(second))
    assert len(recent) == 10
    assert ids(await recent.newest(10)) == list(range(count - 10, count))
    assert not recent.whole


async def test_the_past_is_loaded_while_the_present_goes_on() -> None:
    """The newest of both, in order; nothing twice."""
    recent = RecentRecords(size=6)
    past = [at(second) for second in (7, 1, 6, 2, 5, 3, 4)]
    for count, _ in enumerate(recent.load(map(line, past))):
        if count == 2:
            add(recent, at(8))
    assert ids(await recent.newest(100)) == [3, 4, 5, 6, 7, 8]


async def test_it_knows_how_far_back_it_can_tell_everything() -> None:
    """None means: look into the journals."""
    recent = RecentRecords(size=5)
    assert await recent.since(0.0) == []
    for _ in recent.load(line(at(second)) for second in range(10)):
        pass
    known = await recent.since(at(6).admitted_at)
    assert known is not None
    assert ids(known) == [6, 7, 8, 9]
    assert await recent.since(at(4).admitted_at) is None


@pytest.mark.parametrize("by", [("key", "model", "day"), ("model",), ("day", "key")])
async def test_totals_are_those_of_the_command(by: tuple[str, ...]) -> None:
    """`/api/usage` and `meter-proxy usage` cannot disagree."""
    records = [
        journal_record("m1", key="alice", cached_input_tokens=3),
        journal_record("m1", key="bob", time="2026-03-02T00:00:00.000Z", reasoning_tokens=4, cost_nano_usd=10**15),
        journal_record("other", key="alice", time="2026-03-02T00:00:00.000Z"),
        journal_record("m1", key="alice", input_tokens=2**53),
    ]
    totals = UsageTotals()
    for record in records:
        totals.add(record)

    async def shown(day: str, key: str | None = None) -> list[dict[str, str | int]]:
        return [as_row(total, by) for total in await rows(totals.after(day, key), by)]

    assert await shown("") == summarise(records, by)
    assert await shown("2026-03-01") == summarise(records[1:3], by)
    assert await shown("2026-03-02") == []
    assert await shown("", "alice") == summarise([records[0], *records[2:]], by)
    assert await shown("", "nobody") == []


async def test_many_totals_are_summed_in_slices_while_others_are_added() -> None:
    """The loop is not held, and what comes meanwhile breaks nothing."""
    totals = UsageTotals()
    for number in range(3 * SLICE):
        totals.add(journal_record("m1", key=f"k{number}"))
    turns = 0
    asked = asyncio.ensure_future(rows(totals.after(""), ("key",)))
    while not asked.done():
        totals.add(journal_record(f"m{turns}", key=f"late{turns}", time="2026-03-02T00:00:00.000Z"))
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 6
    found = await asked
    assert found == sorted(found)
    assert {f"k{number}" for number in range(3 * SLICE)} <= {group[0] for group, _ in found}
