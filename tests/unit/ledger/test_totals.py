"""Totals of records, and the words that choose them."""

import msgspec
import pytest

from meter_proxy.ledger.journal import JournalRecord, decode_record, encode_line
from meter_proxy.ledger.segments import unframed
from meter_proxy.ledger.totals import parse_by, parse_since, summarise
from tests.support.records import usage_record

NOW = 1772366400.0  # 2026-03-01T12:00:00Z


def record(label: str = "m1", **members: object) -> JournalRecord:
    text = unframed(encode_line(usage_record(**members), label)[:-1])
    assert text is not None
    return decode_record(text)


def test_a_row_has_the_contracts_columns() -> None:
    """Counts that were not reported add nothing; zero is a value; the model is the label."""
    rows = summarise(
        [
            record(model="a", input_tokens=3, output_tokens=0, cached_input_tokens=2, cost_nano_usd=7),
            record(
                model="a",
                input_tokens=4,
                output_tokens=1,
                cached_input_tokens=None,
                reasoning_tokens=1,
                cost_nano_usd=0,
            ),
        ]
    )
    assert msgspec.json.encode(rows) == (
        b'[{"key":"alice","model":"m1","day":"2026-03-01","requests":2,"input_tokens":7,"output_tokens":1,'
        b'"cached_input_tokens":2,"reasoning_tokens":1,"cost_nano_usd":7}]'
    )


def test_rows_follow_the_columns_asked_for() -> None:
    """Any of key, model, day in any order; the rows are sorted by them."""
    records = [
        record("m2", key="bob", time="2026-03-02T00:00:00.000Z"),
        record("m1", key="bob"),
        record("m2", key="ann"),
        record("m2", key="ann"),
    ]
    assert [(row["model"], row["requests"]) for row in summarise(records, ["model"])] == [("m1", 1), ("m2", 3)]
    assert [(row["day"], row["key"]) for row in summarise(records, ["day", "key"])] == [
        ("2026-03-01", "ann"),
        ("2026-03-01", "bob"),
        ("2026-03-02", "bob"),
    ]
    assert "key" not in summarise(records, ["day"])[0]
    assert summarise([]) == []


def test_since_leaves_out_earlier_admissions() -> None:
    """The admission counts, to the millisecond."""
    records = [record(time="2026-03-01T11:59:59.999Z"), record(time="2026-03-01T12:00:00.000Z")]
    assert [row["requests"] for row in summarise(records, since=NOW)] == [1]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("7d", NOW - 7 * 86_400),
        ("24h", NOW - 86_400),
        ("30m", NOW - 1800),
        ("0s", NOW),
        ("2026-03-01", NOW - 43_200),
        ("2026-03-01T12:00:00Z", NOW),
        ("2026-03-01T13:00:00+01:00", NOW),
        ("2026-03-01T12:00:00", NOW),
    ],
)
def test_since_is_a_span_or_an_instant(text: str, at: float) -> None:
    """Spans are before now, dates and times are UTC unless they say otherwise."""
    assert parse_since(text, NOW) == at


@pytest.mark.parametrize("text", ["", "7", "d", "7 d", "-7d", "7w", "1.5h", "2026-13-01", "yesterday", "9999999999d"])
def test_any_other_since_is_refused(text: str) -> None:
    """The message shows what was written and what could be."""
    with pytest.raises(ValueError, match="neither a time span such as 7d"):
        parse_since(text, NOW)


def test_by_is_a_choice() -> None:
    """Known names only, each once."""
    assert parse_by("day, key") == ("day", "key")
    for text in ("", "keys", "key,,day", "key,key"):
        with pytest.raises(ValueError, match=r"cannot total by|twice"):
            parse_by(text)
