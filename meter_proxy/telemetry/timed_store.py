"""How long the store takes: a store around the store."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from meter_proxy.errors import StoreError
from meter_proxy.ledger.messages import Call
from meter_proxy.ledger.sync import SyncStore


class TimedStore:
    """Does what `store` does, and reports the seconds of each batch that it took. Probes and failures are not timed."""

    def __init__(self, store: SyncStore, observe: Callable[[float], None]) -> None:
        self._store = store
        self._observe = observe

    async def call(self, batch: Sequence[Call]) -> list[Any | StoreError]:
        """See `SyncStore.call`."""
        began_at = perf_counter()
        replies = await self._store.call(batch)
        self._observe(perf_counter() - began_at)
        return replies

    async def now(self) -> float:
        """See `SyncStore.now`."""
        return await self._store.now()

    async def read_hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """See `SyncStore.read_hashes`."""
        return await self._store.read_hashes(keys)

    async def close(self) -> None:
        """See `SyncStore.close`."""
        await self._store.close()
