"""What a client asked for: the few members of a request body that metering and limits need.

Strict, because the upstream reads the same bytes with another parser: UTF-8 without a BOM, RFC 8259 without NaN,
no key twice at the top level or in `stream_options`, bounded depth. What we do not need is not judged here:
the upstream answers for that.
"""

from typing import Any

import msgspec

from meter_proxy.errors import ClientError
from meter_proxy.metering import jsonbody
from meter_proxy.metering.jsonbody import Member
from meter_proxy.usage import Operation

MAX_CHOICES = 128  # OpenAI's bound of `n`
_TOKEN_BYTES = 4  # a prompt of token ids: the inverse of the estimate, text bytes / 4


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request body, read. `members` and `option_members` are spans into it, for `rewrite_body`."""

    model: str
    stream: bool = False
    choices: int = 1  # n x prompts: how many answers are generated
    prompts: int = 1
    max_output_tokens: int | None = None  # per choice; None: the client sets no bound
    asked_for_usage: bool = False  # stream_options.include_usage
    asked_for_running_usage: bool = False  # stream_options.continuous_usage_stats (or Ark's chunk_include_usage)
    asked_for_timings: bool = False  # timings_per_token (llama.cpp)
    input_text_bytes: int = 0  # UTF-8; no images or audio; 4 per token where token ids were sent
    texts: int = 1  # messages, prompts or inputs: a template may add some tokens to each
    members: tuple[Member, ...] = ()
    option_members: tuple[Member, ...] | None = None  # None: no `stream_options`, or null


def parse_body(body: bytes, operation: Operation) -> Asked:
    """Read a request body. Raises ClientError (400, in OpenAI's words) for whatever is wrong with it.

    `input_text_bytes` counts texts of messages, tool calls, tool definitions, prompts and embedding inputs.
    """
    members = _object_members(body, param=None)
    request = _Request(body, members)
    if "model" not in request.spans:
        raise ClientError(400, "missing_required_parameter", "you must provide a model parameter", param="model")
    model: str = request.read("model", str, "a string")
    if not model:
        raise ClientError(400, "invalid_value", "'model' must not be empty", param="model")
    n = request.count("n", least=1, most=MAX_CHOICES) or 1
    most_tokens = request.count("max_tokens", least=0)
    most_completion_tokens = request.count("max_completion_tokens", least=0)
    option_members = request.options()
    options = _Request(body, option_members or [], within="stream_options.")
    prompts = 1
    if operation is Operation.TEXT_COMPLETION:
        texts, text_bytes = _prompt(request)
        prompts = texts
    elif operation is Operation.CHAT:
        texts, text_bytes = _messages(request)
    else:
        n = 1
        texts, text_bytes = _input(request)
    return Asked(
        model=model,
        stream=request.flag("stream") and operation is not Operation.EMBEDDINGS,
        choices=n * prompts,
        prompts=prompts,
        max_output_tokens=most_tokens if most_completion_tokens is None else most_completion_tokens,
        asked_for_usage=options.flag("include_usage"),
        asked_for_running_usage=options.flag("continuous_usage_stats") or options.flag("chunk_include_usage"),
        asked_for_timings=request.flag("timings_per_token"),
        input_text_bytes=text_bytes,
        texts=texts,
        members=tuple(members),
        option_members=None if option_members is None else tuple(option_members),
    )


class _Request:
    """The members of one object of the body, decoded one by one, each with its own error."""

    def __init__(self, body: bytes, members: list[Member], within: str = "") -> None:
        self.body = body
        self.spans = {member.name: member for member in members}
        self._within = within

    def raw(self, name: str) -> bytes | None:
        """The member's own bytes; None if it is absent or null."""
        span = self.spans.get(name)
        value = self.body[span.value_start : span.value_end] if span is not None else b"null"
        return None if value == b"null" else value

    def read(self, name: str, kind: Any, words: str) -> Any:
        """The member's value, of the type `kind`; `words` say what it must be."""
        try:
            return msgspec.json.decode(self.raw(name) or b"null", type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            param = self._within + name
            raise ClientError(400, "invalid_type", f"'{param}' must be {words}", param=param) from None

    def flag(self, name: str) -> bool:
        """A boolean; absent and null are false."""
        return self.raw(name) is not None and bool(self.read(name, bool, "a boolean"))

    def count(self, name: str, *, least: int, most: int = 2**53) -> int | None:
        """An integer within bounds; None if it is absent or null."""
        if self.raw(name) is None:
            return None
        number: int = self.read(name, int, "an integer")
        if not least <= number <= most:
            bounds = f"at least {least}" if number < least else f"at most {most}"
            raise ClientError(400, "invalid_value", f"'{name}' must be {bounds}", param=self._within + name)
        return number

    def options(self) -> list[Member] | None:
        """The members of `stream_options` as spans of the body; None if it is absent or null."""
        raw = self.raw("stream_options")
        if raw is None:
            return None
        if not raw.startswith(b"{"):
            raise ClientError(400, "invalid_type", "'stream_options' must be an object", param="stream_options")
        start = self.spans["stream_options"].value_start
        return [
            Member(name, start + key, start + value_start, start + value_end)
            for name, key, value_start, value_end in _object_members(raw, param="stream_options")
        ]


def _object_members(text: bytes, *, param: str | None) -> list[Member]:
    try:
        if not text.isascii():
            text.decode()  # the decoder below does not look into strings that it skips
        members = jsonbody.members(text)
        too_deep = jsonbody.is_too_deep(text)
    except jsonbody.DuplicateKey as exc:
        name = exc.name if param is None else f"{param}.{exc.name}"
        raise ClientError(400, "duplicate_key", "the same key stands twice in one object", param=name) from exc
    except RecursionError:
        too_deep = True
    except (msgspec.MsgspecError, ValueError) as exc:
        raise ClientError(400, "invalid_json", "the body is not a valid JSON object") from exc
    if too_deep:
        limits = f"{jsonbody.MAX_DEPTH} levels or {jsonbody.MAX_CONTAINERS} objects and arrays"
        raise ClientError(400, "invalid_json", f"the body has more than {limits}")
    return members


class _Part(msgspec.Struct, gc=False):
    text: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | list[str | _Part] | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()


def _messages(request: _Request) -> tuple[int, int]:
    """How many messages there are, and their bytes of text, with the definitions of tools: the model reads them too."""
    total = sum(len(request.raw(name) or b"") for name in ("tools", "functions", "response_format"))
    raw = request.raw("messages")
    if raw is None:
        return 1, total
    if not raw.startswith(b"["):
        raise ClientError(400, "invalid_type", "'messages' must be an array of messages", param="messages")
    try:
        messages = msgspec.json.decode(raw, type=list[_Message])
    except (msgspec.MsgspecError, ValueError):
        return 1, total + len(raw)  # a shape we do not know: rather too much
    for message in messages:
        if isinstance(message.content, str):
            total += _utf8_bytes(message.content)
        else:
            for part in message.content or ():
                total += _utf8_bytes(part if isinstance(part, str) else part.text or "")
        total += len(bytes(message.tool_calls))
    return max(1, len(messages)), total


def _prompt(request: _Request) -> tuple[int, int]:
    """How many prompts there are, and their bytes of text."""
    if request.raw("prompt") is None:
        return 1, 0
    words = "a string, an array of strings, an array of tokens, or an array of token arrays"
    sizes = _text_sizes(request.read("prompt", _Texts, words))
    if sizes is None:
        raise ClientError(400, "invalid_type", f"'prompt' must be {words}", param="prompt")
    return max(1, len(sizes)), sum(sizes)


def _input(request: _Request) -> tuple[int, int]:
    """How many inputs there are, and their bytes of text."""
    raw = request.raw("input")
    if raw is None:
        return 1, 0
    if not raw.startswith((b'"', b"[")):
        raise ClientError(400, "invalid_type", "'input' must be a string or an array", param="input")
    try:
        sizes = _text_sizes(msgspec.json.decode(raw, type=_Texts))
    except (msgspec.MsgspecError, ValueError):
        sizes = None
    if sizes is None:
        return 1, len(raw)  # parts of other kinds: rather too much
    return max(1, len(sizes)), sum(sizes)


_Texts = str | list[str | int | list[int]]


def _text_sizes(texts: str | list[Any]) -> list[int] | None:
    """Bytes of each text: strings, or tokens at 4 bytes each; None for a mixture."""
    if isinstance(texts, str):
        return [_utf8_bytes(texts)]
    kinds = {type(text) for text in texts}
    if len(kinds) > 1:
        return None
    if kinds == {int}:
        return [_TOKEN_BYTES * len(texts)]
    if kinds == {list}:
        return [_TOKEN_BYTES * len(text) for text in texts]
    return [_utf8_bytes(text) for text in texts]


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
