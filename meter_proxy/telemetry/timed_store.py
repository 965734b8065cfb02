"""How long the store takes: a store around the store."""

from collections.abc import Callable, Sequence
from time import perf_counter

from meter_proxy.errors import StoreError
from meter_proxy.ledger.sync import BooksStore, Merge


class TimedStore:
    """Does what `store` does, and reports the seconds of each batch that it took. Probes and failures are not timed."""

    def __init__(self, store: BooksStore, observe: Callable[[float], None]) -> None:
        self._store = store
        self._observe = observe

    async def merge(self, batch: Sequence[Merge]) -> list[bool | StoreError]:
        """See `BooksStore.merge`."""
        began_at = perf_counter()
        replies = await self._store.merge(batch)
        if batch:
            self._observe(perf_counter() - began_at)
        return replies

    async def close(self) -> None:
        """See `BooksStore.close`."""
        await self._store.close()
