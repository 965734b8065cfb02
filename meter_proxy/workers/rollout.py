"""One configuration on its way to all workers: first each prepares it, then all serve by it, or none does."""

import asyncio
from collections.abc import Callable, Iterable
from typing import NamedTuple

from meter_proxy.config.schema import Config
from meter_proxy.errors import ConfigError
from meter_proxy.workers.line import Commit, Line, Prepare, packed

PREPARE_S = 10.0  # 100,000 keys take a busy worker some seconds
COMMIT_S = 5.0


class _Party(NamedTuple):
    name: str
    line: Line


class Rollout:
    """`prepare`, then `commit`. The supervisor passes on what it hears in the meantime."""

    def __init__(self, number: int, config: Config, workers: Iterable[tuple[str, Line]]) -> None:
        """`workers`: the name and line of each process that may take requests. `number` is this configuration's own."""
        self.number = number
        self.config = config
        self._parties = [_Party(name, line) for name, line in workers]
        self._prepared: set[Line] = set()
        self._serving: set[Line] = set()
        self._gone: set[Line] = set()
        self._refusals: list[str] = []
        self._news = asyncio.Event()

    # What the supervisor hears.

    def prepared(self, line: Line, number: int) -> None:
        """A worker could serve by it."""
        self._note(self._prepared, line, number)

    def refused(self, line: Line, number: int, why: str) -> None:
        """A worker could not."""
        if number == self.number:
            name = next((party.name for party in self._parties if party.line is line), "a worker")
            self._refusals.append(f"{name} cannot serve by it: {why}")
            self._news.set()

    def serves(self, line: Line, number: int) -> None:
        """A worker does."""
        self._note(self._serving, line, number)

    def gone(self, line: Line) -> None:
        """A worker has died. Its successor begins with the configuration that is in force by then."""
        self._gone.add(line)
        self._news.set()

    def _note(self, where: set[Line], line: Line, number: int) -> None:
        if number == self.number:
            where.add(line)
            self._news.set()

    # The two steps.

    async def prepare(self) -> None:
        """Raises ConfigError if a worker cannot serve by it, or does not say that it can: then none is to."""
        message = packed(Prepare(self.number, self.config))
        for party in self._parties:
            party.line.send(message)
        await self._wait(lambda: bool(self._refusals) or not self._missing(self._prepared), PREPARE_S)
        missing = self._missing(self._prepared)
        if missing:
            raise ConfigError(self._refusals or [f"{name} does not answer" for name in missing])

    async def commit(self, born_meanwhile: Iterable[Line]) -> list[str]:
        """Let all go over; -> the names of those that have not said so in time: they will.

        `born_meanwhile`: processes that were started after `prepare` began, with the former configuration.
        """
        for party in self._parties:
            party.line.send(packed(Commit(self.number)))
        for line in born_meanwhile:
            line.send(packed(Prepare(self.number, self.config)) + packed(Commit(self.number)))
        await self._wait(lambda: not self._missing(self._serving), COMMIT_S)
        return self._missing(self._serving)

    def _missing(self, among: set[Line]) -> list[str]:
        return [name for name, line in self._parties if line not in among and line not in self._gone]

    async def _wait(self, is_over: Callable[[], bool], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not is_over():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
