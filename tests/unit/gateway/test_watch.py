"""Time-outs of many things, with one timer."""

import asyncio

from meter_proxy.gateway.watch import Deadlines


async def test_what_is_not_taken_back_is_due_in_its_order() -> None:
    """What was taken back is not, and what was begun anew is due later."""
    due: list[str] = []
    deadlines: Deadlines[str] = Deadlines(0.05, due.append)
    for item in ("a", "b", "c"):
        deadlines.add(item)
    deadlines.discard("b")
    deadlines.discard("never added")
    await asyncio.sleep(0.03)
    deadlines.add("a")
    await asyncio.sleep(0.035)
    assert due == ["c"]
    await asyncio.sleep(0.05)
    assert due == ["c", "a"]
    assert len(deadlines) == 0


async def test_what_is_taken_back_by_another_that_is_due_is_not() -> None:
    """Both were due in the same moment; and a failure of one is not the end of the others."""
    seen: list[str] = []
    errors: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))

    def on_due(item: str) -> None:
        seen.append(item)
        deadlines.discard("second")
        if item == "first":
            raise ValueError(item)

    deadlines: Deadlines[str] = Deadlines(0.01, on_due)
    for item in ("first", "second", "third"):
        deadlines.add(item)
    await asyncio.sleep(0.05)
    assert seen == ["first", "third"]
    assert len(errors) == 1


async def test_after_a_pause_it_watches_again() -> None:
    """The timer is there only while something waits."""
    due: list[int] = []
    deadlines: Deadlines[int] = Deadlines(0.01, due.append)
    for number in (1, 2):
        deadlines.add(number)
        await asyncio.sleep(0.03)
    assert due == [1, 2]
