"""Bodies in OpenAI's shapes, to be sent by scripts. Plain data: the counts are whatever the test says."""

import json
from collections.abc import Mapping
from typing import Any

DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """One SSE event with this JSON."""
    return b"data: " + json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    """A usage object in wire words."""
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }


def chat_event(
    content: str | None = None, *, index: int = 0, finish: str | None = None, model: str = "m", **members: Any
) -> bytes:
    """A chat chunk with one choice; `members` (such as `usage=`) are added at the top level."""
    delta = {} if content is None else {"content": content}
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return event({**_CHAT_CHUNK, "model": model, "choices": [choice], **members})


def chat_role_event() -> bytes:
    """The first chunk of most servers: the role, and no text yet."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    return event({**_CHAT_CHUNK, "choices": [choice]})


def usage_event(input_tokens: int, output_tokens: int) -> bytes:
    """The usage-only chunk that `stream_options.include_usage` asks for."""
    return event({**_CHAT_CHUNK, "choices": [], "usage": usage(input_tokens, output_tokens)})


def chat_stream(*contents: str, input_tokens: int = 9, output_tokens: int | None = None) -> list[bytes]:
    """The events of a whole chat stream with a final usage; `output_tokens` is by default one per content."""
    total = len(contents) if output_tokens is None else output_tokens
    texts = [chat_event(content) for content in contents]
    return [chat_role_event(), *texts, chat_event(finish="stop"), usage_event(input_tokens, total), DONE]


def running_chat_stream(*contents: str, input_tokens: int = 9, tokens_per_event: int = 2) -> list[bytes]:
    """The same with vLLM's continuous usage: each event tells the count so far."""
    counts = range(tokens_per_event, tokens_per_event * len(contents) + 1, tokens_per_event)
    texts = [
        chat_event(content, usage=usage(input_tokens, count)) for content, count in zip(contents, counts, strict=True)
    ]
    last = usage(input_tokens, tokens_per_event * len(contents))
    return [chat_event("", usage=usage(input_tokens, 0)), *texts, chat_event(finish="stop", usage=last), DONE]


def chat_json(content: str = "Hello", *, input_tokens: int = 9, output_tokens: int = 3, model: str = "m") -> bytes:
    """A whole plain chat answer."""
    message = {"role": "assistant", "content": content}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage(input_tokens, output_tokens),
    }
    return json.dumps(body).encode()


def error_json(message: str, *, type: str = "invalid_request_error", code: str | None = None) -> bytes:
    """An error body in OpenAI's shape."""
    return json.dumps({"error": {"message": message, "type": type, "param": None, "code": code}}).encode()


_CHAT_CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "m"}
