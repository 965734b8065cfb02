"""The thread that brings the journal to the disk."""

import os
import threading
import time
from pathlib import Path

import pytest

from meter_proxy.ledger.flushing import Flusher
from tests.support.journals import open_journal

INTERVAL_S = 0.005


class Disk:
    """`os.fdatasync` that notes when it was called, and may be slow."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.flushes: list[float] = []
        self._takes_s = takes_s

    def __call__(self, fd: int) -> None:
        self.flushes.append(time.monotonic())
        time.sleep(self._takes_s)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk that costs nothing."""
    disk = Disk()
    monkeypatch.setattr(os, "fdatasync", disk)
    return disk


def until_flushed(disk: Disk, count: int) -> None:
    deadline = time.monotonic() + 5
    while len(disk.flushes) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_is_written_is_flushed_an_interval_later_and_once(tmp_path: Path, disk: Disk) -> None:
    """Many writes within it are one flush; nothing written is none."""
    flusher = Flusher(open_journal(tmp_path), INTERVAL_S)
    before = time.monotonic()
    for _ in range(100):
        flusher.wrote()
    until_flushed(disk, 1)
    assert disk.flushes[0] - before >= INTERVAL_S * 0.9
    time.sleep(4 * INTERVAL_S)
    assert len(disk.flushes) == 1
    flusher.stop()


def test_what_is_written_during_a_flush_gets_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one under way may have missed it."""
    disk = Disk(takes_s=0.05)
    monkeypatch.setattr(os, "fdatasync", disk)
    flusher = Flusher(open_journal(tmp_path), INTERVAL_S)
    flusher.wrote()
    until_flushed(disk, 1)
    flusher.wrote()
    until_flushed(disk, 2)
    flusher.stop()


def test_a_disk_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the next write, and it is said."""
    disk = Disk()

    def fails_once(fd: int) -> None:
        disk(fd)
        if len(disk.flushes) == 1:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails_once)
    flusher = Flusher(open_journal(tmp_path), INTERVAL_S)
    for count in (1, 2):
        flusher.wrote()
        until_flushed(disk, count)
    flusher.stop()
    assert "Input/output error" in caplog.text


def test_it_ends_at_whatever_moment_it_is_told_to(tmp_path: Path, disk: Disk) -> None:
    """Asleep, waiting, flushing, or on the way from one to the other."""
    journal = open_journal(tmp_path)
    for turn in range(300):
        flusher = Flusher(journal, 0.0001)
        for _ in range(turn % 7):
            flusher.wrote()
            time.sleep(0.0001 * (turn % 3))
        ending = threading.Thread(target=flusher.stop)
        ending.start()
        ending.join(5)
        assert not ending.is_alive()


def test_a_rotation_meanwhile_flushes_no_other_file(tmp_path: Path) -> None:
    """The descriptor is the flush's own: the journal may close its one, and somebody else may get the number."""
    journal = open_journal(tmp_path, segment_bytes=2_000)
    flusher = Flusher(journal, 0.0001)
    for _ in range(200):
        journal.append(b"x" * 700)
        flusher.wrote()
    flusher.stop()
    journal.close()
