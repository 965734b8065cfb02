"""Events as servers print them, a meter for them, and what it bills: for the tests of StreamMeter."""

import json
from typing import Any

from meter_proxy.metering.injection import NOTHING_HIDDEN, Hidden
from meter_proxy.metering.request import Asked
from meter_proxy.metering.stream import StreamMeter
from meter_proxy.usage import Basis, Operation

DONE = b"data: [DONE]\n\n"


def event(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def chunk(delta: Any, finish_reason: str | None = None, index: int = 0, **more: Any) -> bytes:
    return event({"model": "m", "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}], **more})


def text(content: str, index: int = 0, **more: Any) -> bytes:
    return chunk({"content": content}, index=index, **more)


def usage(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **more}


def meter(
    choices: int = 1, prompts: int = 1, hidden: Hidden = NOTHING_HIDDEN, max_event_bytes: int = 1_048_576
) -> StreamMeter:
    asked = Asked(model="m", stream=True, choices=choices, prompts=prompts)
    operation = Operation.TEXT_COMPLETION if prompts > 1 else Operation.CHAT
    return StreamMeter(operation, asked=asked, hidden=hidden, max_event_bytes=max_event_bytes)


def billed(metering: StreamMeter) -> tuple[int | None, int | None, Basis]:
    reading = metering.usage_so_far()
    return reading.usage.input_tokens, reading.usage.output_tokens, reading.basis
