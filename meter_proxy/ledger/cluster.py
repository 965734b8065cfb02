"""A store of several servers: Redis Cluster. Each account's keys bear one hash tag, so each message has one home.

One connection and one pipeline per server, side by side: a server that is away costs its own accounts only. Where a
key lives is asked when it is first needed, and again when a server says "moved" or is gone.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from redis.crc import key_slot

from meter_proxy.errors import StoreError
from meter_proxy.ledger.messages import Call
from meter_proxy.ledger.store import Store, StoreUrl


class Slots(NamedTuple):
    """A range of hash slots, and the server that they are on."""

    first: int
    last: int
    server: tuple[str, int]


class ClusterStore:
    """`redis+cluster://`: does what `store.Store` does, over all servers of the cluster."""

    def __init__(self, url: StoreUrl) -> None:
        """`url` names one or more servers of the cluster, from which the others are learnt."""
        self._url = url
        self.address = f"Redis Cluster at {','.join(f'{host}:{port}' for host, port in url.hosts)}"
        self._servers: dict[tuple[str, int], Store] = {}
        self._slots: list[Slots] = []

    async def check(self) -> None:
        """Make sure that every primary can be used. Raises `StoreError`."""
        await self._learn()
        for server in dict.fromkeys(slots.server for slots in self._slots):
            await self._server(server).check()

    async def version(self) -> str:
        """Return what the primaries are: `Redis 7.4.2 on 3 servers`. Raises `StoreError` if one does not answer."""
        if not self._slots:
            await self._learn()
        servers = dict.fromkeys(slots.server for slots in self._slots)
        versions = dict.fromkeys([await self._server(server).version() for server in servers])
        return f"{' and '.join(versions)} on {len(servers)} server{'' if len(servers) == 1 else 's'}"

    async def call(self, batch: Sequence[Call]) -> list[Any | StoreError]:
        """Run `sync.lua` once per call, each where its keys are. See `sync.SyncStore`."""
        replies: list[Any] = [None] * len(batch)
        places = await self._by_server([call.keys[0] for call in batch])

        async def run(server: tuple[str, int], numbers: list[int]) -> None:
            try:
                answers = await self._server(server).call([batch[number] for number in numbers])
            except StoreError as exc:
                self._slots = []  # it may have lost its role: ask again
                answers = [_for_now(exc)] * len(numbers)
            for number, answer in zip(numbers, answers, strict=True):
                replies[number] = answer

        await asyncio.gather(*(run(server, numbers) for server, numbers in places.items()))
        if replies and all(isinstance(reply, StoreError) and reply.transient for reply in replies):
            raise replies[0]
        return replies

    async def now(self) -> float:
        """Return the clock of the first server that answers, in Unix seconds. Raises `StoreError`."""
        if not self._slots:
            await self._learn()
        error = StoreError(f"{self.address}: no server answers")
        for server in dict.fromkeys(slots.server for slots in self._slots):
            try:
                return await self._server(server).now()
            except StoreError as exc:
                self._slots = []
                error = exc
        raise error

    async def read_hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """Return the hashes under `keys`. Raises `StoreError` if one of their servers does not answer."""
        found: list[dict[str, str]] = [{} for _ in keys]
        for server, numbers in (await self._by_server(keys)).items():
            hashes = await self._server(server).read_hashes([keys[number] for number in numbers])
            for number, fields in zip(numbers, hashes, strict=True):
                found[number] = fields
        return found

    async def find_keys(self, pattern: str) -> AsyncIterator[list[str]]:
        """Yield the names that fit `pattern`, of all servers. See `store.Store.find_keys`."""
        if not self._slots:
            await self._learn()
        for server in dict.fromkeys(slots.server for slots in self._slots):
            async for names in self._server(server).find_keys(pattern):
                yield names

    async def close(self) -> None:
        """Close all connections."""
        for server in self._servers.values():
            await server.close()

    async def _by_server(self, keys: Sequence[str]) -> dict[tuple[str, int], list[int]]:
        """Which of `keys`, by number, are on which server."""
        if not self._slots:
            await self._learn()
        places: dict[tuple[str, int], list[int]] = {}
        for number, key in enumerate(keys):
            places.setdefault(self._home(key_slot(key.encode())), []).append(number)
        return places

    def _home(self, slot: int) -> tuple[str, int]:
        for slots in self._slots:
            if slots.first <= slot <= slots.last:
                return slots.server
        raise StoreError(f"{self.address}: slot {slot} is on no server: the cluster is not whole")

    async def _learn(self) -> None:
        """Ask the servers, those that are known first, which slots are where."""
        error: StoreError | None = None
        for server in dict.fromkeys((*self._servers, *self._url.hosts)):
            try:
                ranges = await self._server(server).cluster_slots()
            except StoreError as exc:
                error = exc
                continue
            self._slots = [Slots(first, last, (host or server[0], port)) for first, last, host, port in ranges]
            if self._slots:
                return
        raise error or StoreError(f"{self.address} has no slots: it is not a cluster, or not one yet")

    def _server(self, server: tuple[str, int]) -> Store:
        store = self._servers.get(server)
        if store is None:
            store = self._servers[server] = Store(self._url.of_server(*server))
        return store

    def __repr__(self) -> str:
        return f"<ClusterStore {self.address} servers={len(self._servers)}>"


def _for_now(error: StoreError) -> StoreError:
    """The error of one server, as it concerns one call: better in a moment."""
    one = StoreError(str(error))
    one.transient = True
    return one
