"""AroundMeter: what the meters that stand around another one have in common."""

from meter_proxy.metering.body import BodyMeter, NullMeter
from meter_proxy.metering.stream import StreamMeter
from meter_proxy.metering.tally import Reading


class AroundMeter:
    """Says of an answer what the meter inside says; `_inner` may be replaced until the first byte decides."""

    told_at, told_output = -1, 0  # never: each usage is read

    def __init__(self, inner: "StreamMeter | BodyMeter | NullMeter | AroundMeter") -> None:
        self._inner = inner

    def feed(self, data: bytes) -> bytes:
        """What the client gets now."""
        return self._inner.feed(data)

    def finish(self) -> bytes:
        """What is still held."""
        return self._inner.finish()

    def usage_so_far(self) -> Reading:
        """The usage of everything fed so far, and how we know."""
        return self._inner.usage_so_far()

    @property
    def content_events(self) -> int:
        return self._inner.content_events

    @property
    def finished(self) -> bool:
        return self._inner.finished

    @property
    def done(self) -> bool:
        return self._inner.done

    @property
    def failed(self) -> bool:
        return self._inner.failed

    @property
    def has_usage(self) -> bool:
        return self._inner.has_usage

    @property
    def reads_at_end(self) -> bool:
        return self._inner.reads_at_end

    @property
    def response_model(self) -> str | None:
        return self._inner.response_model

    @property
    def bad_usage(self) -> list[str]:
        return self._inner.bad_usage
