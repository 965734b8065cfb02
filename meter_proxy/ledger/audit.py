"""Compares the journals with Redis, line by line: what was settled must be there, once, and add up.

Three things are compared for each day and each quota counter that Redis still keeps: every journal's own totals with
the journal recomputed; and the readable sums with what all journals say there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from meter_proxy.ledger.books import FIELDS, Book, CounterBook, DayBook
from meter_proxy.ledger.checkpoint import recompute
from meter_proxy.ledger.messages import counter_key, day_expires_at, day_keys
from meter_proxy.ledger.reading import journals
from meter_proxy.quota.charge import KEY_HOLDER, expires_at

BATCH = 200  # hashes read at once

Hash = Mapping[str, str]


class HashReader(Protocol):
    """What the audit needs of a store."""

    async def read_hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """Return the hashes under `keys`; an empty one for a key that is not there."""


class Difference(NamedTuple):
    """One figure that is not the same on both sides."""

    hash: str
    field: str
    expected: int  # by the journals, or by the sum over them
    found: int  # in Redis


class Result(NamedTuple):
    """What was compared, and what differs."""

    records: int
    hashes: int
    differences: list[Difference]


async def audit(
    state_dir: Path,
    store: HashReader,
    *,
    now: float,
    retention_s: int,
    accounts: Mapping[str, str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Recompute all journals in `state_dir` and compare. `now`: Unix seconds; `accounts`: key -> account, where it
    is known: a key that moved took its quota counters along. `progress` hears of hashes done and to do.

    Raises `StoreError`, `DamagedJournal`, `OSError`.
    """
    books: list[Book] = []
    records = 0
    for journal in journals(state_dir):
        for book in recompute(journal):
            if isinstance(book, DayBook):
                records += sum(totals[0] for totals in book.totals.values())
                if day_expires_at(book.day, retention_s) > now:
                    books.append(book)
            elif not 0 < expires_at(book.window, book.ends_at) <= now:
                if book.holder == KEY_HOLDER and (not book.ends_at or book.ends_at > now):
                    book.account = accounts.get(book.owner, book.account)
                books.append(book)
    by_place: dict[tuple[str, ...], list[Book]] = {}
    for book in books:
        place = tuple(day_keys(book)) if isinstance(book, DayBook) else (counter_key(book),)
        by_place.setdefault(place, []).append(book)
    differences: list[Difference] = []
    places = list(by_place)
    for start in range(0, len(places), BATCH):
        batch = places[start : start + BATCH]
        hashes = iter(await store.read_hashes([key for place in batch for key in place]))
        for place in batch:
            found = [next(hashes) for _ in place]
            differences += _compare(place, by_place[place], found)
        progress(min(start + BATCH, len(places)), len(places))
    return Result(records, len(places), differences)


def _compare(place: tuple[str, ...], books: Iterable[Book], found: list[dict[str, str]]) -> Iterator[Difference]:
    for book in books:
        if isinstance(book, DayBook):
            yield from _own_day(place[1], book, found[1])
        else:
            yield from _own_counter(place[0], book, found[0])
    if len(place) == 2:
        yield from _day_sums(place[0], found[0], found[1])
    else:
        yield from _counter_sums(place[0], found[0])


def _own_day(name: str, book: DayBook, found: Hash) -> Iterator[Difference]:
    for label, totals in book.totals.items():
        for field, total in zip(FIELDS, totals, strict=True):
            own = f"{book.journal_id}|{label}|{field}"
            if int(found.get(own, 0)) != total:
                yield Difference(name, own, total, int(found.get(own, 0)))


def _own_counter(name: str, book: CounterBook, found: Hash) -> Iterator[Difference]:
    own = f"u:{book.journal_id}"
    if int(found.get(own, 0)) != book.used:
        yield Difference(name, own, book.used, int(found.get(own, 0)))


def _day_sums(name: str, usage: Hash, books: Hash) -> Iterator[Difference]:
    sums: dict[str, int] = {}
    for own, total in books.items():
        field = own.partition("|")[2]
        sums[field] = sums.get(field, 0) + int(total)
    for field in sorted(sums.keys() | usage.keys()):
        if sums.get(field, 0) != int(usage.get(field, 0)):
            yield Difference(name, field, sums.get(field, 0), int(usage.get(field, 0)))


def _counter_sums(name: str, found: Hash) -> Iterator[Difference]:
    for field, prefix in (("used", "u:"), ("reserved", "r:")):
        total = sum(int(amount) for own, amount in found.items() if own.startswith(prefix))
        if total != int(found.get(field, 0)):
            yield Difference(name, field, total, int(found.get(field, 0)))
