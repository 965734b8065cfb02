"""The end of a stream that a quota cuts off, in the shape of the stream itself, so that clients end their loops.

`stop`: each open choice gets `finish_reason: "length"`, as if the model's own limit had been reached; a tool call in
flight stays incomplete, which is what `length` means. Then the usage, if the client asked for it, and `[DONE]`.
`error`: one error event in OpenAI's shape, and `[DONE]`.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from meter_proxy.usage import Operation, Usage

CUT_REASON = "length"
_CARRIED_OVER = ("id", "object", "created", "model", "system_fingerprint", "service_tier")
_DONE = b"data: [DONE]\n\n"


def stopped(operation: Operation, sample: bytes, open_choices: Iterable[int], usage: Usage | None) -> bytes:
    """The events that end a stream for all `open_choices`. `sample`: the JSON of one of its events; empty: none came.

    `usage`: counts to report, because the client asked for them; None: it did not.
    """
    first = _decoded(sample)
    default = "chat.completion.chunk" if operation is Operation.CHAT else "text_completion"
    frame = {"object": default, **{name: first[name] for name in _CARRIED_OVER if name in first}}
    no_usage = {"usage": None} if first.get("usage", 0) is None else {}  # OpenAI: on each event but the last
    is_chat = operation is Operation.CHAT
    events = [
        {
            **frame,
            **no_usage,
            "choices": [
                {
                    "index": index,
                    **({"delta": {}} if is_chat else {"text": ""}),
                    "logprobs": None,
                    "finish_reason": CUT_REASON,
                }
            ],
        }
        for index in open_choices
    ]
    if usage is not None:
        input_tokens, output_tokens = usage.input_tokens or 0, usage.output_tokens or 0
        counts: dict[str, Any] = {
            "prompt_tokens": input_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
        }
        events.append({**frame, "choices": [], "usage": counts})
    return b"".join(map(_event, events)) + _DONE


def failed(message: str) -> bytes:
    """The events that end a stream with an error."""
    error = {"message": message, "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}
    return _event({"error": error}) + _DONE


def _decoded(sample: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(sample, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}


def _event(data: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(data)
