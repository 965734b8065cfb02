"""A request as the mock understands it: the body's few members that matter, and the `x-mock-*` wishes.

| header | wish |
| --- | --- |
| `x-mock-tokens: N` | generate N tokens per choice, whatever max_tokens says |
| `x-mock-cached-tokens: N` | say that so many tokens of the input came from a cache |
| `x-mock-first-byte-ms: N` | say nothing for so long, not even a head |
| `x-mock-status: CODE` | answer with this error status |
| `x-mock-fault: KIND@K` | let a stream fail after K events with generated text |

KIND is `error` (an error event, then the end of the body), `reset` (RST), `close` (FIN, and no end of
the body) or `stall` (silence until the client hangs up).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

DEFAULT_TOKENS = 24
MAX_TOKENS = 1_000_000  # a mistyped limit must not make a plan that fills the memory
MAX_CHOICES = 128
EMBEDDING_DIMENSIONS = 8


class BadRequest(Exception):
    """The request makes no sense; `param` names the member at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class FaultKind(StrEnum):
    """How a stream can be made to fail."""

    ERROR = "error"
    RESET = "reset"
    CLOSE = "close"
    STALL = "stall"


@dataclass(frozen=True)
class Fault:
    """`kind` happens once `after_events` events with generated text were sent."""

    kind: FaultKind
    after_events: int


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request wants generated. `prompt_tokens` has one entry per prompt."""

    operation: str  # chat, text_completion, embeddings
    model: str
    stream: bool = False
    prompt_tokens: tuple[int, ...]
    choices_per_prompt: int = 1
    tokens_per_choice: int = 0
    is_cut_by_limit: bool = False  # max_tokens was given, so the text ends at it
    tool: str | None = None  # the name of the tool to call
    reasons: bool = False  # the first half of the tokens is reasoning
    include_usage: bool = False
    continuous_usage_stats: bool = False
    timings_per_token: bool = False
    has_stream_options: bool = False
    cached_tokens: int = 0  # of the input; told with the final usage
    dimensions: int = EMBEDDING_DIMENSIONS
    base64: bool = False
    first_byte_delay_s: float = 0.0
    status: int = 200
    fault: Fault | None = None

    @property
    def choices(self) -> int:
        """All choices of all prompts."""
        return len(self.prompt_tokens) * self.choices_per_prompt


def understand(operation: str, body: bytes, headers: Mapping[str, str]) -> Asked:
    """Read a request. Raises BadRequest. `headers` must be case-insensitive."""
    try:
        asked = json.loads(body)
    except ValueError as exc:
        raise BadRequest(f"We could not parse the JSON body of your request: {exc}") from exc
    if not isinstance(asked, dict):
        raise BadRequest("The body must be a JSON object.")
    model = asked.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("You must provide a model parameter", "model")
    wishes = _wishes(headers)
    if operation == "embeddings":
        prompts = _prompts(asked, "input")
        dimensions = _count(asked, "dimensions", EMBEDDING_DIMENSIONS, most=4096)
        base64 = asked.get("encoding_format") == "base64"
        return Asked(
            operation=operation, model=model, prompt_tokens=prompts, dimensions=dimensions, base64=base64, **wishes
        )
    limit = asked.get("max_completion_tokens") or asked.get("max_tokens")
    options = asked.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequest("stream_options must be an object.", "stream_options")
    wishes.setdefault("tokens_per_choice", _count({"max_tokens": limit}, "max_tokens", DEFAULT_TOKENS, most=MAX_TOKENS))
    return Asked(
        operation=operation,
        model=model,
        stream=asked.get("stream") is True,
        prompt_tokens=(_messages(asked),) if operation == "chat" else _prompts(asked, "prompt"),
        choices_per_prompt=_count(asked, "n", 1, most=MAX_CHOICES),
        is_cut_by_limit=limit is not None,
        tool=_tool(asked) if operation == "chat" else None,
        reasons=operation == "chat" and asked.get("reasoning_effort") not in (None, "none"),
        include_usage=options.get("include_usage") is True,
        continuous_usage_stats=options.get("continuous_usage_stats") is True,
        timings_per_token=asked.get("timings_per_token") is True,
        has_stream_options=bool(options),
        **wishes,
    )


def _wishes(headers: Mapping[str, str]) -> dict[str, Any]:
    wishes: dict[str, Any] = {}
    try:
        if "x-mock-tokens" in headers:
            wishes["tokens_per_choice"] = max(0, min(int(headers["x-mock-tokens"]), MAX_TOKENS))
        if "x-mock-cached-tokens" in headers:
            wishes["cached_tokens"] = max(0, int(headers["x-mock-cached-tokens"]))
        if "x-mock-first-byte-ms" in headers:
            wishes["first_byte_delay_s"] = int(headers["x-mock-first-byte-ms"]) / 1000
        if "x-mock-status" in headers:
            wishes["status"] = int(headers["x-mock-status"])
        if "x-mock-fault" in headers:
            kind, _, after = headers["x-mock-fault"].partition("@")
            wishes["fault"] = Fault(FaultKind(kind), int(after or 0))
    except ValueError as exc:
        raise BadRequest(f"An x-mock-* header is wrong: {exc}") from exc
    return wishes


def _count(asked: Mapping[str, Any], name: str, default: int, *, most: int) -> int:
    value = asked.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise BadRequest(f"{name} must be an integer from 1 to {most}.", name)
    return value


def _prompts(asked: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Token counts of `prompt` or `input`: a text, texts, token ids, or lists of token ids."""
    prompt = asked.get(name)
    if isinstance(prompt, str):
        return (count_words(prompt),)
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, int) for item in prompt):
            return (len(prompt),)
        if all(isinstance(item, str | list) for item in prompt):
            return tuple(count_words(item) if isinstance(item, str) else len(item) for item in prompt)
    raise BadRequest(f"{name} must be a text, a list of texts, or token ids.", name)


def _messages(asked: Mapping[str, Any]) -> int:
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise BadRequest("messages must be a list with at least one message.", "messages")
    return sum(count_words(text) for message in messages for text in _texts(message.get("content")))


def _texts(content: object) -> Sequence[str]:
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _tool(asked: Mapping[str, Any]) -> str | None:
    """The first tool is called, unless the caller forbids it or its result is already there."""
    tools = asked.get("tools")
    last = asked["messages"][-1]
    if not tools or asked.get("tool_choice") == "none" or last.get("role") == "tool":
        return None
    try:
        return str(tools[0]["function"]["name"])
    except (TypeError, LookupError) as exc:
        raise BadRequest("tools must be a list of functions with a name.", "tools") from exc


def count_words(text: str) -> int:
    """The mock's own idea of a prompt's tokens: its words, and one for the frame around it."""
    return len(text.split()) + 1
