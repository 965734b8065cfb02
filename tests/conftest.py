"""Fixtures of the rig, for every test below."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import StoreServer


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[StoreServer]:
    """An empty redis-server of the test's own."""
    with StoreServer.redis(tmp_path) as server:
        yield server


@pytest.fixture
def valkey_server(tmp_path: Path) -> Iterator[StoreServer]:
    """An empty valkey-server of the test's own."""
    with StoreServer.valkey(tmp_path) as server:
        yield server


@pytest.fixture(params=["redis", "valkey"])
def store_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreServer]:
    """Each of the stores that we promise to work with, one after the other."""
    start = StoreServer.redis if request.param == "redis" else StoreServer.valkey
    with start(tmp_path) as server:
        yield server
