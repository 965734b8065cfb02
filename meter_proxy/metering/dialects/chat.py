"""chat/completions: which events and messages hold generated text.

Counted: `content`, `reasoning_content` / `reasoning`, names and arguments of tool calls, audio. Not counted, as
in the corpus: `refusal` and the legacy `function_call`; their tokens are billed from the reported usage.
"""

from typing import Any

from meter_proxy.metering.dialects.wire import Choice

SPOKEN_AT: tuple[tuple[str | int, ...], ...] = (
    ("delta", "content"),
    ("delta", "reasoning_content"),
    ("delta", "reasoning"),
    ("delta", "tool_calls", 0, "function", "arguments"),
)


def has_content(choice: Choice) -> bool:
    """True if the choice holds generated text; an empty string is none."""
    spoken = choice.delta or choice.message
    if spoken is None:
        return bool(choice.text)
    if spoken.content or spoken.reasoning_content or spoken.reasoning or choice.text:
        return True
    if spoken.tool_calls:
        return any(_calls(call) for call in spoken.tool_calls)
    return spoken.audio is not None and bool(spoken.audio.get("data") or spoken.audio.get("transcript"))


def _calls(call: Any) -> bool:
    if not isinstance(call, dict):
        return False
    for kind in ("function", "custom"):
        called = call.get(kind)
        if isinstance(called, dict) and (called.get("name") or called.get("arguments") or called.get("input")):
            return True
    return False
