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
from meter_proxy.metering.dialects.counts import Counts, Fault, PlainUsage, read_timings, read_usage
from meter_proxy.metering.dialects.wire import Answer, Choice, read_answer, read_usage_object
from meter_proxy.metering.injection import Hidden, without_usage
from meter_proxy.metering.request import Asked
from meter_proxy.metering.tally import Reading, Tally
from meter_proxy.metering.template import NO_TEMPLATE, Kinds, Template, kinds_of
from meter_proxy.usage import Operation

_DONE = b"[DONE]"
_DONE_EVENT = b"data: [DONE]\n\n"


class StreamMeter:
    """Meters one stream. `feed` every read in order, `finish` at its end; `usage_so_far` at any moment."""

    # Slots, all set at once: in CPython 3.11 an attribute that is first set after `__init__`, over a default of the
    # class, costs 0.1 us and makes all others slower.
    __slots__ = (
        "_between_events",
        "_choices",
        "_closed",
        "_dialect",
        "_finished_choices",
        "_framer",
        "_has_begun",
        "_hidden",
        "_hides",
        "_kinds",
        "_likely",
        "_max_event_bytes",
        "_model",
        "_operation",
        "_other",
        "_parsed",
        "_read_others",
        "_read_rest",
        "_read_template",
        "_saw_answer",
        "_saw_noise",
        "_tally",
        "_unread_usage",
        "bad_usage",
        "content_events",
        "done",
        "failed",
        "finished",
        "has_usage",
        "reads_at_end",
        "response_model",
        "sample",
        "told_at",
        "told_output",
    )

    def __init__(self, operation: Operation, *, asked: Asked, hidden: Hidden, max_event_bytes: int) -> None:
        self.content_events = 0
        self.finished = False  # every choice asked for has its finish reason
        self.done = False
        self.failed = False
        self.has_usage = False  # the answer has said counts so far
        self.told_output = 0
        self.told_at = -1
        self.reads_at_end = False
        self.response_model: str | None = None
        self.bad_usage: list[str] = []
        self.sample = b""  # the JSON of the first event that has choices
        self._operation = operation
        self._dialect = DIALECTS[operation]
        self._model = asked.model
        self._choices = asked.choices
        self._hidden = hidden
        self._hides = hidden.usage_event or hidden.running_usage
        self._max_event_bytes = max_event_bytes
        self._framer: sse.Framer | None = None  # for what is not one line of data after another
        self._tally = Tally(self._dialect, asked.choices, asked.prompts, self.bad_usage)
        self._finished_choices: set[int] = set()
        self._closed = False
        self._saw_noise = False
        self._saw_answer = False
        self._between_events = True
        self._has_begun = False
        self._unread_usage: tuple[Template, re.Match[bytes], int] | None = None  # and content events by then
        # The counts in the last event of this template that was read, but for its output: where the next has the same,
        # its output is all that is new.
        self._read_template = NO_TEMPLATE
        self._read_others: object = None
        self._read_rest = 0
        self._likely = NO_TEMPLATE
        self._other = NO_TEMPLATE  # a second one: reasoning and content, or two choices
        self._kinds: Kinds | None = None  # what other streams have taught
        self._parsed = 0  # plain content events that no template told

    @property
    def open_choices(self) -> list[int]:
        """The choices asked for that have no finish reason yet."""
        return [index for index in range(self._choices) if index not in self._finished_choices]

    def feed(self, data: bytes) -> bytes:
        """What the client gets now for what the upstream sent; cut anywhere. `data` itself if nothing changes."""
        # One event in one read, plain content, known by its bytes: nearly all of a stream, so it stands here first.
        likely = self._likely
        if self._between_events and data.startswith(likely.prefix) and len(data) <= self._max_event_bytes:
            event = likely.fullmatch(data, likely.prefix_bytes)
            if event is not None:
                self.content_events += 1
                return data if event.lastindex is None else self._take_usage(event)
        if self.done:
            return data
        if (
            self._between_events
            and data.find(b"\n") == len(data) - 2 < self._max_event_bytes
            and data.startswith(b"data:")
            and data.endswith(b"\n")
            and b"\r" not in data
        ):
            self._has_begun = True
            return self._meter_line(data)
        return self._feed(data)

    def finish(self) -> bytes:
        """The stream ended: what is still held, an event without its blank line. It counts if it is whole.

        A usage event to be taken out is taken out here too; anything else goes out as it came.
        """
        if self._closed:
            return b""
        self._closed = True
        if self._unread_usage is not None:
            self._read_usage()
        kept = b""
        if self._framer is not None and not self.done:
            kept = rest = self._framer.rest()
            text = rest.rstrip(b"\r\n")
            if text:
                kept = self._meter(rest, text)
        if self._saw_noise and not (self._saw_answer or self.done):
            self.bad_usage.append(Fault.UNREADABLE)
        elif self.done or self.finished:
            self._tally.close(content_events=self.content_events, generated=self.content_events > 0)
        return kept if self._hides else b""

    def usage_so_far(self) -> Reading:
        """The usage of everything fed so far, and how we know."""
        unread = self._unread_usage
        if unread is not None:
            self._expect_the_like(*unread[:2], self._read_usage())
        return self._tally.reading(content_events=self.content_events, ended=self.done)

    def _feed(self, data: bytes) -> bytes:
        out: list[bytes] = []  # what the client gets, where something may have to be taken out
        start = self._feed_lines(data, out) if self._between_events else 0
        if self.done:
            out.append(data[start:])
        elif start < len(data):
            self._feed_rest(data[start:], out)
        if not self._hides:
            return data
        now = b"".join(out)
        return data if now == data else now

    def _feed_lines(self, data: bytes, out: list[bytes]) -> int:
        """Meter the events that a read starts with, up to the first that needs framing; returns where that starts.

        None does that is known by its bytes, or is one line of data and ends in two LF.
        """
        start = shown = 0  # `shown`: what is in front of it is in `out`, less what was taken out
        size, most_bytes = len(data), self._max_event_bytes
        cuts = self._hidden.running_usage
        has_cr: bool | None = None
        while start < size and not self.done:
            likely = self._likely
            prefix, prefix_bytes, match = likely.prefix, likely.prefix_bytes, likely.match
            while data.startswith(prefix, start):
                event = match(data, start + prefix_bytes)
                if event is None:
                    break
                stop = event.end()
                if stop - start > most_bytes:
                    break
                self.content_events += 1
                if event.lastindex is not None:
                    kept = self._take_usage(event, start)
                    if cuts:
                        out += (data[shown:start], kept)
                        shown = stop
                start = stop
            if start == size:
                break
            stop = data.find(b"\n", start) + 2
            if not (data.startswith(b"data:", start) and data.startswith(b"\n", stop - 1)) or stop - start > most_bytes:
                break
            if has_cr is None:
                has_cr = b"\r" in data
            if has_cr:
                break
            raw = data[start:stop]
            kept = self._meter_line(raw)
            if kept is not raw:
                out += (data[shown:start], kept)
                shown = stop
            start = stop
        out.append(data[shown:start])
        self._has_begun = self._has_begun or start > 0
        return start

    def _feed_rest(self, data: bytes, out: list[bytes]) -> None:
        """Meter what has to be framed first."""
        if self._framer is None:
            self._framer = sse.Framer(self._max_event_bytes, at_start=not self._has_begun)
        framer = self._framer
        kept = b""
        pieces = framer.push(data)
        for raw, text in pieces:
            kept = raw if text is None or self.done else self._meter(raw, text)
            out.append(kept)
        self._between_events = framer.is_between_events and not self.done
        if self.done:
            out.append(framer.rest())
        elif pieces and not kept:
            framer.drop_rest_of_line_end()

    def _take_usage(self, event: re.Match[bytes], start: int = 0) -> bytes:
        """Note the running usage of an event that `_likely` found; returns what of its bytes the client gets."""
        template = self._likely
        groups = template.counts
        self.has_usage = True
        if self._unread_usage is not None and self._unread_usage[0] is not template:
            self._read_usage()  # it may say what this one does not: how much of the input was cached
        self._unread_usage = (template, event, self.content_events)
        if template is self._read_template and groups and event.group(*groups.others) == self._read_others:
            output = int(event["output"])
            if not groups.has_total or int(event["total"]) == output + self._read_rest:
                self.told_output, self.told_at = output, self.content_events
        if template.usage_name != "usage" or not self._hidden.running_usage:
            return event.string[start : event.end()]
        cut_start, cut_end = event.span("member")
        return event.string[start:cut_start] + event.string[cut_end : event.end()]

    def _meter_line(self, raw: bytes) -> bytes:
        """Count an event of one line of data, LF, LF; returns what of it the client gets, `raw` itself if all."""
        if raw == _DONE_EVENT:
            self._end()
            return raw
        event = self._known(raw)
        if event is not None:
            self.content_events += 1
            return raw if event.lastindex is None else self._take_usage(event)
        answer = self._read(raw[5:-2].strip(b" \t"), raw, len(raw) - 2)
        return raw if answer is None or not self._hides else self._shown(answer, raw, raw[:-2])

    def _meter(self, raw: bytes, text: bytes) -> bytes:
        """Count any event; returns what of its bytes the client gets, `raw` itself if all."""
        if text == sse.TOO_BIG:
            if self._unread_usage is not None:
                self._read_usage()
            self.content_events += 1
            if Fault.EVENT_TOO_BIG not in self.bad_usage:
                self.bad_usage.append(Fault.EVENT_TOO_BIG)
            return raw
        event = None
        if len(raw) <= self._max_event_bytes:
            if raw.startswith(self._likely.prefix):
                event = self._likely.fullmatch(raw, self._likely.prefix_bytes)
            if event is None:
                event = self._known(raw)
        if event is not None:
            self.content_events += 1
            return raw if event.lastindex is None else self._take_usage(event)
        name, payload = sse.parse(text)
        answer = self._read(payload.strip(b" \t"), raw, len(text) if sse.is_single_line(text) else None)
        if name == b"error" and not self.done:
            self.failed = True
        return raw if answer is None or not self._hides else self._shown(answer, raw, text)

    def _shown(self, answer: Answer, raw: bytes, text: bytes) -> bytes:
        """What of an event's bytes the client gets, `raw` itself if all."""
        if not isinstance(answer.usage, PlainUsage | dict):
            return raw
        if answer.choices:
            return without_usage(text) + raw[len(text) :] if self._hidden.running_usage else raw
        return b"" if answer.choices is not None and self._hidden.usage_event else raw

    def _known(self, raw: bytes) -> re.Match[bytes] | None:
        """The match of a plain content event of a kind that is known but not likely; from now on it is."""
        likely, other = self._likely, self._other
        if raw.startswith(other.prefix):
            event = other.fullmatch(raw, other.prefix_bytes)
            if event is not None:
                self._likely, self._other = other, likely
                return event
        kinds = self._kinds
        if kinds is None:
            kinds = self._kinds = kinds_of(self._operation, self._model, self._choices == 1)
        found = kinds.find(raw)
        if found is None:
            return None
        template, event = found
        self._likely, self._other = template, likely
        self._saw_answer = True
        self.sample = self.sample or raw[5:].strip()
        self.response_model = self.response_model or template.model
        return event

    def _read(self, payload: bytes, raw: bytes, line_bytes: int | None) -> Answer | None:
        """Count one event by parsing it; None if there is nothing to read in it.

        `line_bytes` None: it is more than a line of data.
        """
        if self._unread_usage is not None:
            self._read_usage()
        if payload == _DONE:
            self._end()
            return None
        answer = read_answer(payload) if payload else None
        if answer is None:
            self._saw_noise = self._saw_noise or bool(payload)  # comments are no noise
            return None
        self._saw_answer = True
        if (answer.error or answer.base_resp) and answer.is_error:
            self.failed = True
        if not self.sample and answer.choices:
            self.sample = payload
        self._count(answer, raw, line_bytes)
        return answer

    def _end(self) -> None:
        self.done = True
        self._between_events = False

    def _count(self, answer: Answer, raw: bytes, line_bytes: int | None) -> None:
        if self.response_model is None:
            self.response_model = answer.model or None
        has_content = False
        has_usage = answer.usage is not None or answer.timings is not None or answer.x_groq is not None
        for place, choice in enumerate(answer.choices or ()):
            if not has_content and (choice.message is None or self._is_first_message(choice)):
                has_content = self._dialect.has_content(choice)
            has_usage = has_usage or choice.usage is not None or choice.token_ids is not None
            if choice.finish_reason:
                self._finished_choices.add(place if choice.index is None else choice.index)
                self.finished = len(self._finished_choices) >= self._choices
                self.failed = self.failed or choice.finish_reason == "error"
        self.content_events += has_content
        if has_usage:
            self.told_at, self._read_template = -1, NO_TEMPLATE
            self._tally.note(
                answer, content_events=self.content_events, has_content=has_content, finished=self.finished
            )
            self.has_usage = self._tally.has_usage
        if has_content and line_bytes is not None and _is_plain(answer):
            self._learn(answer, raw, line_bytes)

    def _read_usage(self) -> Counts | None:
        """Take the usage of the last known event that had one: read only when somebody asks, or more comes."""
        if self._unread_usage is None:
            return None
        template, event, content_events = self._unread_usage
        self._unread_usage, self._read_template = None, NO_TEMPLATE
        usage, is_usage = event["usage"], template.usage_name == "usage"
        counts = read_usage(read_usage_object(usage)) if is_usage else read_timings(msgspec.json.decode(usage))
        if not isinstance(counts, Counts):  # never: it was told by the bytes of one that is
            return None
        self._tally.note_running(counts, content_events=content_events, finished=self.finished)
        return counts

    def _expect_the_like(self, template: Template, event: re.Match[bytes], counts: Counts | None) -> None:
        """Somebody knows these counts of that event: let `told_output` say where the output alone has changed."""
        groups = template.counts
        if groups is None or counts is None or counts.hidden_output_tokens or counts.reasoning_tokens:
            return  # what is added to the output, or may be no more than it
        output = int(event["output"])
        if counts.output_tokens != output:
            return
        self._read_template, self._read_others = template, event.group(*groups.others)
        self._read_rest = int(event["total"]) - output if groups.has_total else 0

    def _is_first_message(self, choice: Choice) -> bool:
        """It is not the whole message once more, at the end (MiniMax)."""
        return choice.delta is not None or not self.content_events

    def _learn(self, answer: Answer, raw: bytes, text_bytes: int) -> None:
        """Know the next events like this one by their bytes."""
        usage_name = _running_usage_name(answer)
        if self._kinds is None or (usage_name is not None and self._choices > 1):
            return
        self._parsed += 1
        was_worth_it = self.content_events > 2 * self._parsed
        template = self._kinds.learn(raw, text_bytes, usage_name, was_worth_it=was_worth_it)
        if template is not None:
            self._likely, self._other = template, self._likely


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
