"""What the admin listener asks of the running proxy."""

from collections.abc import Sequence
from typing import Protocol

import msgspec


class WorkerState(msgspec.Struct, frozen=True):
    """A worker as `/api/live` shows it. `restarts`: how often it was replaced."""

    index: int
    pid: int | None
    state: str
    restarts: int


class About(msgspec.Struct, frozen=True):
    """What the usage page writes into its examples. `models`: names that can be asked for as they stand."""

    version: str
    base_url: str
    models: list[str]
    needs_key: bool


class Proxy(Protocol):
    """What is asked about the running proxy; `workers.Supervisor` answers."""

    def reasons_not_ready(self) -> list[str]:
        """Why no (or not every) request can be served; empty when ready."""

    def notes_on_readiness(self) -> list[str]:
        """What is not as it should be, though requests are served."""

    def worker_states(self) -> Sequence[WorkerState]:
        """Each worker, by its index."""

    @property
    def uptime_s(self) -> float:
        """Since when it runs."""

    def about(self) -> About:
        """What callers have to know of it."""

    async def reload(self) -> None:
        """Read the configuration again and serve by it; `ConfigError`, and nothing changed, if it is not good."""
