"""Background tasks that nobody can lose.

`spawn` is the only way to start a task in this package: it keeps a reference until the task ends,
and an exception in it is logged, never swallowed with the task object. Bare `create_task`,
`ensure_future` and `shield` are banned by lint.
"""

import asyncio
import logging
from collections.abc import Coroutine
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


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (exc := task.exception()) is not None:
        _log.error("task %s failed", task.get_name(), exc_info=exc)
