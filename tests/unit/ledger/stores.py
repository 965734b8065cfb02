"""Stores in memory that run the real script, named after the harm they do."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from fakeredis import FakeRedis

from meter_proxy.errors import StoreError
from meter_proxy.ledger.messages import Call
from tests.support.records import Totals

# The shebang is Redis' own; the Lua in memory does not know it.
_SCRIPT = files("meter_proxy.ledger").joinpath("sync.lua").read_text("utf-8").split("\n", 1)[1]


class InMemory:
    """Takes everything, and does with it what Redis would do."""

    def __init__(self) -> None:
        self.redis = FakeRedis(decode_responses=True, version=(7,))
        self.messages: list[Call] = []
        self.batches: list[int] = []
        self.is_closed = False

    async def call(self, batch: Sequence[Call]) -> list[Any | StoreError]:
        await asyncio.sleep(0)
        self.batches.append(len(batch))
        return [self._call_one(call) for call in batch]

    def _call_one(self, call: Call) -> Any | StoreError:
        self.messages.append(call)
        return self.redis.eval(_SCRIPT, len(call.keys), *call.keys, *call.args)

    async def now(self) -> float:
        seconds, microseconds = self.redis.time()
        return float(seconds + microseconds / 1e6)

    async def read_hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        return [_texts(self.redis.hgetall(key)) for key in keys]

    def totals(self) -> Totals:
        """Return what the readable counters hold."""
        totals: Totals = Counter()
        for name in map(str, self.redis.scan_iter("mp:*:usage:*")):
            account, key, day = name.split("{")[1].split("}")[0], name.split(":")[-2], name.split(":")[-1]
            for field, total in _texts(self.redis.hgetall(name)).items():
                label, _, unit = field.rpartition("|")
                totals[account, key, day, label, unit] += int(total)
        return totals

    async def close(self) -> None:
        self.is_closed = True


def _texts(fields: Any) -> dict[str, str]:
    return dict(fields)


class Unreachable(InMemory):
    """Answers nothing while `is_away`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = True
        self.attempts = 0

    async def call(self, batch: Sequence[Call]) -> list[Any | StoreError]:
        self._attempt()
        return await super().call(batch)

    async def now(self) -> float:
        self._attempt()
        return await super().now()

    def _attempt(self) -> None:
        self.attempts += 1
        if self.is_away:
            raise StoreError("Redis at nowhere: Connection refused")


class LosesReplies(InMemory):
    """Does what it is told and says nothing, the first `times` that it gets books."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def call(self, batch: Sequence[Call]) -> list[Any | StoreError]:
        replies = await super().call(batch)
        if keys_in(batch) and self.times:
            self.times -= 1
            raise StoreError("Redis at nowhere did not answer within 250 ms")
        return replies


class RefusesOneKey(InMemory):
    """Cannot count the key `bad` while `is_wrong`: something else is stored under its name."""

    def __init__(self) -> None:
        super().__init__()
        self.is_wrong = True

    def _call_one(self, call: Call) -> Any | StoreError:
        if self.is_wrong and any(":usage:bad:" in key for key in call.keys):
            return StoreError("WRONGTYPE")
        return super()._call_one(call)


class Slow(InMemory):
    """Takes books when `answer` is set; notes whether two batches were ever under way at once."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = asyncio.Event()
        self.under_way = 0
        self.overlapped = False

    async def call(self, batch: Sequence[Call]) -> list[Any | StoreError]:
        if not keys_in(batch):
            return await super().call(batch)
        self.under_way += 1
        self.overlapped |= self.under_way > 1
        await self.answer.wait()
        self.under_way -= 1
        return await super().call(batch)


def keys_in(calls: Sequence[Call]) -> list[str]:
    """Whose day books the messages carried, in order."""
    return [key.split(":")[-2] for call in calls for key in call.keys if ":usage:" in key]
