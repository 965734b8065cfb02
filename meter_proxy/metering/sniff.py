"""An answer whose content type does not say that it is a stream: its first byte does.

JSON starts with a brace or a bracket; a stream of events with a comment or one of the four fields; keep-alive blank
lines may stand before either (DeepSeek). What is neither is read as a body, and found unreadable.
"""

from collections.abc import Callable

from meter_proxy.metering.around import AroundMeter
from meter_proxy.metering.body import BodyMeter, NullMeter
from meter_proxy.metering.stream import StreamMeter

_BLANKS = b" \t\r\n\xef\xbb\xbf"  # with the bytes of a BOM
_STREAM_STARTS = b":deir"  # a comment, data, event, id, retry


class SniffingMeter(AroundMeter):
    """Becomes the meter for what the first byte says; holds nothing until then."""

    def __init__(self, stream_meter: Callable[[], StreamMeter], body_meter: Callable[[], BodyMeter]) -> None:
        super().__init__(NullMeter())
        self._stream_meter = stream_meter
        self._body_meter = body_meter
        self._decided = False

    @property
    def stream(self) -> StreamMeter | None:
        """The meter inside, if the answer is a stream."""
        return self._inner if isinstance(self._inner, StreamMeter) else None

    def feed(self, data: bytes) -> bytes:
        """What the client gets now; blank lines in front pass at once."""
        if self._decided:
            return self._inner.feed(data)
        told = data.lstrip(_BLANKS)
        if not told:
            return data
        self._decided = True
        self._inner = self._stream_meter() if told[0] in _STREAM_STARTS else self._body_meter()
        kept = self._inner.feed(told)
        return data if kept == told else data[: len(data) - len(told)] + kept
