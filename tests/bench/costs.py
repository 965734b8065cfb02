"""A clock per kind of work, for micro benchmarks."""

import contextlib
import statistics
import time
from collections.abc import Iterator


class Costs:
    """Microseconds of each round, by what was done."""

    def __init__(self) -> None:
        self._rounds: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def of(self, what: str, count: int) -> Iterator[None]:
        """Time the block, which does `what` so many times."""
        began_at = time.perf_counter()
        yield
        self._rounds.setdefault(what, []).append((time.perf_counter() - began_at) / count * 1e6)

    def __str__(self) -> str:
        return "\n".join(
            f"{what:18} best {min(costs):5.2f}  median {statistics.median(costs):5.2f}  worst {max(costs):5.2f}"
            for what, costs in self._rounds.items()
        )
