"""The JSON of chunks and answers, in OpenAI's shapes. Counts come in; none is made here."""

import base64
import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from meter_proxy.mock_backend.asked import Asked
from meter_proxy.mock_backend.plan import Kind, Step, finish_reason

CREATED = 1_700_000_000  # the same answer for the same request, whenever it is asked
DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """One SSE event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def error(message: str, type: str, *, param: str | None = None, code: str | int | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def usage(
    prompt_tokens: int, completion_tokens: int, reasoning_tokens: int = 0, cached_tokens: int = 0
) -> dict[str, Any]:
    """A usage object; details only when there was reasoning, or a part of the input was cached."""
    counts: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if cached_tokens:
        counts["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    if reasoning_tokens:
        counts["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return counts


def timings(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """llama.cpp's count so far."""
    return {"cache_n": 0, "prompt_n": prompt_tokens, "predicted_n": completion_tokens}


def chunk(asked: Asked, answer_id: str, choices: list[dict[str, Any]], members: Mapping[str, Any]) -> bytes:
    """A chunk of a stream with these choices; `members` (usage, timings) stand behind them."""
    kind = "chat.completion.chunk" if asked.operation == "chat" else "text_completion"
    head = {"id": answer_id, "object": kind, "created": CREATED, "model": asked.model}
    return event({**head, "choices": choices, **members})


def role_choice(choice: int) -> dict[str, Any]:
    """What a chat stream says first for a choice: no text yet."""
    return _chat_choice(choice, {"role": "assistant", "content": ""})


def step_choice(asked: Asked, step: Step) -> dict[str, Any]:
    """The choice object of an event that carries generated text."""
    if asked.operation != "chat":
        return {"index": step.choice, "text": step.text, "logprobs": None, "finish_reason": None}
    match step.kind:
        case Kind.REASONING:
            delta: dict[str, Any] = {"reasoning_content": step.text}
        case Kind.CONTENT:
            delta = {"content": step.text}
        case Kind.TOOL_NAME:
            delta = {"tool_calls": [{"index": 0, **_tool_call(step.choice, step.text, "")}]}
        case Kind.TOOL_ARGUMENTS:
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": step.text}}]}
    return _chat_choice(step.choice, delta)


def finish_choice(asked: Asked, choice: int) -> dict[str, Any]:
    """The choice object that ends a choice."""
    if asked.operation == "chat":
        return _chat_choice(choice, {}, finish_reason(asked))
    return {"index": choice, "text": "", "logprobs": None, "finish_reason": finish_reason(asked)}


def whole_answer(asked: Asked, answer_id: str, steps: Iterable[Step], counts: Mapping[str, Any] | None) -> bytes:
    """The plain JSON answer of a chat or completion; `counts` is its usage, or None for none."""
    texts: dict[tuple[int, Kind], str] = {}
    for step in steps:
        texts[step.choice, step.kind] = texts.get((step.choice, step.kind), "") + step.text
    choices = [_whole_choice(asked, choice, texts) for choice in range(asked.choices)]
    kind = "chat.completion" if asked.operation == "chat" else "text_completion"
    head = {"id": answer_id, "object": kind, "created": CREATED, "model": asked.model}
    return json.dumps({**head, "choices": choices, **({"usage": counts} if counts else {})}).encode()


def embeddings(asked: Asked) -> bytes:
    """One made-up vector per input; base64 of little-endian floats where asked, as the openai SDK does."""
    data = []
    for index, tokens in enumerate(asked.prompt_tokens):
        vector = [1.0 / (tokens + place + 1) for place in range(asked.dimensions)]
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": packed if asked.base64 else vector})
    total = sum(asked.prompt_tokens)
    counts = {"prompt_tokens": total, "total_tokens": total}
    return json.dumps({"object": "list", "data": data, "model": asked.model, "usage": counts}).encode()


def model(name: str) -> dict[str, Any]:
    """One entry of the list of models."""
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "mock"}


def _whole_choice(asked: Asked, choice: int, texts: Mapping[tuple[int, Kind], str]) -> dict[str, Any]:
    content = texts.get((choice, Kind.CONTENT), "")
    ending = {"index": choice, "logprobs": None, "finish_reason": finish_reason(asked)}
    if asked.operation != "chat":
        return {"text": content, **ending}
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if (reasoning := texts.get((choice, Kind.REASONING))) is not None:
        message["reasoning_content"] = reasoning
    if (name := texts.get((choice, Kind.TOOL_NAME))) is not None:
        arguments = texts.get((choice, Kind.TOOL_ARGUMENTS), "{}")
        message["content"] = None
        message["tool_calls"] = [_tool_call(choice, name, arguments)]
    return {"message": message, **ending}


def _tool_call(choice: int, name: str, arguments: str) -> dict[str, Any]:
    return {"id": f"call_mock{choice}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _chat_choice(choice: int, delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}
