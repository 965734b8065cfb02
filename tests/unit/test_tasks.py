"""Long work in a loop that must not be held."""

import asyncio
import random

import pytest

from meter_proxy.tasks import slices, sort


async def test_a_long_row_is_cut_and_others_have_their_turn() -> None:
    """In order, nothing twice, the last part as long as it is."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    parts = [part async for part in slices(iter(range(95)), 10)]
    counting.cancel()
    assert [len(part) for part in parts] == [10] * 9 + [5]
    assert [item for part in parts for item in part] == list(range(95))
    assert turns >= 9
    nothing: list[int] = []
    assert [part async for part in slices(nothing, 10)] == []


@pytest.mark.parametrize("count", [0, 1, 10, 1003])
async def test_sorting_in_slices_is_sorting(count: int) -> None:
    items = [(random.Random(number).random(), number) for number in range(count)]
    assert await sort(items, size=10) == sorted(items)
