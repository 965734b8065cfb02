"""Upstreams that refuse our request for usage, remembered for a while.

Remembered per (upstream, model), and only after the same request without our field was taken.
"""

from collections.abc import Callable

REMEMBERED_FOR_S = 600.0
MAX_REMEMBERED = 4_096  # names that pass through "*" come from callers


class InjectionRefusals:
    """`clock` is a monotonic clock in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[tuple[str, str | None], float] = {}

    def remember(self, upstream: str, model: str | None) -> None:
        if len(self._until) >= MAX_REMEMBERED:
            self._until.pop(next(iter(self._until)))
        self._until[upstream, model] = self._clock() + REMEMBERED_FOR_S

    def is_known(self, upstream: str, model: str | None) -> bool:
        until = self._until.get((upstream, model))
        return until is not None and self._clock() < until
