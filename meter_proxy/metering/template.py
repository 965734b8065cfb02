"""Plain content events are known by their bytes, without parsing them.

A server prints the content events of one choice all alike but for the text, the stream's id and time, and, where it
counts as it goes, the numbers in its usage. So an event that was parsed and found to be plain content gives a Shape:
its bytes, with patterns in the places of what varies. Another event of these bytes around whole JSON strings and
numbers has the same structure, therefore is a content event too. This cannot be fooled: whatever stands in a string is
text, and what would end it early (a bare quote) or is no JSON string (a control character, a broken escape) does not
match and gets parsed. OpenAI's `obfuscation` is one more string that may vary.

Shapes outlive their stream (Kinds). Within one, id and time stay: its Template compares the bytes in front of the text
as they stand, and needs a pattern only from there on.

Measured by `python -m tests.bench.metering` (200-byte events, CPython 3.11): 0.7 us for a plain event, 1.6 us with its
running usage cut out; 4 us for the first of a stream, of a kind that is known; 4 us for one that must be parsed.
"""

import re
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from meter_proxy.metering import jsonbody
from meter_proxy.metering.dialects import DIALECTS, Path
from meter_proxy.usage import Operation

# The inside of a JSON string (RFC 8259, section 7). Possessive: it matches in one pass or not at all.
_STRING = rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})[^"\\\x00-\x1f]*+)*+'
_NOT_EMPTY = rb'(?!")'
# The numbers that may be others in the next usage. A 0 stays 0 and a count stays a count, so that a placeholder is
# never taken for a usage; 15 digits stay below 2^53; a fraction stays one, so that a count stays an integer.
_STRING_OR_NUMBER = re.compile(rb'"(?:[^"\\]|\\.)*+"|(?P<number>-?[0-9][0-9.eE+-]*+)')
_COUNT = rb"[1-9][0-9]{0,14}+"
_FRACTION = rb"(?:0|[1-9][0-9]*+)\.[0-9]++"
_IS_COUNT = re.compile(_COUNT).fullmatch
_IS_FRACTION = re.compile(_FRACTION).fullmatch
_ROLES = {
    b"completion_tokens": "output",
    b"output_tokens": "output",
    b"predicted_n": "output",
    b"total_tokens": "total",
}
_FIELD_BYTES = len(b"data:")
_LINE_ENDS = (b"\n\n", b"\r\n\r\n")


_MOST_KINDS = 4  # of one model: content, reasoning, arguments of a tool; another server behind the same name
_MOST_PATIENT = 1024  # learning costs some 30 parsed events, and is wasted on streams that never repeat themselves


class Shape(NamedTuple):
    """What the events of one kind have in common: a pattern up to the text, and one of all that follows.

    With a running usage, the second one's groups are `member`, the usage with its name and the comma before it,
    `usage`, its value, and the counts in it (`CountGroups`); `usage_name` is then "usage" or "timings". `model`: the
    one that all these events name.
    """

    front: bytes
    rest: bytes
    usage_name: str | None
    model: str | None
    counts: "CountGroups | None" = None


class CountGroups(NamedTuple):
    """The counts in a running usage, each a group: `output`, perhaps `total`, and all others, by their names here."""

    has_total: bool
    others: tuple[str, ...]  # at least one: the input


class Template:
    """Tells the events of one kind in one stream, in place."""

    __slots__ = ("counts", "fullmatch", "match", "model", "prefix", "prefix_bytes", "usage_name")

    def __init__(
        self,
        prefix: bytes,
        rest: re.Pattern[bytes],
        usage_name: str | None,
        model: str | None,
        counts: CountGroups | None = None,
    ) -> None:
        self.prefix = prefix
        self.prefix_bytes = len(prefix)
        self.usage_name = usage_name
        self.model = model
        self.counts = counts
        self.match = rest.match  # both from `prefix_bytes` after the event's start
        self.fullmatch = rest.fullmatch


NO_TEMPLATE = Template(b"\x00", re.compile(rb"\x00"), None, None)  # no event starts with a control character


class Kind:
    """Tells the events of one Shape in any stream."""

    def __init__(self, shape: Shape) -> None:
        self._usage_name, self._model, self._counts = shape.usage_name, shape.model, shape.counts
        self._front = _compiled(shape.front).match
        self._rest = _compiled(shape.rest)

    def find(self, raw: bytes) -> tuple[Template, re.Match[bytes]] | None:
        """How to tell more events of the stream that this event is of, and the match of this one by that template.

        None: it is of another kind.
        """
        front = self._front(raw)
        if front is None:
            return None
        event = self._rest.fullmatch(raw, front.end())
        if event is None:
            return None
        return Template(front[0], self._rest, self._usage_name, self._model, self._counts), event


@lru_cache(maxsize=512)
def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    """Compiling takes 1 ms, and the shapes of all models of a server have much in common."""
    return re.compile(pattern)


class Kinds:
    """The kinds of plain content events that the streams of one model have shown.

    A kind is made when a shape is seen again within three events that were looked at (two choices may take turns): one
    for each event that differs would cost more than it saves. Where no two are alike, ever fewer are looked at.
    """

    def __init__(self, spoken_at: tuple[Path, ...]) -> None:
        self._spoken_at = spoken_at
        self._known: list[Kind] = []  # the latest first
        self._candidates: list[Shape] = []
        self._parsed = 0  # plain content events since something was learned
        self._patience = 2  # that many of them make it worth while to learn (again)

    def find(self, raw: bytes) -> tuple[Template, re.Match[bytes]] | None:
        """How to tell more events like this one in its stream, and the match of this one; None: it must be parsed."""
        for kind in self._known:
            found = kind.find(raw)
            if found is not None:
                if kind is not self._known[0]:
                    self._known.remove(kind)
                    self._known.insert(0, kind)
                return found
        return None

    def learn(self, raw: bytes, text_bytes: int, usage_name: str | None, *, was_worth_it: bool) -> Template | None:
        """Look at an event that was parsed and is plain content, as in `shape_of`; the template, if this made a kind.

        `was_worth_it`: most of its stream was known by templates.
        """
        self._parsed += 1
        if not self._candidates and self._parsed < self._patience:
            return None
        shape = shape_of(raw, text_bytes, self._spoken_at, usage_name)
        template = None
        if shape is not None and shape in self._candidates:
            kind = Kind(shape)
            found = kind.find(raw)
            template = None if found is None else found[0]
            self._known = [kind, *self._known[: _MOST_KINDS - 1]]
        elif shape is not None and len(self._candidates) < 2:
            self._candidates.append(shape)
            return None
        self._patience = 1 if was_worth_it else min(2 * self._patience, _MOST_PATIENT)
        self._candidates.clear()
        self._parsed = 0
        return template


@lru_cache(maxsize=256)
def kinds_of(operation: Operation, model: str, one_choice: bool) -> Kinds:
    """What is known of the answers to calls of one kind.

    `one_choice`: only one was asked for. Running usages of several are not told by their bytes: each has to be read.
    """
    return Kinds(DIALECTS[operation].spoken_at)


def shape_of(raw: bytes, text_bytes: int, spoken_at: tuple[Path, ...], usage_name: str | None) -> Shape | None:
    """The shape of a plain content event of one choice, or None if it cannot be told.

    `raw` is the event with its blank line: one `data` line of `text_bytes`. `spoken_at` says where text may stand in a
    choice; `usage_name` names the member that counts as it goes, if one does.
    """
    line_end = raw[text_bytes:]
    payload = raw[_FIELD_BYTES:text_bytes]
    if line_end not in _LINE_ENDS:
        return None
    try:
        answer = msgspec.json.decode(payload)
        text = _text_slot(payload, answer, spoken_at)
        slots = _slots(payload, text, usage_name) if text is not None else []
    except (msgspec.MsgspecError, ValueError, LookupError, TypeError, RecursionError):
        return None
    if text is None or (usage_name is not None and not any(slot.is_usage for slot in slots)):
        return None
    front = re.escape(raw[:_FIELD_BYTES])
    rest = b""
    counts = next((slot.counts for slot in slots if slot.is_usage), None)
    position = 0
    for slot in slots:
        between = re.escape(payload[position : slot.start])
        if slot.start < text.start:
            front += between + slot.pattern
        elif slot is text:
            front += between
            rest = slot.pattern
        else:
            rest += between + slot.pattern
        position = slot.end
    model = answer.get("model")
    model = model if isinstance(model, str) and model else None
    return Shape(front, rest + re.escape(payload[position:] + line_end), usage_name, model, counts)


class _Slot(NamedTuple):
    """A part of the payload that varies."""

    start: int
    end: int
    pattern: bytes
    is_usage: bool = False
    counts: CountGroups | None = None


def _text_slot(payload: bytes, answer: Any, spoken_at: tuple[Path, ...]) -> _Slot | None:
    """The inside of the text; None if it does not stand in just one place."""
    choice = answer["choices"][0]
    spoken = [path for path in spoken_at if jsonbody.value_at(choice, path)]
    if len(spoken) != 1:
        return None
    start, end = jsonbody.span_at(payload, ("choices", 0, *spoken[0]))
    if payload[start] != ord('"'):
        return None
    return _Slot(start + 1, end - 1, _NOT_EMPTY + _STRING)


def _slots(payload: bytes, text: _Slot, usage_name: str | None) -> list[_Slot]:
    """All that varies, in order. In front of the text only what stays in one stream."""
    slots = [text]
    for member in jsonbody.members(payload):
        value = payload[member.value_start : member.value_end]
        is_behind = member.start > text.end
        if value.startswith(b'"') and (member.name == "id" or (member.name == "obfuscation" and is_behind)):
            slots.append(_Slot(member.value_start + 1, member.value_end - 1, _STRING))
        elif member.name == "created" and _IS_COUNT(value):
            slots.append(_Slot(member.value_start, member.value_end, _COUNT))
        elif member.name == usage_name and is_behind:
            start, end = jsonbody.with_comma(payload, member)
            name = re.escape(payload[start : member.value_start])
            usage, counts = _counting(value)
            slots.append(_Slot(start, end, b"(?P<member>%s(?P<usage>%s))" % (name, usage), True, counts))
    return sorted(slots)


def _counting(usage: bytes) -> tuple[bytes, CountGroups | None]:
    """A pattern of usages of the same kind: the numbers in it may be others. And its counts, if they can be told."""
    pattern, position, name = b"", 0, b""
    roles: list[str] = []
    for token in _STRING_OR_NUMBER.finditer(usage):
        number = token["number"]
        if number is None:
            name = token[0][1:-1]
        elif _IS_COUNT(number):
            role = _ROLES.get(name, "other")
            if role == "other" or role in roles:
                role = f"other{len(roles)}"
            roles.append(role)
            pattern += re.escape(usage[position : token.start()]) + b"(?P<%b>%b)" % (role.encode(), _COUNT)
            position = token.end()
        elif _IS_FRACTION(number) and not _is_integral(number):
            pattern += re.escape(usage[position : token.start()]) + _FRACTION
            position = token.end()
    others = tuple(role for role in roles if role.startswith("other"))
    counts = CountGroups("total" in roles, others) if others and "output" in roles else None
    return pattern + re.escape(usage[position:]), counts


def _is_integral(fraction: bytes) -> bool:
    """16.0, which may be a count."""
    return float(fraction).is_integer()
