"""A configuration on its way to all workers."""

import asyncio
from pathlib import Path

import pytest

from meter_proxy.config.load import config_for_upstream
from meter_proxy.errors import ConfigError
from meter_proxy.tasks import spawn
from meter_proxy.workers import rollout
from meter_proxy.workers.line import Commit, Line, Message, Prepare, packed, unpacked
from meter_proxy.workers.rollout import Rollout

CONFIG = config_for_upstream("http://127.0.0.1:9", state_dir=Path("state"))


class FakeLine(Line):
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.received = bytearray()

    def send(self, data: bytes) -> None:
        self.received += data

    def messages(self) -> list[type[Message]]:
        """The kinds of what was sent since the last look."""
        kinds: list[type[Message]] = []
        while (message := unpacked(self.received)) is not None:
            assert message.number == 7
            kinds.append(type(message))
        return kinds


@pytest.fixture
def lines() -> list[FakeLine]:
    return [FakeLine(), FakeLine()]


@pytest.fixture
def of_two(lines: list[FakeLine]) -> Rollout:
    return Rollout(7, CONFIG, [("worker 0", lines[0]), ("worker 1", lines[1])])


async def test_all_go_over_once_all_can(of_two: Rollout, lines: list[FakeLine]) -> None:
    """Not before."""
    preparing = spawn(of_two.prepare(), name="prepare")
    await asyncio.sleep(0)
    assert [line.messages() for line in lines] == [[Prepare], [Prepare]]
    of_two.prepared(lines[0], 7)
    of_two.prepared(lines[1], 6)  # of a former one, late
    await asyncio.sleep(0)
    assert not preparing.done()
    of_two.prepared(lines[1], 7)
    await preparing
    committing = spawn(of_two.commit([]), name="commit")
    await asyncio.sleep(0)
    assert [line.messages() for line in lines] == [[Commit], [Commit]]
    of_two.serves(lines[0], 7)
    await asyncio.sleep(0)
    assert not committing.done()
    of_two.serves(lines[1], 7)
    assert await committing == []


async def test_a_refusal_is_told_at_once_by_name(of_two: Rollout, lines: list[FakeLine]) -> None:
    preparing = spawn(of_two.prepare(), name="prepare")
    await asyncio.sleep(0)
    of_two.refused(lines[1], 6, "long ago")
    await asyncio.sleep(0)
    assert not preparing.done()
    of_two.refused(lines[1], 7, "no room")
    with pytest.raises(ConfigError, match=r"^worker 1 cannot serve by it: no room$"):
        await preparing


async def test_silence_is_a_refusal(of_two: Rollout, lines: list[FakeLine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what a worker that does not answer would do."""
    monkeypatch.setattr(rollout, "PREPARE_S", 0.02)
    of_two.prepared(lines[1], 7)
    with pytest.raises(ConfigError, match=r"^worker 0 does not answer$"):
        await of_two.prepare()


async def test_the_dead_hold_up_nobody_and_the_newborn_get_both(of_two: Rollout, lines: list[FakeLine]) -> None:
    """A process that was started meanwhile has the former configuration."""
    of_two.prepared(lines[0], 7)
    of_two.gone(lines[1])
    await of_two.prepare()
    of_two.serves(lines[0], 7)
    newborn = FakeLine()
    assert await of_two.commit([newborn]) == []
    assert newborn.messages() == [Prepare, Commit]


async def test_who_is_late_is_named(of_two: Rollout, lines: list[FakeLine], monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told, and goes over when it can: there is no way back."""
    monkeypatch.setattr(rollout, "COMMIT_S", 0.02)
    for line in lines:
        of_two.prepared(line, 7)
    await of_two.prepare()
    of_two.serves(lines[1], 7)
    assert await of_two.commit([]) == ["worker 0"]


def test_messages_survive_any_cut() -> None:
    """Byte by byte, and all in one."""
    sent = packed(Prepare(1, CONFIG)) + packed(Commit(1))
    received, got = bytearray(), []
    for byte in sent:
        received.append(byte)
        while (message := unpacked(received)) is not None:
            got.append(message)
    assert got == [Prepare(1, CONFIG), Commit(1)]
    assert not received
    received += sent
    assert [unpacked(received), unpacked(received), unpacked(received)] == [*got, None]
