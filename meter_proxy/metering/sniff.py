"""An answer whose content type does not say that it is a stream: its first byte does.

JSON starts with a brace or a bracket; a stream of events with a comment or one of the four fields; keep-alive blank
lines may stand before either (DeepSeek). What is neither is read as a body, and found unreadable.
"""

from meter_proxy.metering.body import BodyMeter
from meter_proxy.metering.injection import Hidden
from meter_proxy.metering.request import Asked
from meter_proxy.metering.stream import StreamMeter
from meter_proxy.metering.tally import Reading
from meter_proxy.usage import Operation

_BLANKS = b" \t\r\n\xef\xbb\xbf"  # with the bytes of a BOM
_STREAM_STARTS = b":deir"  # a comment, data, event, id, retry


class SniffingMeter(BodyMeter):
    """Meters what the first byte says; holds nothing until then.

    Itself it is the meter of a body, as most such answers are one. What it says of a stream it takes over from the
    stream's own meter at each feed.
    """

    __slots__ = ("_decided", "_hidden", "_max_event_bytes", "stream")

    def __init__(self, operation: Operation, *, asked: Asked, hidden: Hidden, max_event_bytes: int) -> None:
        super().__init__(operation, asked=asked)
        self.reads_at_end = False  # until it is known to be a body
        self.stream: StreamMeter | None = None  # the meter inside, if the answer is a stream
        self._hidden = hidden
        self._max_event_bytes = max_event_bytes
        self._decided = False

    def feed(self, data: bytes) -> bytes:
        """What the client gets now; blank lines in front pass at once."""
        if self.stream is not None:
            return self._feed_stream(self.stream, data)
        if self._decided:
            return super().feed(data)
        told = data if data.startswith(b"{") else data.lstrip(_BLANKS)
        if not told:
            return data
        self._decided = True
        if told[0] not in _STREAM_STARTS:
            self.reads_at_end = True
            super().feed(told)
            return data
        self.stream = StreamMeter(
            self._operation, asked=self._asked, hidden=self._hidden, max_event_bytes=self._max_event_bytes
        )
        self.bad_usage = self.stream.bad_usage
        kept = self._feed_stream(self.stream, told)
        return data if kept == told else data[: len(data) - len(told)] + kept

    def finish(self) -> bytes:
        """What is still held."""
        if self.stream is None:
            return super().finish()
        rest = self.stream.finish()
        self._follow(self.stream)
        return rest

    def usage_so_far(self) -> Reading:
        """The usage of everything fed so far, and how we know."""
        return self._reading if self.stream is None else self.stream.usage_so_far()

    def _feed_stream(self, stream: StreamMeter, data: bytes) -> bytes:
        kept = stream.feed(data)
        self._follow(stream)
        return kept

    def _follow(self, stream: StreamMeter) -> None:
        self.content_events = stream.content_events
        self.finished = stream.finished
        self.done = stream.done
        self.failed = stream.failed
        self.has_usage = stream.has_usage
        self.response_model = stream.response_model
