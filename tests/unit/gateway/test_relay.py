"""Count before forwarding: at the instant in which a client gets bytes, they are in the books already."""

from pathlib import Path
from typing import cast

import pytest

from meter_proxy.errors import UpstreamTimeout
from meter_proxy.gateway.client import Client
from meter_proxy.gateway.http1 import Framing, ResponseHead
from meter_proxy.gateway.relay import Relay
from meter_proxy.gateway.upstream import UpstreamConnection
from meter_proxy.gateway.watch import Times
from meter_proxy.ledger.slots import Progress, SlotTable, read_live
from meter_proxy.metering.injection import NOTHING_HIDDEN
from meter_proxy.metering.meter import Meter, meter_for
from meter_proxy.metering.request import parse_body
from meter_proxy.telemetry.stats import WorkerStats
from meter_proxy.usage import Basis, Operation
from tests.support import answers

ASKED = parse_body(b'{"model":"m"}', Operation.CHAT)


class LooksIntoTheSlot:
    """A client that notes, at each write, what the books would say if we were killed now."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.seen: list[tuple[bytes, Progress]] = []

    def write(self, payload: bytes, framed: bytes | None) -> None:
        (progress,) = read_live(self._directory)
        self.seen.append((payload, progress))


class Connection:
    """An upstream that is only closed."""

    class pool:
        name = "local"

    def send(self, request: bytes, sink: object) -> None:
        return

    def close(self) -> None:
        return


def has_timed_out(relay: Relay) -> bool:
    """The upstream's time is over."""
    return isinstance(relay.error, UpstreamTimeout)


def make_meter(head: ResponseHead) -> Meter:
    return meter_for(
        Operation.CHAT,
        status=head.status,
        content_type=head.get("content-type"),
        content_encoding="",
        asked=ASKED,
        hidden=NOTHING_HIDDEN,
        max_event_bytes=1_000_000,
    )


@pytest.fixture
async def relay(tmp_path: Path) -> Relay:
    slot = SlotTable(tmp_path, slots=1).take(b"{}")
    assert slot is not None
    return Relay(make_meter, slot, WorkerStats(), client_stall_s=1.0)


def begin(relay: Relay, client: LooksIntoTheSlot, content_type: str) -> None:
    relay.on_head(ResponseHead(200, "OK", (("content-type", content_type),), Framing.CHUNKED, 0, True))
    relay.begin(cast(Client, client))


async def test_each_event_is_in_the_slot_before_the_client_has_it(relay: Relay, tmp_path: Path) -> None:
    """Content events as they come, and the final usage with its finish."""
    client = LooksIntoTheSlot(tmp_path)
    begin(relay, client, "text/event-stream")
    for event in answers.chat_stream("a", "b", output_tokens=7):
        relay.on_body(event, None)
    relay.close()
    assert [progress.content_events for _, progress in client.seen] == [0, 1, 2, 2, 2, 2]
    assert [progress.finished for _, progress in client.seen] == [False, False, False, True, True, True]
    usage_seen = client.seen[4][1].reading
    assert (usage_seen.basis, usage_seen.usage.output_tokens) == (Basis.REPORTED, 7)


async def test_a_plain_answer_is_whole_only_when_its_usage_is_in_the_slot(relay: Relay, tmp_path: Path) -> None:
    """Its last read waits for the end, however it was cut; nothing else does."""
    client = LooksIntoTheSlot(tmp_path)
    begin(relay, client, "application/json")
    body = answers.chat_json(output_tokens=3)
    relay.on_body(body[:50], None)
    relay.on_body(body[50:], None)
    assert [payload for payload, _ in client.seen] == [body[:50]]
    relay.on_end()
    await relay.whole()
    relay.close()
    payload, progress = client.seen[-1]
    assert payload == body[50:]
    assert (progress.reading.basis, progress.reading.usage.output_tokens) == (Basis.REPORTED, 3)
    assert progress.done


async def test_an_idle_upstream_is_noticed_after_five_quarters_of_its_time(relay: Relay, tmp_path: Path) -> None:
    """Counted from the begin of the reply, and from each read anew."""
    relay.open(cast(UpstreamConnection, Connection()), b"", Times(first_byte_s=60, idle_s=60, total_s=60))
    begin(relay, LooksIntoTheSlot(tmp_path), "text/event-stream")
    for _ in range(4):
        relay.idle_tick(60)
    relay.on_body(b"data: {}\n\n", None)
    for _ in range(5):
        relay.idle_tick(60)
    assert not has_timed_out(relay)
    relay.idle_tick(60)
    assert has_timed_out(relay)
    relay.close()


async def test_an_upstream_that_says_nothing_after_its_head_is_idle_as_soon(relay: Relay, tmp_path: Path) -> None:
    """Five quarters, not six."""
    relay.open(cast(UpstreamConnection, Connection()), b"", Times(first_byte_s=60, idle_s=60, total_s=60))
    begin(relay, LooksIntoTheSlot(tmp_path), "text/event-stream")
    for _ in range(4):
        relay.idle_tick(60)
    assert not has_timed_out(relay)
    relay.idle_tick(60)
    assert has_timed_out(relay)
    relay.close()
