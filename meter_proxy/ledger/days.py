"""What was used on which day, by all keys of all machines, as Redis has it: for reports, not for the hot path.

Every key counts that Redis has a day of, also one that is not configured any more. Everything is read in slices: with
10,000 keys a day takes about a second, and nothing else has to wait for it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import date, timedelta
from functools import lru_cache
from os.path import commonprefix
from typing import NamedTuple, Protocol

from meter_proxy.ledger.books import FIELDS
from meter_proxy.ledger.messages import usage_key

BATCH = 25  # hashes in one go: keeps the loop for 2 ms
PAUSE_S = 0.002  # after each: who serves streams has at least half of the time


class ReportStore(Protocol):
    """What of a store is needed; `store.Store` and `cluster.ClusterStore` are it."""

    def find_keys(self, pattern: str) -> AsyncIterator[list[str]]:
        """Yield the names that fit, some at a time; one may come twice. Raises `StoreError`."""

    async def read_hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """Return the hashes under `keys`; an empty one for a key that is not there. Raises `StoreError`."""


class Place(NamedTuple):
    """A key on a UTC day."""

    account: str
    key: str
    day: date


class DayTotal(NamedTuple):
    """What a key used of one model on one day; `totals` in the order of `books.FIELDS`."""

    account: str
    key: str
    day: date
    model: str
    totals: list[int]


async def totals_of_days(
    store: ReportStore, first: date, last: date, wanted: Callable[[Place], bool] = lambda place: True
) -> AsyncIterator[DayTotal]:
    """Yield what was used from the day `first` to `last`, both included, where `wanted`. Raises `StoreError`."""
    prefix = commonprefix([f"{first:%Y%m%d}", f"{last:%Y%m%d}"])  # noqa: RUF071  # of texts, not of paths
    places: dict[str, Place] = {}  # by name: a set of tuples would be long in growing
    async for names in store.find_keys(f"mp:{{*}}:usage:*:{prefix}*"):
        for name in names:
            place = _place(name)
            if place is not None and first <= place.day <= last and wanted(place):
                places[name] = place
        await asyncio.sleep(0)
    async for total in totals_at(store, list(places.values())):
        yield total


async def totals_at(store: ReportStore, places: Sequence[Place]) -> AsyncIterator[DayTotal]:
    """Yield what was used at these places. Raises `StoreError`."""
    for start in range(0, len(places), BATCH):
        batch = places[start : start + BATCH]
        hashes = await store.read_hashes([usage_key(*place[:2], f"{place.day:%Y%m%d}") for place in batch])
        for place, fields in zip(batch, hashes, strict=True):
            for model, totals in by_model(fields).items():
                yield DayTotal(*place, model, totals)
        await asyncio.sleep(PAUSE_S)


def days_between(first: date, last: date) -> list[date]:
    """Each day from `first` to `last`, both included."""
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def _place(name: str) -> Place | None:
    """What a name in Redis stands for; None if it is not one of ours."""
    try:
        _, account, _, key, day = name.split(":")
        return Place(account[1:-1], key, date(int(day[:4]), int(day[4:6]), int(day[6:8])))
    except ValueError:
        return None


def by_model(fields: Mapping[str, str]) -> dict[str, list[int]]:
    """The hash of a day, `MODEL|FIELD` -> amount, as model -> totals in the order of `books.FIELDS`.

    A field that is missing is 0; one that is not ours, or no amount, is passed over: anybody may write to Redis.
    """
    totals: dict[str, list[int]] = {}
    for name, amount in fields.items():
        model, column = _column(name)
        if column is not None and amount.isdecimal():  # `audit` tells what is wrong with another one
            if model not in totals:
                totals[model] = [0] * len(FIELDS)
            totals[model][column] = int(amount)
    return totals


@lru_cache(maxsize=4096)  # names are those of the model labels, which are bounded
def _column(name: str) -> tuple[str, int | None]:
    model, _, field = name.rpartition("|")
    return model, FIELDS.index(field) if field in FIELDS else None
