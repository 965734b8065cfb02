"""StreamMeter: an answer of Server-Sent Events, metered as it passes.

Invariants:
- what goes out is what came in, less what `Hidden` says; without anything to hide, every feed returns its argument;
- nothing is held back but one unfinished event, and only when something may have to be taken out of it;
- an event is counted before it is handed out: who is killed in between has not given tokens away;
- nothing after `[DONE]` is billed or changed;
- any cutting of the same bytes gives the same pieces, counts and faults.
"""

import re

import msgspec

from meter_proxy.metering import sse
from meter_proxy.metering.dialects import DIALECTS
from meter_proxy.metering.dialects.counts import Counts, Fault, read_timings, read_usage
from meter_proxy.metering.dialects.wire import Answer, Choice, read_answer
from meter_proxy.metering.injection import Hidden, without_usage
from meter_proxy.metering.request import Asked
from meter_proxy.metering.tally import Reading, Tally
from meter_proxy.metering.template import NO_TEMPLATE, Shape, Template, shape_of
from meter_proxy.usage import Operation

_DONE = b"[DONE]"
_MOST_PATIENT = 1024  # learning costs some 30 parsed events, and is wasted on a stream that never repeats itself


class StreamMeter:
    """Meters one stream. `feed` every read in order, `finish` at its end; `usage_so_far` at any moment."""

    def __init__(self, operation: Operation, *, asked: Asked, hidden: Hidden, max_event_bytes: int) -> None:
        self.content_events = 0
        self.done = False
        self.failed = False
        self.reads_at_end = False
        self.response_model: str | None = None
        self.bad_usage: list[str] = []
        self.sample = b""  # the JSON of the first event that has choices
        self._dialect = DIALECTS[operation]
        self._choices = asked.choices
        self._hidden = hidden
        self._hides = hidden.usage_event or hidden.running_usage
        self._max_event_bytes = max_event_bytes
        self._framer = sse.Framer(max_event_bytes)
        self._tally = Tally(self._dialect, asked.choices, asked.prompts, self.bad_usage)
        self._finished_choices: set[int] = set()
        self._closed = False
        self._saw_noise = False
        self._saw_answer = False
        self._between_events = False
        self._unread_usage: tuple[str, bytes, int] | None = None  # its name and bytes, and content events by then
        self._likely = NO_TEMPLATE
        self._other = NO_TEMPLATE  # a second one: reasoning and content, or two choices
        self._candidates: list[Shape] = []
        self._learned_at = 0  # content events
        self._unknown = 0  # plain content events parsed since then
        self._patience = 2  # that many of them make it worth while to learn (again)

    @property
    def finished(self) -> bool:
        """Every choice asked for has its finish reason."""
        return len(self._finished_choices) >= self._choices

    @property
    def open_choices(self) -> list[int]:
        """The choices asked for that have no finish reason yet."""
        return [index for index in range(self._choices) if index not in self._finished_choices]

    @property
    def has_usage(self) -> bool:
        """The answer has said counts so far."""
        return self._unread_usage is not None or self._tally.has_usage

    def feed(self, data: bytes) -> bytes:
        """What the client gets now for what the upstream sent; cut anywhere. `data` itself if nothing changes."""
        # One event in one read, plain content, known by its bytes: nearly all of a stream, so it stands here first.
        likely = self._likely
        if self._between_events and data.startswith(likely.prefix) and len(data) <= self._max_event_bytes:
            event = likely.fullmatch(data, likely.prefix_bytes)
            if event is not None:
                if event.lastindex is None:
                    self.content_events += 1
                    return data
                kept = self._count_known(event, 0)
                return kept if self._hidden.running_usage else data
        return data if self.done else self._feed(data)

    def finish(self) -> bytes:
        """The stream ended: what is still held, an event without its blank line. It counts if it is whole.

        A usage event to be taken out is taken out here too; anything else goes out as it came.
        """
        if self._closed:
            return b""
        self._closed = True
        self._read_usage()
        rest = b"" if self.done else self._framer.rest()
        text = rest.rstrip(b"\r\n")
        kept = self._meter(rest, text) if text else rest
        if self._saw_noise and not (self._saw_answer or self.done):
            self.bad_usage.append(Fault.UNREADABLE)
        elif self.done or self.finished:
            self._tally.close(content_events=self.content_events, generated=self.content_events > 0)
        return kept if self._hides else b""

    def usage_so_far(self) -> Reading:
        """The usage of everything fed so far, and how we know."""
        self._read_usage()
        return self._tally.reading(content_events=self.content_events, ended=self.done)

    def _feed(self, data: bytes) -> bytes:
        out: list[bytes] = []
        known_bytes = self._feed_known(data, out) if self._between_events else 0
        kept = b""
        pieces = self._framer.push(data[known_bytes:])
        for raw, text in pieces:
            kept = raw if text is None or self.done else self._meter(raw, text)
            out.append(kept)
        self._between_events = self._framer.is_between_events and not self.done
        if not self._hides:
            return data
        if self.done:
            out.append(self._framer.rest())
        elif pieces and not kept:
            self._framer.drop_rest_of_line_end()
        now = b"".join(out)
        return data if now == data else now

    def _feed_known(self, data: bytes, out: list[bytes]) -> int:
        """Count the known events that a read starts with; returns where the first that is not known starts."""
        start = 0
        while (event := self._find_known(data, start)) is not None:
            out.append(self._count_known(event, start))
            start = event.end()
        return start

    def _find_known(self, data: bytes, start: int) -> re.Match[bytes] | None:
        event = self._likely.find(data, start)
        if event is None:
            event = self._other.find(data, start)
            if event is None:
                return None
            self._likely, self._other = self._other, self._likely
        return event if event.end() - start <= self._max_event_bytes else None

    def _count_known(self, event: re.Match[bytes], start: int) -> bytes:
        """Count an event that `_likely` found; returns what of its bytes the client gets."""
        self.content_events += 1
        name = self._likely.usage_name
        if name is not None:
            self._unread_usage = (name, event["usage"], self.content_events)
            if name == "usage" and self._hidden.running_usage:
                cut_start, cut_end = event.span("member")
                return event.string[start:cut_start] + event.string[cut_end : event.end()]
        return event.string[start : event.end()] if self._hides else b""

    def _meter(self, raw: bytes, text: bytes) -> bytes:
        """Count one event; returns what of its bytes the client gets."""
        event = self._find_known(raw, 0)
        if event is not None and event.end() == len(raw):
            return self._count_known(event, 0)
        answer = self._read(raw, text)
        if answer is None or not self._hides or not isinstance(answer.usage, dict):
            return raw
        if answer.choices:
            return without_usage(text) + raw[len(text) :] if self._hidden.running_usage else raw
        if answer.choices is not None and self._hidden.usage_event:
            return b""
        return raw

    def _read(self, raw: bytes, text: bytes) -> Answer | None:
        """Count one event by parsing it; None if there is nothing to read in it."""
        self._read_usage()
        if text == sse.TOO_BIG:
            self.content_events += 1
            if Fault.EVENT_TOO_BIG not in self.bad_usage:
                self.bad_usage.append(Fault.EVENT_TOO_BIG)
            return None
        name, payload = sse.parse(text)
        payload = payload.strip(b" \t")
        if payload == _DONE:
            self.done = True
            return None
        answer = read_answer(payload) if payload else None
        if name == b"error" or (answer is not None and answer.is_error):
            self.failed = True
        if answer is None:
            self._saw_noise = self._saw_noise or bool(payload)  # comments are no noise
        else:
            self._saw_answer = True
            if not self.sample and answer.choices:
                self.sample = payload
            self._count(answer, raw, text)
        return answer

    def _count(self, answer: Answer, raw: bytes, text: bytes) -> None:
        self.response_model = self.response_model or answer.model or None
        has_content = False
        has_usage = answer.usage is not None or answer.timings is not None or answer.x_groq is not None
        for place, choice in enumerate(answer.choices or ()):
            has_content = has_content or self._has_content(choice)
            has_usage = has_usage or choice.usage is not None or choice.token_ids is not None
            if choice.finish_reason:
                self._finished_choices.add(place if choice.index is None else choice.index)
                self.failed = self.failed or choice.finish_reason == "error"
        self.content_events += has_content
        if has_usage:
            finished, content_events = self.finished, self.content_events
            self._tally.note(answer, content_events=content_events, has_content=has_content, finished=finished)
        if has_content and sse.is_single_line(text) and _is_plain(answer):
            self._learn(answer, raw, len(text))

    def _read_usage(self) -> None:
        """Take the usage of the last known event that had one: read only when somebody asks, or more comes."""
        if self._unread_usage is None:
            return
        name, usage, content_events = self._unread_usage
        self._unread_usage = None
        answer = Answer(choices=[Choice()], **{name: msgspec.json.decode(usage)})
        self._tally.note(answer, content_events=content_events, has_content=True, finished=self.finished)

    def _has_content(self, choice: Choice) -> bool:
        if choice.delta is None and choice.message is not None and self.content_events:
            return False  # the whole message once more, at the end (MiniMax)
        return self._dialect.has_content(choice)

    def _learn(self, answer: Answer, raw: bytes, text_bytes: int) -> None:
        """Know the next events like this one by their bytes; tried ever less often where no two are alike.

        A template is made when a shape is seen again within three events (two choices may take turns): one for each
        event that differs would cost more than it saves.
        """
        self._unknown += 1
        if not self._candidates and self._unknown < self._patience:
            return
        usage_name = _running_usage_name(answer)
        shape = None
        if usage_name is None or self._choices == 1:
            shape = shape_of(raw, text_bytes, self._dialect.spoken_at, usage_name)
        if shape is not None and shape in self._candidates:
            self._likely, self._other = Template(shape), self._likely
        elif shape is not None and len(self._candidates) < 2:
            self._candidates.append(shape)
            return
        known = self.content_events - self._learned_at - self._unknown
        self._patience = 1 if known > self._unknown else min(2 * self._patience, _MOST_PATIENT)
        self._candidates.clear()
        self._learned_at = self.content_events
        self._unknown = 0


def _is_plain(answer: Answer) -> bool:
    """One choice and its text; but for a running usage nothing that a meter must read."""
    if answer.choices is None or len(answer.choices) != 1:
        return False
    choice = answer.choices[0]
    return (
        choice.finish_reason in (None, "")
        and choice.message is None
        and choice.usage is None
        and choice.token_ids is None
        and answer.error is None
        and answer.x_groq is None
        and answer.base_resp is None
        and (answer.usage is None or _counts(read_usage(answer.usage)))
        and (answer.timings is None or (answer.usage is None and _counts(read_timings(answer.timings))))
    )


def _counts(counts: Counts | Fault) -> bool:
    return isinstance(counts, Counts) and not counts.is_zero


def _running_usage_name(answer: Answer) -> str | None:
    if answer.usage is not None:
        return "usage"
    return "timings" if answer.timings is not None else None
