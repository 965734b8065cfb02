"""Background tasks that nobody can lose.

`spawn` is the only way to start a task in this package: it keeps a reference until the task ends,
and an exception in it is logged, never swallowed with the task object. Bare `create_task`,
`ensure_future` and `shield` are banned by lint.

`slices` and `sort` are for work that is long in sum, in a loop that must not be held.
"""

import asyncio
import heapq
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")
_log = logging.getLogger("meter_proxy.tasks")
_running: set[asyncio.Task[Any]] = set()


def spawn(coro: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
    """Run `coro` in a task of the running loop; its failure is logged under `name`."""
    task = asyncio.get_running_loop().create_task(coro, name=name)
    _running.add(task)
    task.add_done_callback(_ended)
    return task


async def slices(items: Iterable[T], size: int) -> AsyncIterator[list[T]]:
    """Yield `items` in lists of at most `size`; after each, the loop gets its turn."""
    left = iter(items)
    while part := list(islice(left, size)):
        yield part
        await asyncio.sleep(0)


async def sort(items: Iterable[Any], size: int = 250) -> list[Any]:
    """Sort any number of `items`, the loop getting its turn after each `size`: 1 ms."""
    runs = [sorted(part) async for part in slices(items, size)]
    return [item async for part in slices(heapq.merge(*runs), size) for item in part]


class Patience:
    """A time-out that our own slowness does not use up.

    A loop that was busy finds its timers due before it has looked at what has long arrived: so, when the time is
    over, the loop turns a few times more before `give_up` is called.
    """

    TURNS = 8  # from the bytes on a socket to the task that waits for their meaning, with some to spare

    def __init__(self, seconds: float, give_up: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._give_up = give_up
        self._turns = 0
        self._handle: asyncio.Handle = self._loop.call_later(seconds, self._turn)

    def _turn(self) -> None:
        if self._turns == self.TURNS:
            self._give_up()
            return
        self._turns += 1
        # Not call_soon: between two turns the loop must look at its sockets.
        self._handle = self._loop.call_later(0.0005, self._turn)

    def cancel(self) -> None:
        """It came in time."""
        self._handle.cancel()


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (exc := task.exception()) is not None:
        _log.error("task %s failed", task.get_name(), exc_info=exc)
