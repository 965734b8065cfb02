"""A checkpoint that is made while the books go on."""

import asyncio
from pathlib import Path

import pytest

from meter_proxy.ledger import checkpoint
from meter_proxy.ledger.books import Books
from meter_proxy.ledger.checkpoint import encode_books, encode_in_slices
from meter_proxy.quota.charge import Charge, Unit
from tests.support.records import usage_record

CHARGE = Charge("k", "tokens-total", "total", Unit.TOKENS, 0)


async def test_it_holds_the_books_as_they_were_when_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is settled while it is written is not in it: it is in the journal behind its position."""
    monkeypatch.setattr(checkpoint, "SLICE", 3)
    books = Books("a" * 32)
    for number in range(20):
        books.add(usage_record(key=f"k{number}"), "m1", (CHARGE,))
    then = encode_books(books, 7)
    encoding = asyncio.create_task(encode_in_slices(books, 7))
    await asyncio.sleep(0)  # it has begun
    turns = 0
    while not encoding.done():
        turns += 1
        for number in (0, 10, 19, 100 + turns):
            books.add(usage_record(key=f"k{number}"), "m1", (CHARGE,))
        await asyncio.sleep(0)
    assert turns > 10
    assert await encoding == then
    assert encode_books(books, 7) != then
    assert books.before_change is None
