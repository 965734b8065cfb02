"""The embedded store: one private Valkey that lives and dies with its proxy, its data longer."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from meter_proxy.errors import CannotStart
from meter_proxy.ledger.embedded import EmbeddedStore
from meter_proxy.ledger.store import check_store
from tests.support.waiting import until_blocking

START_AND_WAIT = """
import sys, time
from pathlib import Path
from meter_proxy.ledger.embedded import EmbeddedStore
store = EmbeddedStore(Path(sys.argv[1]))
store.start()
print(store.url, flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["short", "long" * 40], ids=["short path", "long path"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedStore]:
    """A running store; also in a directory whose path is too long for a unix socket."""
    store = EmbeddedStore(tmp_path / request.param / "store")
    store.start()
    yield store
    store.stop()


def server_pid(directory: Path) -> int:
    """The server's process id, as its lock tells it."""
    return int((directory / "lock").read_text().split()[0])


def is_running(pid: int) -> bool:
    """Whether a process exists and is more than its parent's unread exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_it_is_a_store_that_we_accept(store: EmbeddedStore) -> None:
    """It passes the same check as anybody's Redis, listens on no port, and lets nobody else in."""
    await check_store(store.url)
    with Redis.from_url(store.url, decode_responses=True) as client:
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("append*")["appendonly"] == "yes"
        assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
    socket = Path(store.url.removeprefix("unix://"))
    assert socket.stat().st_mode & 0o077 == 0


@pytest.mark.alone
def test_it_starts_at_once(tmp_path: Path) -> None:
    """Its share of the two seconds of the whole proxy's start is small."""
    store = EmbeddedStore(tmp_path / "store")
    began_at = time.monotonic()
    store.start()
    assert time.monotonic() - began_at < 1.0
    store.stop()


def test_data_survives_a_stop_and_a_kill(store: EmbeddedStore) -> None:
    """What was acknowledged is there after the next start, at the same address while it runs."""
    url = store.url
    with Redis.from_url(url, decode_responses=True) as client:
        client.set("a", "1")
        os.kill(int(str(client.info()["process_id"])), signal.SIGKILL)
    until_blocking(lambda: not store.alive(), "it is dead")
    store.restart()
    assert store.alive()
    assert store.url == url
    with Redis.from_url(url, decode_responses=True) as client:
        client.set("b", "2")
    store.stop()
    assert not store.alive()
    store.start()
    with Redis.from_url(store.url, decode_responses=True) as client:
        assert client.mget("a", "b") == ["1", "2"]


def test_restart_leaves_a_living_server_alone(store: EmbeddedStore) -> None:
    """It is what a supervisor may call at any time."""
    with Redis.from_url(store.url, decode_responses=True) as client:
        client.config_set("maxclients", "77")
        store.restart()
        assert client.config_get("maxclients") == {"maxclients": "77"}


@pytest.mark.alone
def test_a_second_one_in_the_same_directory_cannot_start(store: EmbeddedStore) -> None:
    """It says at once whose the directory is; neither its failure nor its stop disturbs the first."""
    directory = store.directory
    second = EmbeddedStore(directory)
    began_at = time.monotonic()
    with pytest.raises(CannotStart, match=rf"in use by process {server_pid(directory)} \(started by {os.getpid()}\)"):
        second.start()
    assert time.monotonic() - began_at < 1.0
    second.stop()
    with Redis.from_url(store.url) as client:
        assert client.ping()


def test_it_dies_with_its_parent_and_the_next_one_takes_over(tmp_path: Path) -> None:
    """After kill -9 of the proxy nothing goes on; a start right after it waits for the old server's end."""
    directory = tmp_path / "store"
    with subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT, str(directory)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        with Redis.from_url(url, decode_responses=True) as client:
            client.set("a", "1")
        orphan = server_pid(directory)
        parent.kill()
    store = EmbeddedStore(directory)
    try:
        store.start()
        assert not is_running(orphan)
        with Redis.from_url(store.url, decode_responses=True) as client:
            assert client.get("a") == "1"
    finally:
        store.stop()
        if is_running(orphan):
            os.kill(orphan, signal.SIGKILL)


def test_stop_leaves_no_socket_and_no_process(store: EmbeddedStore) -> None:
    """Also not the private directory of a socket with a path of its own."""
    socket = Path(store.url.removeprefix("unix://"))
    pid = server_pid(store.directory)
    store.stop()
    assert not is_running(pid)
    assert not socket.exists()
    assert socket.parent == store.directory or not socket.parent.exists()
    store.stop()


def test_a_stale_socket_does_not_prevent_the_start(tmp_path: Path) -> None:
    """What a killed machine leaves behind is replaced."""
    directory = tmp_path / "store"
    directory.mkdir()
    (directory / "valkey.sock").touch()
    (directory / "lock").write_text(f"1 {os.getpid()}\n")
    store = EmbeddedStore(directory)
    store.start()
    assert store.alive()
    store.stop()


def test_a_server_that_will_not_start_says_why(tmp_path: Path) -> None:
    """One line with the server's last words and the place of its log."""
    directory = tmp_path / "store"
    (directory / "appendonlydir").mkdir(parents=True)
    (directory / "appendonlydir" / "appendonly.aof.manifest").write_text("rubbish\n")
    store = EmbeddedStore(directory)
    with pytest.raises(CannotStart, match=r"the embedded store ended at its start: .*valkey.log\)") as refusal:
        store.start()
    assert "\n" not in str(refusal.value)
    assert not store.alive()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """One line says which and why."""
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match="file/store: Not a directory"):
        EmbeddedStore(tmp_path / "file" / "store").start()
