"""Ready scripts for a ScriptedUpstream: the good ones first, then those named after the harm they do.

Each is a callable that takes the UpstreamExchange. `events` are SSE events as in `answers`.
"""

import asyncio
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.support import answers
from tests.support.upstream import UpstreamExchange


@dataclass
class Streams:
    """A well-behaved stream; every event in a write of its own, or all in one when `in_one_write`."""

    events: Sequence[bytes]
    in_one_write: bool = False

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        if self.in_one_write:
            await exchange.send_event(*self.events)
        else:
            for event in self.events:
                await exchange.send_event(event)
        await exchange.end()


@dataclass
class StreamsWithoutLength:
    """A stream whose body ends with the connection, as HTTP/1.0 servers send it."""

    events: Sequence[bytes]

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.start(headers=[("Content-Type", "text/event-stream"), ("Connection", "close")])
        for event in self.events:
            await exchange.send(event)
        exchange.close()


@dataclass
class StreamsOnlyWhatIsAcknowledged:
    """Sends the next event only after the test acknowledged the last: a proxy that holds back hangs."""

    events: Sequence[bytes]
    acknowledged: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        for event in self.events:
            await exchange.send_event(event)
            await self.acknowledged.acquire()
        await exchange.end()


@dataclass
class Answers:
    """A whole plain answer."""

    body: bytes
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.answer(self.body, self.status, self.headers)


@dataclass
class CompressesUnasked:
    """gzip although the proxy asked for identity; flushed after each event."""

    events: Sequence[bytes]

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.start_stream(headers=[("Content-Encoding", "gzip")])
        coder = zlib.compressobj(wbits=31)
        for event in self.events:
            await exchange.send_event(coder.compress(event) + coder.flush(zlib.Z_SYNC_FLUSH))
        await exchange.send_event(coder.flush())
        await exchange.end()


@dataclass
class RefusesMember:
    """400 or 422 to a request whose `stream_options` holds `member`; otherwise streams `events`."""

    events: Sequence[bytes]
    member: str = "include_usage"
    status: int = 422

    async def __call__(self, exchange: UpstreamExchange) -> None:
        asked = json.loads(exchange.request.body)
        if self.member in asked.get("stream_options", {}):
            await exchange.answer(answers.error_json(f"Extra inputs are not permitted: {self.member}"), self.status)
        else:
            await Streams(self.events)(exchange)


class NeverAnswers:
    """Takes the request and says nothing until the proxy gives up."""

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.hung_up(within_s=60)


class HangsUpBeforeAnswer:
    """Closes the connection once it has the request."""

    async def __call__(self, exchange: UpstreamExchange) -> None:
        exchange.close()


@dataclass
class StallsAfter:
    """Sends these events, then nothing, until the proxy hangs up. `StallsBeforeUsage` in its common form."""

    events: Sequence[bytes]

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        for event in self.events:
            await exchange.send_event(event)
        await exchange.hung_up(within_s=60)


class StallsBeforeUsage(StallsAfter):
    """All the text and the finish of a stream arrive; its usage and [DONE] never do."""

    def __init__(self, *contents: str) -> None:
        super().__init__(answers.chat_stream(*contents)[:-2])


@dataclass
class HangsUpAfter:
    """Closes with FIN behind these events, without the end that chunked framing demands."""

    events: Sequence[bytes]

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        for event in self.events:
            await exchange.send_event(event)
        exchange.close()


class HangsUpAfterFirstEvent(HangsUpAfter):
    """One word, then FIN."""

    def __init__(self) -> None:
        super().__init__([answers.chat_event("Hello")])


@dataclass
class ResetsMidEvent:
    """Sends `events`, then half of `broken_event` once `proceed` allows it, then RST.

    A reset discards what the peer has not read yet: a test that wants the first part to count sets
    `proceed` when it has seen it.
    """

    events: Sequence[bytes]
    broken_event: bytes = field(default_factory=lambda: answers.chat_event("never whole"))
    proceed: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        for event in self.events:
            await exchange.send_event(event)
        await exchange.send_event(self.broken_event[: len(self.broken_event) // 2])
        await self.proceed.wait()
        exchange.reset()


@dataclass
class SendsByteByByte:
    """Every byte of the stream in an HTTP chunk and a write of its own."""

    events: Sequence[bytes]

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        for byte in b"".join(self.events):
            await exchange.send_event(bytes([byte]))
            await asyncio.sleep(0)  # lets the peer read what is there
        await exchange.end()


@dataclass
class FloodsUntilHungUp:
    """Sends `event` for ever, as fast as it is read. `UpstreamExchange.sent_bytes` tells how much that was."""

    event: bytes = field(default_factory=lambda: answers.chat_event("x" * 1000))

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.start_stream()
        while True:  # until a send raises PeerGone, or the peer's FIN is here
            await exchange.send_event(self.event)
            await asyncio.sleep(0)
            if exchange.peer_hung_up:
                return
