"""The few members of an answer that a meter reads, typed; everything else is skipped unparsed.

One shape serves events and bodies of all families, since servers mix them (Together sets `text` and
`delta.content` in one chat event). A value of an unexpected type never fails an answer: what msgspec
refuses is read again, leniently, and the odd member counts as absent. First of all an answer is taken for one whose
usage is all counts, as nearly all are.
"""

import json
from typing import Any

import msgspec

from meter_proxy.metering.dialects.counts import PlainUsage


class Spoken(msgspec.Struct, gc=False):
    """A delta or a message. `content` is a list of parts at some servers (Mistral's thinking)."""

    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None
    audio: dict[str, Any] | None = None


class Choice(msgspec.Struct, gc=False):
    """One choice. `index` None: the server does not say (then its place in the list is meant)."""

    index: int | None = None
    delta: Spoken | None = None
    message: Spoken | None = None
    text: str | None = None
    finish_reason: str | None = None
    token_ids: list[Any] | None = None
    usage: Any = None


class Answer(msgspec.Struct, gc=False):
    """One event's data, or one body. `choices` None: absent or null, which is not the same as empty."""

    model: str | None = None
    choices: list[Choice] | None = None
    usage: Any = None  # a PlainUsage where all is right with it, else as it was decoded
    error: Any = None
    timings: Any = None  # llama.cpp
    x_groq: Any = None  # Groq
    base_resp: Any = None  # MiniMax: status_code other than 0 is an error
    data: msgspec.Raw = msgspec.Raw()  # embeddings: only whether there is any

    @property
    def is_error(self) -> bool:
        """The upstream says that it failed, whatever else this holds."""
        if self.error:
            return True
        return isinstance(self.base_resp, dict) and bool(self.base_resp.get("status_code"))

    @property
    def has_embeddings(self) -> bool:
        """There is a vector in it."""
        return bool(self.data) and bytes(self.data) not in (b"null", b"[]")


class _PlainAnswer(Answer, gc=False):
    usage: PlainUsage | None = None


_decode_plain = msgspec.json.Decoder(_PlainAnswer).decode
_decode = msgspec.json.Decoder(Answer).decode
_decode_plain_usage = msgspec.json.Decoder(PlainUsage).decode


def read_answer(payload: bytes) -> Answer | None:
    """The members we read, or None when this is no JSON object (keep-alive noise, a cut-off event).

    Invalid UTF-8 and lone surrogates are read as replacement characters: they are in somebody's text, and
    no reason to lose a count.
    """
    try:
        return _decode_plain(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError):
        pass
    try:
        return _decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError):
        pass
    try:
        wire = json.loads(payload.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return _lenient(wire) if isinstance(wire, dict) else None


def read_usage_object(text: bytes) -> Any:
    """The value of a `usage` by itself, as it is in an Answer."""
    try:
        return _decode_plain_usage(text)
    except (msgspec.MsgspecError, ValueError):
        return msgspec.json.decode(text)


def _lenient(wire: dict[str, Any]) -> Answer:
    choices = wire.get("choices")
    return Answer(
        model=_string(wire.get("model")),
        choices=[_choice(choice) for choice in choices] if isinstance(choices, list) else None,
        usage=wire.get("usage"),
        error=wire.get("error"),
        timings=wire.get("timings"),
        x_groq=wire.get("x_groq"),
        base_resp=wire.get("base_resp"),
        data=msgspec.Raw(b"[...]" if wire.get("data") else b""),
    )


def _choice(wire: Any) -> Choice:
    if not isinstance(wire, dict):
        return Choice()
    index = wire.get("index")
    return Choice(
        index=index if type(index) is int else None,
        delta=_spoken(wire.get("delta")),
        message=_spoken(wire.get("message")),
        text=_string(wire.get("text")),
        finish_reason=_string(wire.get("finish_reason")),
        token_ids=_list(wire.get("token_ids")),
        usage=wire.get("usage"),
    )


def _spoken(wire: Any) -> Spoken | None:
    if not isinstance(wire, dict):
        return None
    content = wire.get("content")
    return Spoken(
        content=content if isinstance(content, str | list) else None,
        reasoning_content=_string(wire.get("reasoning_content")),
        reasoning=_string(wire.get("reasoning")),
        tool_calls=_list(wire.get("tool_calls")),
        audio=_dict(wire.get("audio")),
    )


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _list(value: Any) -> list[Any] | None:
    return value if isinstance(value, list) else None


def _dict(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None
