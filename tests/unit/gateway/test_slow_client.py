"""A client in the front lane that does not take what it is given, without a socket: the transports are ours."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from meter_proxy.gateway.front import Front, FrontDoor
from meter_proxy.gateway.gateway import Gateway
from meter_proxy.gateway.upstream import UpstreamConnection
from meter_proxy.ledger import Ledger
from meter_proxy.telemetry.stats import WorkerStats
from tests.support import answers
from tests.unit.gateway.plain_requests import config_of, request

HIGH_WATER_BYTES = 65_536
CONFIG = config_of(
    """
upstreams: {one: {base_url: "http://one/v1", running_usage: off}}
models: {"*": {upstream: one}}
keys: [{id: alice, secret: {env: K}, quotas: unlimited}]
""",
    K="sk-plain",
)


class Transport:
    """Takes `takes` bytes, then says that its client is slow, once, as asyncio's do."""

    def __init__(self, takes: int = 1 << 30) -> None:
        self.protocol: Front | None = None
        self.takes = takes
        self._is_read = True
        self.unsent = 0

    def write(self, data: bytes) -> None:
        was_slow = self.unsent > HIGH_WATER_BYTES
        self.unsent += max(0, len(data) - self.takes)
        self.takes = max(0, self.takes - len(data))
        if self.protocol is not None and not was_slow and self.unsent > HIGH_WATER_BYTES:
            self.protocol.pause_writing()

    def has_taken_all(self) -> None:
        self.unsent, self.takes = 0, 1 << 30
        assert self.protocol is not None
        self.protocol.resume_writing()

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_read(self) -> bool:
        return self._is_read

    def pause_reading(self) -> None:
        self._is_read = False

    def resume_reading(self) -> None:
        self._is_read = True

    def abort(self) -> None:
        raise AssertionError("nobody is to be thrown out here")

    close = abort


class Rig:
    """One client, one idle connection to the upstream."""

    def __init__(self, gateway: Gateway, *, takes: int) -> None:
        self.gateway = gateway
        door = FrontDoor(lambda: gateway, asyncio.Protocol, header_timeout_s=10, keep_alive_s=10)
        self.client, self.upstream = Transport(takes), Transport()
        self.front = Front(door)
        self.client.protocol = self.front
        self.front.connection_made(cast(asyncio.Transport, self.client))
        pool = gateway.pools["one"]
        self.connection = UpstreamConnection(pool)
        self.connection.connection_made(cast(asyncio.Transport, self.upstream))
        pool.give_back(self.connection)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """With books of its own and no store."""
    ledger = Ledger(tmp_path / "w0", None, configured_models=[])
    await ledger.start()
    yield Gateway(CONFIG, ledger, WorkerStats())
    await ledger.stop()


def answer(body: bytes) -> bytes:
    """A plain answer, in one read."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def test_an_exchange_lasts_until_its_client_has_taken_the_last_read(gateway: Gateway) -> None:
    """Also where that is held back until its usage is known."""
    rig = Rig(gateway, takes=1_000)
    rig.front.data_received(request(b'{"model":"m","messages":[]}'))
    rig.connection.data_received(answer(answers.chat_json(output_tokens=3).rstrip() + b" " * 200_000))
    await asyncio.sleep(0)
    assert len(gateway.in_flight) == 1
    rig.client.has_taken_all()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not gateway.in_flight


async def test_what_a_slow_client_asks_next_does_not_pile_up(gateway: Gateway) -> None:
    """The upstream is paused though the transport does not say again that its client is slow."""
    rig = Rig(gateway, takes=0)
    rig.client.unsent = HIGH_WATER_BYTES + 1
    rig.front.pause_writing()
    rig.front.data_received(request(b'{"model":"m","messages":[],"stream":true}'))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    rig.connection.data_received(head)
    assert not rig.upstream.is_read()
    rig.client.has_taken_all()
    assert rig.upstream.is_read()
    rig.connection.data_received(b"0\r\n\r\n")
    assert not gateway.in_flight
