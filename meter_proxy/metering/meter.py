"""The right meter for an answer, and what all meters have in common."""

from typing import Protocol

from meter_proxy.metering.body import BodyMeter, NullMeter
from meter_proxy.metering.coded import CodedMeter
from meter_proxy.metering.injection import NOTHING_HIDDEN, Hidden
from meter_proxy.metering.request import Asked
from meter_proxy.metering.sniff import SniffingMeter
from meter_proxy.metering.stream import StreamMeter
from meter_proxy.metering.tally import Reading
from meter_proxy.usage import Operation

__all__ = ["BodyMeter", "CodedMeter", "Meter", "NullMeter", "Reading", "StreamMeter", "meter_for"]

_EVENTS = "text/event-stream"


class Meter(Protocol):
    """Bytes pass through, and the usage in them can be read at any moment. Never raises because of the bytes."""

    def feed(self, data: bytes) -> bytes:
        """What the client gets now for what the upstream sent; cut anywhere. `data` itself if nothing changes."""

    def finish(self) -> bytes:
        """The upstream's answer ended: what is still to be handed out. Idempotent."""

    def usage_so_far(self) -> Reading:
        """The usage of everything fed so far, and how we know."""

    @property
    def content_events(self) -> int:
        """Events that held generated text; an event of several choices is one."""

    @property
    def finished(self) -> bool:
        """Every choice asked for has its finish reason."""

    @property
    def done(self) -> bool:
        """The answer is complete: `[DONE]` was seen, or the body is whole (known after `finish`)."""

    @property
    def failed(self) -> bool:
        """An error stands in the answer."""

    @property
    def has_usage(self) -> bool:
        """Counts have been seen; before that a reading is just the number of content events."""

    @property
    def told_at(self) -> int:
        """Where this is `content_events`, of the reading that was last asked for only the output has changed."""

    @property
    def told_output(self) -> int:
        """... and is this."""

    @property
    def reads_at_end(self) -> bool:
        """The answer is understood at its end only (`finish`), not as it comes."""

    @property
    def response_model(self) -> str | None:
        """The model that the answer names."""

    @property
    def bad_usage(self) -> list[str]:
        """What was odd about the usage: values of `Fault`, each once."""


def meter_for(
    operation: Operation,
    *,
    status: int,
    content_type: str,
    content_encoding: str,
    asked: Asked,
    hidden: Hidden,
    max_event_bytes: int,
) -> Meter:
    """The meter for what came, not for what was asked: some answer a stream with JSON, and the other way round.

    `content_type` and `content_encoding` are the header values, empty if absent. Error statuses bill nothing. A coded
    answer is metered in a decoded copy, and nothing is taken out of it.
    """
    if not 200 <= status < 300:
        return NullMeter()
    coding = content_encoding.strip().lower() if content_encoding else ""
    if coding in ("", "identity"):
        return _plain_meter(operation, content_type, asked, hidden, max_event_bytes)
    return CodedMeter(_plain_meter(operation, content_type, asked, NOTHING_HIDDEN, max_event_bytes), coding)


def stream_of(meter: Meter | None) -> StreamMeter | None:
    """The meter of the events that the client gets; None where it gets no events, or not as they are metered."""
    if isinstance(meter, SniffingMeter):
        return meter.stream
    return meter if isinstance(meter, StreamMeter) else None


def _plain_meter(
    operation: Operation, content_type: str, asked: Asked, hidden: Hidden, max_event_bytes: int
) -> StreamMeter | SniffingMeter:
    is_stream = content_type == _EVENTS or content_type.partition(";")[0].strip().lower() == _EVENTS
    kind = StreamMeter if is_stream else SniffingMeter
    return kind(operation, asked=asked, hidden=hidden, max_event_bytes=max_event_bytes)
