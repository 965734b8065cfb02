"""One usage object from the wire -> Counts, or the reason why it is none.

The rules are those of `tests/corpus/README.md`. Numbers from outside are not trusted: integers, and floats
with an integral value, within 0..2^53 (beyond it JSON numbers are not exact, and Redis' counters overflow at
2^63); never a bool, a string, NaN or a negative, which would credit somebody. One bad count and the whole
usage is unusable; a bad detail (cached, reasoning) is only left out.
"""

from enum import StrEnum
from typing import Annotated, Any

import msgspec

from meter_proxy.usage import Usage

MAX_COUNT = 2**53


class Fault(StrEnum):
    """Why a usage is odd: the `reason` of `meter_proxy_bad_usage_total`."""

    NOT_AN_OBJECT = "not_an_object"
    NO_COUNTS = "no_counts"  # {} or only nulls
    NOT_A_COUNT = "not_a_count"  # string, bool, NaN, fraction
    NEGATIVE = "negative"
    TOO_LARGE = "too_large"
    BAD_DETAIL = "bad_detail"  # cached or reasoning count unusable: left out
    PARTIAL = "partial"  # input or output is missing and cannot be derived
    TOTAL_TOO_SMALL = "total_too_small"  # less than its parts, which are trusted
    CACHED_OVER_INPUT = "cached_over_input"  # clamped
    REASONING_OVER_OUTPUT = "reasoning_over_output"  # clamped
    PLACEHOLDER = "placeholder"  # all counts 0 on an answer that generated text, and nothing better came
    ZERO_OUTPUT = "zero_output"  # an explicit 0 on an answer that generated text: billed as 0
    MISSING = "missing"  # the answer is complete, generated text, and has no usage
    UNREADABLE = "unreadable"  # a body that is no JSON object
    BODY_TOO_BIG = "body_too_big"
    EVENT_TOO_BIG = "event_too_big"
    BAD_CODING = "bad_coding"  # the content coding is broken, truncated or unknown


class Counts(msgspec.Struct, frozen=True, gc=False):
    """A usage object in our words, as the server counts; None: it does not say."""

    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    reasoning_tokens: int | None
    total_tokens: int | None
    bad_detail: bool = False

    @property
    def is_zero(self) -> bool:
        """All counts are 0 or not given: a placeholder, unless nothing was generated."""
        return not (self.input_tokens or self.output_tokens or self.total_tokens)

    @property
    def hidden_output_tokens(self) -> int:
        """What the total holds beyond input and output: xAI and Gemini leave reasoning out of the output."""
        if self.total_tokens is None or self.input_tokens is None or self.output_tokens is None:
            return 0
        return max(0, self.total_tokens - self.input_tokens - self.output_tokens)


_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class _InputDetails(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None


class _OutputDetails(msgspec.Struct, gc=False):
    reasoning_tokens: _Count | None = None


class PlainUsage(msgspec.Struct, gc=False):
    """A `usage` object all of whose counts are right by their type: the decoder judges that in passing."""

    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    total_tokens: _Count | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None
    cached_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None
    prompt_cache_hit_tokens: _Count | None = None


def read_usage(wire: Any) -> Counts | Fault:
    """A `usage` object: OpenAI's names, the Responses names, or both (then the one that is not 0 counts).

    A PlainUsage is what one whose counts are beyond doubt was decoded to.
    """
    if type(wire) is PlainUsage:
        return _read_plain(wire)
    if not isinstance(wire, dict):
        return Fault.NOT_AN_OBJECT
    try:
        input_tokens = _first_count(wire.get("prompt_tokens"), wire.get("input_tokens"))
        output_tokens = _first_count(wire.get("completion_tokens"), wire.get("output_tokens"))
        total_tokens = _first_count(wire.get("total_tokens"))
    except _Unusable as bad:
        return bad.fault
    if input_tokens is None and output_tokens is None and total_tokens is None:
        return Fault.NO_COUNTS
    bad_detail = False
    try:
        cached = _first_count(*_details(wire, _INPUT_DETAILS, "cached_tokens"), wire.get("prompt_cache_hit_tokens"))
    except _Unusable:
        cached, bad_detail = None, True
    try:
        reasoning = _first_count(*_details(wire, _OUTPUT_DETAILS, "reasoning_tokens"))
    except _Unusable:
        reasoning, bad_detail = None, True
    return Counts(input_tokens, output_tokens, cached, reasoning, total_tokens, bad_detail)


def _read_plain(wire: PlainUsage) -> Counts | Fault:
    """As `_first_count` does it."""
    input_tokens = wire.prompt_tokens or wire.input_tokens
    if input_tokens is None:
        input_tokens = wire.prompt_tokens
    output_tokens = wire.completion_tokens or wire.output_tokens
    if output_tokens is None:
        output_tokens = wire.completion_tokens
    if input_tokens is None and output_tokens is None and wire.total_tokens is None:
        return Fault.NO_COUNTS
    cached, reasoning = wire.cached_tokens, wire.reasoning_tokens
    for input_details in (wire.prompt_tokens_details, wire.input_tokens_details):
        if input_details is not None and input_details.cached_tokens is not None:
            cached = cached or input_details.cached_tokens
    if wire.prompt_cache_hit_tokens is not None:
        cached = cached or wire.prompt_cache_hit_tokens
    for output_details in (wire.completion_tokens_details, wire.output_tokens_details):
        if output_details is not None and output_details.reasoning_tokens is not None:
            reasoning = reasoning or output_details.reasoning_tokens
    return Counts(input_tokens, output_tokens, cached, reasoning, wire.total_tokens)


def read_timings(wire: Any) -> Counts | Fault:
    """llama.cpp's `timings`: `prompt_n` is only the part of the input that was not cached."""
    if not isinstance(wire, dict):
        return Fault.NOT_AN_OBJECT
    try:
        fresh, cached = _first_count(wire.get("prompt_n")), _first_count(wire.get("cache_n"))
        output_tokens = _first_count(wire.get("predicted_n"))
    except _Unusable as bad:
        return bad.fault
    if output_tokens is None:
        return Fault.NO_COUNTS
    input_tokens = None if fresh is None else fresh + (cached or 0)
    return Counts(input_tokens, output_tokens, cached, None, None)


def final_usage(counts: Counts, absent_output: int | None) -> tuple[Usage, list[Fault]]:
    """What an exchange that ended with these counts used, and what was odd about them.

    A total beyond its parts is output that the parts leave out (xAI, Gemini); one below them is not believed.
    A count that is missing is derived from the other two, else stays None.
    """
    faults = [Fault.BAD_DETAIL] if counts.bad_detail else []
    input_tokens, output_tokens, total_tokens = counts.input_tokens, counts.output_tokens, counts.total_tokens
    if input_tokens is not None and output_tokens is not None and total_tokens == input_tokens + output_tokens:
        return _clamped(input_tokens, output_tokens, counts, faults), faults
    if output_tokens is None and total_tokens is not None and input_tokens is not None:
        output_tokens = max(0, total_tokens - input_tokens)
    elif input_tokens is None and total_tokens is not None and output_tokens is not None:
        input_tokens = max(0, total_tokens - output_tokens)
    elif output_tokens is not None and total_tokens is not None:
        output_tokens += counts.hidden_output_tokens
    if output_tokens is None:
        output_tokens = absent_output
    if input_tokens is None or output_tokens is None:
        faults.append(Fault.PARTIAL)
    elif total_tokens is not None and total_tokens < input_tokens + output_tokens:
        faults.append(Fault.TOTAL_TOO_SMALL)
    return _clamped(input_tokens, output_tokens, counts, faults), faults


def running_usage(counts: Counts) -> Usage:
    """What these counts of an unfinished stream can be trusted with; an output of None: nothing.

    A total that its parts do not explain is trusted in a final usage only (Gemini's running totals jump).
    """
    output_tokens, hidden_tokens = counts.output_tokens, counts.hidden_output_tokens
    if output_tokens is not None and hidden_tokens:
        explained = hidden_tokens == counts.reasoning_tokens
        output_tokens = output_tokens + hidden_tokens if explained else None
    return _clamped(counts.input_tokens, output_tokens, counts, [])


def _clamped(input_tokens: int | None, output_tokens: int | None, counts: Counts, faults: list[Fault]) -> Usage:
    """A usage whose parts are no more than the whole; what was odd about that is added to `faults`."""
    cached, reasoning = counts.cached_input_tokens, counts.reasoning_tokens
    if cached is not None and input_tokens is not None and cached > input_tokens:
        cached = input_tokens
        faults.append(Fault.CACHED_OVER_INPUT)
    if reasoning is not None and output_tokens is not None and reasoning > output_tokens:
        reasoning = output_tokens
        faults.append(Fault.REASONING_OVER_OUTPUT)
    return Usage(input_tokens, output_tokens, cached, reasoning)


# Where servers put the two details: a details object of either style, or the usage itself (Moonshot and Together;
# SGLang). DeepSeek's prompt_cache_hit_tokens says the same once more.
_INPUT_DETAILS = ("prompt_tokens_details", "input_tokens_details")
_OUTPUT_DETAILS = ("completion_tokens_details", "output_tokens_details")


def _details(wire: dict[str, Any], places: tuple[str, ...], name: str) -> list[Any]:
    found = [wire.get(name)]
    for place in places:
        details = wire.get(place)
        if isinstance(details, dict):
            found.append(details.get(name))
    return found


class _Unusable(Exception):
    """A count that is none."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault


def _first_count(*values: Any) -> int | None:
    """The first count that is not 0, else 0 if one is given, else None (nulls and absent ones).

    new-api and others print both styles, one of them as 0.
    """
    found: int | None = None
    for value in values:
        if value is None:
            continue
        if type(value) is float and value.is_integer():  # Lua and JavaScript gateways print 16.0
            value = int(value)
        if type(value) is not int:
            raise _Unusable(Fault.NOT_A_COUNT)
        if value < 0:
            raise _Unusable(Fault.NEGATIVE)
        if value > MAX_COUNT:
            raise _Unusable(Fault.TOO_LARGE)
        found = found or value
    return found
