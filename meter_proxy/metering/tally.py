"""Everything an answer said about its tokens, as one Reading that is right at any moment.

Three kinds of evidence, the best wins: the usage an answer ends with (REPORTED), the latest running count of a
stream (RUNNING), one token per content event (COUNTED). The last usage that is no placeholder wins, never a sum,
except where several choices are counted separately:

- llama.cpp sends one usage-only event per choice: their outputs are summed, and trusted once every choice finished;
- running counts of vLLM, SGLang, TensorRT-LLM and llama.cpp are per choice. Other servers count all choices in one.
  Which it is shows as soon as a content event of another choice does not raise the count; until then the last wins.

A running count that is older than the last content event is continued with one per content event since, so that
a reading never falls below what the wire shows. One of 0 after a content event is not counting, and not believed.
"""

from collections.abc import Iterator
from enum import Enum
from typing import Any

import msgspec

from meter_proxy.metering.dialects import Dialect
from meter_proxy.metering.dialects.counts import Counts, Fault, final_usage, read_timings, read_usage, running_usage
from meter_proxy.metering.dialects.wire import Answer
from meter_proxy.usage import NO_USAGE, Basis, Usage

# To look up a member of an enum takes 0.2 us (CPython 3.11): once will do.
_REPORTED, _RUNNING_COUNT, _COUNTED, _NONE = Basis.REPORTED, Basis.RUNNING, Basis.COUNTED, Basis.NONE


class Reading(msgspec.Struct, frozen=True, gc=False):
    """Usage so far, and how we know. `output_tokens` is an int unless the basis is NONE.

    `basis` (of the output) is REPORTED, RUNNING, COUNTED or NONE; `input_basis` is REPORTED or RUNNING, or None
    when the input is not on the wire.
    """

    usage: Usage
    basis: Basis
    input_basis: Basis | None


NOTHING = Reading(NO_USAGE, _NONE, None)


class _Trust(Enum):
    """How far the output of the latest counts can be trusted."""

    FINAL = "final"
    RUNNING = "running"
    PARTIAL = "partial"  # one choice of several: its input only


_FINAL, _RUNNING, _PARTIAL = _Trust


class Tally:
    """Collects the counts of one answer. `choices` is what was asked for: n x `prompts`.

    Odd usages are appended to `faults`, each reason once.
    """

    __slots__ = (
        "_by_choice",
        "_choices",
        "_choices_per_prompt",
        "_content_at_latest",
        "_counts_each_choice",
        "_dialect",
        "_faults",
        "_final",
        "_latest",
        "_previous_choice",
        "_reading",
        "_reading_of",
        "_saw_zero",
        "_token_ids",
        "_trust",
        "_usage_only",
        "_zero_is_final",
        "has_usage",
    )

    def __init__(self, dialect: Dialect, choices: int, prompts: int, faults: list[str]) -> None:
        self.has_usage = False  # counts have been seen: a reading says more than the number of content events
        self._dialect = dialect
        self._choices = choices
        self._choices_per_prompt = choices // prompts
        self._faults = faults
        self._latest: Counts | None = None
        self._trust = _RUNNING  # in the output of `_latest`
        self._content_at_latest = 0  # content events up to and with the one that carried it
        self._final: tuple[Usage, list[Fault]] | None = None  # what `_latest` is as a final usage, once somebody asked
        self._saw_zero = False
        self._zero_is_final = False
        self._token_ids = 0
        self._reading: Reading | None = None  # asked for again before anything has changed, and most are
        self._reading_of = (0, False)
        if choices > 1:
            self._usage_only: list[Counts] = []  # one each, at llama.cpp
            self._by_choice: dict[int, Counts] = {}
            self._previous_choice = -1
            self._counts_each_choice = False  # proven by the wire

    def note(self, answer: Answer, *, content_events: int, has_content: bool, finished: bool) -> None:
        """Take what one event (or a body) says. `content_events` and `finished` are as of after it."""
        counts = self._usage_in(answer)
        if counts is None:
            counts = self._token_ids_in(answer)
            if counts is not None:
                self._take(counts, _RUNNING, content_events)
            return
        usage_only = not answer.choices
        if not (counts.input_tokens or counts.output_tokens or counts.total_tokens):  # a placeholder: `is_zero`
            self._saw_zero = True
            self._zero_is_final = self._zero_is_final or usage_only or finished
            self._reading = None
            return
        trust = _FINAL if finished else _RUNNING
        if self._choices > 1:
            if usage_only:
                trust = _FINAL if finished else _PARTIAL
                self._usage_only.append(counts)
                counts = _sum(self._usage_only, one_prompt=self._choices_per_prompt > 1)
            else:
                counts = self._with_other_choices(answer, counts, has_content)
        elif usage_only:
            trust = _FINAL
        self._take(counts, trust, content_events)

    def note_running(self, counts: Counts, *, content_events: int, finished: bool) -> None:
        """Take the usable, not zero counts of a content event of the only choice."""
        self._take(counts, _FINAL if finished else _RUNNING, content_events)

    def _take(self, counts: Counts, trust: _Trust, content_events: int) -> None:
        latest = self._latest
        if latest is not None and counts.cached_input_tokens is None:
            counts = _with_cached_of(latest, counts)
        self._latest = counts
        self._final = self._reading = None
        self._trust = trust
        self._content_at_latest = content_events
        self.has_usage = True

    def reading(self, *, content_events: int, ended: bool) -> Reading:
        """Usage so far. `ended`: the answer is complete, so that its last usage is its final one.

        The same object as long as it says the same.
        """
        asked = content_events, ended
        if self._reading is None or self._reading_of != asked:
            self._reading, self._reading_of = self._read(content_events, ended), asked
        return self._reading

    def _read(self, content_events: int, ended: bool) -> Reading:
        latest = self._latest
        if latest is None:
            if self._zero_is_final and content_events == 0:
                return Reading(Usage(0, 0), _REPORTED, _REPORTED)
            return _counted(NO_USAGE, None, content_events)
        since = content_events - self._content_at_latest
        if since == 0 and (self._trust is _FINAL or (ended and not self._token_ids)):
            usage, _ = self._as_final(latest)
            basis = _REPORTED
        else:
            usage = running_usage(latest)
            basis = _RUNNING_COUNT
        input_basis = None if usage.input_tokens is None else basis
        output_tokens = usage.output_tokens
        if output_tokens is None:
            return _counted(usage, input_basis, content_events)
        if basis is _RUNNING_COUNT:
            if self._trust is _PARTIAL or (output_tokens == 0 and content_events):
                return _counted(usage, input_basis, content_events)
            if since:
                usage = msgspec.structs.replace(usage, output_tokens=output_tokens + since)
        return Reading(usage, basis, input_basis)

    def close(self, *, content_events: int, generated: bool) -> None:
        """Note what is odd about the usage of a complete answer; call once, at its end."""
        if self._latest is None:
            if generated and not self._faults:
                self._flag(Fault.PLACEHOLDER if self._saw_zero else Fault.MISSING)
            return
        usage, faults = self._as_final(self._latest)
        for fault in faults:
            self._flag(fault)
        if usage.output_tokens == 0 and content_events:
            self._flag(Fault.ZERO_OUTPUT)

    def _as_final(self, latest: Counts) -> tuple[Usage, list[Fault]]:
        if self._final is None:
            self._final = final_usage(latest, self._dialect.absent_output)
        return self._final

    def _usage_in(self, answer: Answer) -> Counts | None:
        """The counts of one event, from the best place that has usable ones."""
        if answer.usage is not None:  # nearly always the one, and usable
            counts = read_usage(answer.usage)
            if isinstance(counts, Counts):
                return counts
            self._flag(counts)
        for wire in _other_usages(answer):
            if wire is not None:
                counts = read_usage(wire)
                if isinstance(counts, Counts):
                    return counts
                self._flag(counts)
        if answer.timings is not None:
            counts = read_timings(answer.timings)
            if isinstance(counts, Counts):
                return counts
            self._flag(counts)
        return None

    def _token_ids_in(self, answer: Answer) -> Counts | None:
        """vLLM's `return_token_ids`: the tokens of this event, added to those before."""
        here = sum(len(choice.token_ids) for choice in answer.choices or () if choice.token_ids)
        if not here:
            return None
        self._token_ids += here
        return Counts(None, self._token_ids, None, None, None)

    def _with_other_choices(self, answer: Answer, counts: Counts, has_content: bool) -> Counts:
        """A running count of an event with choices: of its choice alone, or of all."""
        choices = answer.choices or []
        if len(choices) != 1:
            self._by_choice.clear()
            return counts
        index = choices[0].index or 0
        before = self._by_choice.get(self._previous_choice)
        if before is not None and index != self._previous_choice:
            growth = (counts.output_tokens or 0) - (before.output_tokens or 0)
            if growth < 0 or (growth == 0 and has_content):
                self._counts_each_choice = True
        self._by_choice[index] = counts
        self._previous_choice = index
        if not self._counts_each_choice:
            return counts
        of_prompt: dict[int, Counts] = {}
        for number, each in self._by_choice.items():
            prompt = number // self._choices_per_prompt
            of_prompt[prompt] = _sum([of_prompt[prompt], each], one_prompt=True) if prompt in of_prompt else each
        return _sum(list(of_prompt.values()), one_prompt=False)

    def _flag(self, fault: Fault) -> None:
        if fault not in self._faults:
            self._faults.append(fault)


def _counted(usage: Usage, input_basis: Basis | None, content_events: int) -> Reading:
    """One token per content event; what is known of the input stays."""
    known = Usage(usage.input_tokens, content_events, usage.cached_input_tokens)
    return Reading(known, _COUNTED if content_events else _NONE, input_basis)


def _other_usages(answer: Answer) -> Iterator[Any]:
    """The usages of one event beside its own, best first: Groq's, a choice's (Moonshot)."""
    if isinstance(answer.x_groq, dict):
        yield answer.x_groq.get("usage")
    for choice in answer.choices or ():
        yield choice.usage


def _with_cached_of(earlier: Counts, counts: Counts) -> Counts:
    """Some say only once how much of the input was cached (TensorRT-LLM); the same input stays cached."""
    if earlier.cached_input_tokens is None or earlier.input_tokens != counts.input_tokens:
        return counts
    return msgspec.structs.replace(counts, cached_input_tokens=earlier.cached_input_tokens)


def _sum(several: list[Counts], *, one_prompt: bool) -> Counts:
    """Counts of several choices as one; those of one prompt have their input in common."""
    if len(several) == 1:
        return several[0]
    join = max if one_prompt else sum
    inputs = [each.input_tokens for each in several if each.input_tokens is not None]
    cached = [each.cached_input_tokens for each in several if each.cached_input_tokens is not None]
    reasoning = [each.reasoning_tokens for each in several if each.reasoning_tokens is not None]
    return Counts(
        input_tokens=join(inputs) if inputs else None,
        output_tokens=sum((each.output_tokens or 0) + each.hidden_output_tokens for each in several),
        cached_input_tokens=join(cached) if cached else None,
        reasoning_tokens=sum(reasoning) if reasoning else None,
        total_tokens=None,
    )
