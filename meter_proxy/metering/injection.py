"""Ask the upstream for usage that the client did not ask for, and take it out of the answer again.

Only our members are spliced into the client's own bytes: nothing is decoded and encoded anew. What the client
asked for itself is never hidden, and what it switched off is switched on all the same: metering is not its choice.
"""

import json
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


class Hidden(NamedTuple):
    """What the client did not ask for, so must not see.

    `usage_event`: an event with empty `choices` and a usage object is taken out whole. `running_usage`: the
    `usage` member of events with choices is cut out. llama.cpp's `timings` stay: clients ignore them.
    """

    usage_event: bool = False
    running_usage: bool = False


NOTHING_HIDDEN = Hidden()


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
    edits: list[_Edit] = []
    top = {member.name: member for member in asked.members}
    if upstream_model is not None and upstream_model != asked.model:
        model = top["model"]
        edits.append(_Edit(model.value_start, model.value_end, _json(upstream_model)))
    if max_tokens is not None:
        edits += _put(asked.members, {"max_tokens": max_tokens}, 0)
    hidden = NOTHING_HIDDEN
    if asked.stream:
        options: dict[str, bool] = {}
        if include_usage and not asked.asked_for_usage:
            options["include_usage"] = True
        if running is RunningUsage.VLLM and not asked.asked_for_running_usage:
            options["continuous_usage_stats"] = True
        hidden = Hidden("include_usage" in options, "continuous_usage_stats" in options)
        if options:
            edits += _merge_options(asked, top.get("stream_options"), options)
        if running is RunningUsage.LLAMACPP and not asked.asked_for_timings:
            edits += _put(asked.members, {"timings_per_token": True}, 0)
    return _edited(body, edits), hidden


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


def _merge_options(asked: Asked, member: Member | None, options: dict[str, bool]) -> list[_Edit]:
    """Put `options` into the client's `stream_options`, which may be absent or null."""
    if member is None:
        return _put(asked.members, {"stream_options": options}, 0)
    if asked.option_members is None:
        return [_Edit(member.value_start, member.value_end, _json(options))]
    return _put(asked.option_members, options, member.value_start + 1)


def _put(siblings: tuple[Member, ...], values: dict[str, Any], first_at: int) -> list[_Edit]:
    """Replace the values that are there, append the others; `first_at`: where, in an object without members."""
    edits = [
        _Edit(sibling.value_start, sibling.value_end, _json(values[sibling.name]))
        for sibling in siblings
        if sibling.name in values
    ]
    there = {sibling.name for sibling in siblings}
    added = b",".join(_json(name) + b":" + _json(value) for name, value in values.items() if name not in there)
    if added:
        at = siblings[-1].value_end if siblings else first_at
        edits.append(_Edit(at, at, b"," + added if siblings else added))
    return edits


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _edited(body: bytes, edits: list[_Edit]) -> bytes:
    if not edits:
        return body
    out: list[bytes] = []
    position = 0
    for edit in sorted(edits, key=lambda edit: edit.start):
        out += (body[position : edit.start], edit.text)
        position = edit.end
    out.append(body[position:])
    return b"".join(out)
