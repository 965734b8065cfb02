"""Ask the upstream for usage that the client did not ask for, and take it out of the answer again.

Only our members are spliced into the client's own bytes: nothing is decoded and encoded anew. What the client
asked for itself is never hidden, and what it switched off is switched on all the same: metering is not its choice.
"""

import re
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from meter_proxy.metering import jsonbody, sse
from meter_proxy.metering.jsonbody import Member
from meter_proxy.metering.request import Asked


class RunningUsage(Enum):
    """How an upstream is asked for a running count on every event."""

    OFF = "off"
    VLLM = "vllm"  # stream_options.continuous_usage_stats: also SGLang and TensorRT-LLM
    LLAMACPP = "llamacpp"  # timings_per_token


_OFF, _VLLM, _LLAMACPP = RunningUsage  # to look up a member takes 0.2 us each time (CPython 3.11)


class Hidden(NamedTuple):
    """What the client did not ask for, so must not see.

    `usage_event`: an event with empty `choices` and a usage object is taken out whole. `running_usage`: the
    `usage` member of events with choices is cut out. llama.cpp's `timings` stay: clients ignore them.
    """

    usage_event: bool = False
    running_usage: bool = False


NOTHING_HIDDEN = Hidden()
_BLANKS = b" \t\r\n"
_BRACE_OPEN, _BRACE = b"{}"


class _Edit(NamedTuple):
    start: int
    end: int
    text: bytes


def rewrite_body(
    body: bytes,
    asked: Asked,
    *,
    upstream_model: str | None,
    include_usage: bool,
    running: RunningUsage,
    max_tokens: int | None = None,
) -> tuple[bytes, Hidden]:
    """The client's bytes with our members in them, and what must be taken out of the answer for it.

    `body` is what `asked` was parsed from. `include_usage` and `running` say what this upstream can be asked for;
    they matter for streams only. `max_tokens`: the bound that a quota sets, where the client set none.
    """
    hidden = NOTHING_HIDDEN
    added: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    if asked.stream:
        options: dict[str, bool] = {}
        if include_usage and not asked.asked_for_usage:
            options["include_usage"] = True
        if running is _VLLM and not asked.asked_for_running_usage:
            options["continuous_usage_stats"] = True
        if options:
            hidden = Hidden("include_usage" in options, "continuous_usage_stats" in options)
            added["stream_options"] = options
        if running is _LLAMACPP and not asked.asked_for_timings:
            added["timings_per_token"] = True
    if upstream_model is None or upstream_model == asked.model:
        if not added:
            return body, hidden
        if asked.is_extensible and (max_tokens is None or asked.max_output_tokens is None):
            return _extended(body, added), hidden
        upstream_model = None
    return _edited(body, asked, upstream_model, added), hidden


def without_usage(text: bytes) -> bytes:
    """An event's text with the top-level `usage` of its data cut out, and one comma; all other bytes stay.

    Data of several lines stays that: lines may become empty. What cannot be cut for sure stays whole.
    """
    spans = sse.data_spans(text)
    payload = b"\n".join(text[start:end] for start, end in spans)
    cut = _usage_span(payload)
    while cut is not None:
        text = _cut_lines(text, spans, *cut)
        spans = sse.data_spans(text)
        payload = b"\n".join(text[start:end] for start, end in spans)
        cut = _usage_span(payload) if b'"usage"' in payload else None
    return text


# The usual place is the end: `,"usage":{...}}`. The key stands behind a comma, and what follows it is one whole value
# and the brace that ends the payload: so it is a member of the outermost object, without walking the others.
_LAST_MEMBER = re.compile(rb',[ \t\r\n]*"usage"[ \t\r\n]*:[ \t\r\n]*(?=\{)')
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _usage_span(payload: bytes) -> tuple[int, int] | None:
    start = payload.rfind(b'"usage"')
    comma = payload.rfind(b",", 0, max(start, 0))
    key = _LAST_MEMBER.match(payload, comma) if comma >= 0 else None
    if key is not None:
        value = payload[key.end() :].rstrip(b" \t\r\n")[:-1].rstrip(b" \t\r\n")
        try:
            _decode_object(value)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
        else:
            return comma, key.end() + len(value)
    try:
        found = jsonbody.members(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    for member in found:
        if member.name == "usage" and payload.startswith(b"{", member.value_start):
            return jsonbody.with_comma(payload, member)
    return None


def _cut_lines(text: bytes, spans: list[tuple[int, int]], cut_start: int, cut_end: int) -> bytes:
    """Cut a span of the joined data lines out of the event's text, line by line."""
    kept: list[bytes] = []
    position = 0  # in the text
    offset = 0  # of the line in the joined data
    for start, end in spans:
        line_start = start + min(max(cut_start - offset, 0), end - start)
        line_end = start + min(max(cut_end - offset, 0), end - start)
        kept.append(text[position:line_start])
        position = line_end
        offset += end - start + 1
    kept.append(text[position:])
    return b"".join(kept)


def _extended(body: bytes, added: dict[str, Any]) -> bytes:
    """The body with members behind its last one; none of them is in it, and it has one at least."""
    end = len(body) - 1
    if body[end] != _BRACE or body[end - 1] in _BLANKS:
        end = len(body.rstrip(_BLANKS)[:-1].rstrip(_BLANKS))
    return b"%b,%b%b" % (body[:end], msgspec.json.encode(added)[1:-1], body[end:])


def _edited(body: bytes, asked: Asked, upstream_model: str | None, added: dict[str, Any]) -> bytes:
    """The body with members in it, wherever they may stand already, and another model unless None."""
    members = jsonbody.members(body) if asked.members is None else asked.members
    top = {member.name: member for member in members}
    edits: list[_Edit] = []
    if upstream_model is not None:
        edits.append(_replace(top["model"], upstream_model))
    options = top.get("stream_options")
    if options is not None and "stream_options" in added and body[options.value_start] == _BRACE_OPEN:
        value = body[options.value_start : options.value_end]
        within = [
            Member(name, *(options.value_start + offset for offset in offsets))
            for name, *offsets in jsonbody.members(value)
        ]
        edits += _put(within, added["stream_options"], options.value_start + 1)
        added = {name: value for name, value in added.items() if name != "stream_options"}
    edits += _put(members, added, 0)
    out: list[bytes] = []
    position = 0
    for edit in sorted(edits, key=lambda edit: edit.start):
        out += (body[position : edit.start], edit.text)
        position = edit.end
    out.append(body[position:])
    return b"".join(out)


def _put(siblings: list[Member], values: dict[str, Any], first_at: int) -> list[_Edit]:
    """Replace the values that are there, append the others; `first_at`: where, in an object without members."""
    edits = [_replace(sibling, values[sibling.name]) for sibling in siblings if sibling.name in values]
    there = {sibling.name for sibling in siblings}
    added = msgspec.json.encode({name: value for name, value in values.items() if name not in there})[1:-1]
    if added:
        at = siblings[-1].value_end if siblings else first_at
        edits.append(_Edit(at, at, b"," + added if siblings else added))
    return edits


def _replace(member: Member, value: Any) -> _Edit:
    return _Edit(member.value_start, member.value_end, msgspec.json.encode(value))
