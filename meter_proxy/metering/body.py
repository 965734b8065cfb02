"""BodyMeter: an answer that is one JSON document, metered when it is whole. NullMeter: one that bills nothing."""

from meter_proxy.metering.dialects import DIALECTS
from meter_proxy.metering.dialects.counts import Fault
from meter_proxy.metering.dialects.wire import read_answer
from meter_proxy.metering.request import Asked
from meter_proxy.metering.tally import NOTHING, Reading, Tally
from meter_proxy.usage import Operation

MAX_BODY_BYTES = 64 * 1024 * 1024  # 1,000 embeddings of 3,072 floats, printed, are about 60 MiB


class BodyMeter:
    """Forwards a body as it comes, and reads a copy of it at `finish`: before that nothing is known.

    Generated text without a usable usage counts as one content event. An error in a 200 bills nothing.
    """

    told_at, told_output = -1, 0  # never: each usage is read

    __slots__ = (
        "_asked",
        "_closed",
        "_operation",
        "_parts",
        "_reading",
        "_size_bytes",
        "bad_usage",
        "content_events",
        "done",
        "failed",
        "finished",
        "has_usage",
        "reads_at_end",
        "response_model",
    )

    def __init__(self, operation: Operation, *, asked: Asked) -> None:
        self.content_events = 0
        self.finished = False
        self.done = False
        self.failed = False
        self.has_usage = False  # the body, once read, has said counts
        self.reads_at_end = True
        self.response_model: str | None = None
        self.bad_usage: list[str] = []
        self._operation = operation
        self._asked = asked
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self._closed = False
        self._reading = NOTHING

    def feed(self, data: bytes) -> bytes:
        """`data` itself."""
        self._size_bytes += len(data)
        if self._size_bytes <= MAX_BODY_BYTES:
            self._parts.append(data)
        else:
            self._parts.clear()
        return data

    def finish(self) -> bytes:
        """The upstream ended the body: read it. Nothing was held."""
        if self._closed:
            return b""
        self._closed = True
        if self._size_bytes > MAX_BODY_BYTES:
            self.bad_usage.append(Fault.BODY_TOO_BIG)
            return b""
        body = b"".join(self._parts)
        self._parts.clear()
        self._read(body)
        return b""

    def usage_so_far(self) -> Reading:
        """The usage in the body; nothing before `finish`."""
        return self._reading

    def _read(self, body: bytes) -> None:
        answer = read_answer(body)
        if answer is None:
            if body.strip():
                self.bad_usage.append(Fault.UNREADABLE)
            return
        self.done = True
        self.response_model = answer.model or None
        self.failed = bool(answer.error or answer.base_resp) and answer.is_error
        self.finished = not self.failed
        if self.failed:
            return
        asked, dialect = self._asked, DIALECTS[self._operation]
        has_content = False
        for choice in answer.choices or ():
            has_content = has_content or dialect.has_content(choice)
        content_events = self.content_events = int(has_content)
        tally = Tally(dialect, asked.choices, asked.prompts, self.bad_usage)
        tally.note(answer, content_events=content_events, has_content=has_content, finished=True)
        tally.close(content_events=content_events, generated=has_content or answer.has_embeddings)
        self.has_usage = tally.has_usage
        self._reading = tally.reading(content_events=content_events, ended=True)


class NullMeter:
    """An answer that bills nothing: an error status. Forwards everything."""

    told_at, told_output = -1, 0  # never: each usage is read

    def __init__(self) -> None:
        self.content_events = 0
        self.finished = False
        self.done = False
        self.failed = False  # the status says it all
        self.reads_at_end = False
        self.has_usage = False
        self.response_model: str | None = None
        self.bad_usage: list[str] = []

    def feed(self, data: bytes) -> bytes:
        """`data` itself."""
        return data

    def finish(self) -> bytes:
        """Nothing was held."""
        return b""

    def usage_so_far(self) -> Reading:
        """Nothing."""
        return NOTHING
