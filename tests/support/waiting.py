"""Wait for a condition, never for a time.

`PATIENCE_S` is the one unit of time of the rig: how long a healthy machine may take for anything.
A slow machine sets METER_PROXY_TEST_PATIENCE (a factor) instead of editing tests.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 30.0 * float(os.environ.get("METER_PROXY_TEST_PATIENCE", "1"))
_POLL_S = 0.01


async def until(condition: Callable[[], T | None], what: str, *, within_s: float = PATIENCE_S) -> T:
    """Return the first truthy value of `condition()`; AssertionError naming `what` after `within_s`.

    The condition is polled every 10 ms on the running loop, so that it may look at anything.
    """
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        await asyncio.sleep(_POLL_S)
    return value


async def until_async(condition: Callable[[], Awaitable[T | None]], what: str, *, within_s: float = PATIENCE_S) -> T:
    """`until` for a condition that must be awaited, such as an HTTP request."""
    deadline = time.monotonic() + within_s
    while not (value := await condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        await asyncio.sleep(_POLL_S)
    return value


def until_blocking(condition: Callable[[], T | None], what: str, *, within_s: float = PATIENCE_S) -> T:
    """`until` for code without a loop: the start of a child process."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(_POLL_S)
    return value
