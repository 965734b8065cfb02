"""Stores in memory, named after the harm they do."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from meter_proxy.errors import StoreError
from meter_proxy.ledger.books import FIELDS
from meter_proxy.ledger.sync import Merge
from tests.support.records import Totals


class InMemory:
    """Takes everything; keeps the greatest total of each journal, as the contract says."""

    def __init__(self) -> None:
        self.books: dict[tuple[str, str, str, str, str, str], int] = {}  # ..., journal id, label, field -> total
        self.messages: list[Merge] = []
        self.batches: list[int] = []
        self.is_closed = False

    async def merge(self, batch: Sequence[Merge]) -> list[bool | StoreError]:
        await asyncio.sleep(0)
        self.batches.append(len(batch))
        return [self._merge_one(message) for message in batch]

    def _merge_one(self, message: Merge) -> bool | StoreError:
        self.messages.append(message)
        has_lost = False
        for model in message.models:
            for field, total in zip(FIELDS, model.totals, strict=True):
                place = (message.account, message.key, message.day, message.journal_id, model.label, field)
                has_lost |= field == "requests" and self.books.get(place, 0) < model.acked_requests
                self.books[place] = max(total, self.books.get(place, 0))
        return has_lost

    def totals(self) -> Totals:
        """Return what the readable counters would hold."""
        totals: Totals = Counter()
        for (account, key, day, _, label, field), total in self.books.items():
            totals[account, key, day, label, field] += total
        return totals

    async def close(self) -> None:
        self.is_closed = True


class Unreachable(InMemory):
    """Answers nothing while `is_away`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = True
        self.attempts = 0

    async def merge(self, batch: Sequence[Merge]) -> list[bool | StoreError]:
        self.attempts += 1
        if self.is_away:
            raise StoreError("Redis at nowhere: Connection refused")
        return await super().merge(batch)


class LosesReplies(InMemory):
    """Does what it is told and says nothing, the first `times` that there is something to do."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def merge(self, batch: Sequence[Merge]) -> list[bool | StoreError]:
        replies = await super().merge(batch)
        if batch and self.times:
            self.times -= 1
            raise StoreError("Redis at nowhere did not answer within 250 ms")
        return replies


class RefusesOneKey(InMemory):
    """Cannot count the key `bad` while `is_wrong`: something else is stored under its name."""

    def __init__(self) -> None:
        super().__init__()
        self.is_wrong = True

    def _merge_one(self, message: Merge) -> bool | StoreError:
        if self.is_wrong and message.key == "bad":
            return StoreError("WRONGTYPE")
        return super()._merge_one(message)


class Slow(InMemory):
    """Answers when `answer` is set; notes whether two batches were ever under way at once."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = asyncio.Event()
        self.under_way = 0
        self.overlapped = False

    async def merge(self, batch: Sequence[Merge]) -> list[bool | StoreError]:
        if not batch:
            return []
        self.under_way += 1
        self.overlapped |= self.under_way > 1
        await self.answer.wait()
        self.under_way -= 1
        return await super().merge(batch)
