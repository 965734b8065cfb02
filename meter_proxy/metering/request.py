"""What a client asked for: the few members of a request body that metering and limits need.

Strict, because the upstream reads the same bytes with another parser: UTF-8 without a BOM, RFC 8259 without NaN,
no key twice at the top level or in `stream_options`, bounded depth. What we do not need is not judged here:
the upstream answers for that.

An ordinary body is read in two decodings that leave no question open (`_read_plain`). Any other, and whatever is
wrong with one, is read member by member (`read_carefully`): that is the reference, and the words of all refusals.
"""

from typing import Annotated, Any

import msgspec

from meter_proxy.errors import ClientError
from meter_proxy.metering import jsonbody
from meter_proxy.metering.jsonbody import Member
from meter_proxy.usage import Operation

MAX_CHOICES = 128  # OpenAI's bound of `n`
MAX_TOKENS = 2**53  # of a bound; beyond it JSON numbers are not exact
_CHAT, _TEXT_COMPLETION, _EMBEDDINGS = Operation  # to look up a member takes 0.2 us each time (CPython 3.11)
_TOKEN_BYTES = 4  # a prompt of token ids: the inverse of the estimate, text bytes / 4


class Asked(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request body, read."""

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
    members: list[Member] | None = None  # spans into the body; None: not looked for yet
    is_extensible: bool = False  # what `rewrite_body` may add stands nowhere yet, not even as null


def parse_body(body: bytes, operation: Operation) -> Asked:
    """Read a request body. Raises ClientError (400, in OpenAI's words) for whatever is wrong with it.

    `input_text_bytes` counts texts of messages, tool calls, tool definitions, prompts and embedding inputs.
    """
    members = None if _is_plain(body) else _object_members(body, param=None)
    return _read_plain(body, operation, members) or read_carefully(body, operation)


# The plain way: types say what is right, and nothing is asked about what is wrong.


class _Part(msgspec.Struct, gc=False):
    text: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | list[str | _Part] | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()


class _Options(msgspec.Struct, gc=False):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    chunk_include_usage: bool | None = None


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class _Body(msgspec.Struct, gc=False):
    """The members of a body without faults. A Raw is empty if its member is absent."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    messages: list[_Message] | None = None
    stream: bool | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: _Tokens | msgspec.UnsetType | None = msgspec.UNSET
    max_completion_tokens: _Tokens | None = None
    stream_options: msgspec.Raw = msgspec.Raw()
    timings_per_token: bool | msgspec.UnsetType | None = msgspec.UNSET
    tools: msgspec.Raw = msgspec.Raw()
    functions: msgspec.Raw = msgspec.Raw()
    response_format: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_options = msgspec.json.Decoder(_Options).decode
_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_NO_OPTIONS = _Options()


def _is_plain(body: bytes) -> bool:
    """The body is an object that passes the strict rules: seen at once. False: it may all the same."""
    if len(body) > jsonbody.MAX_PRINTED_BYTES:
        return False
    try:
        if not body.isascii():
            body.decode()
        return jsonbody.is_printed_plainly(body) and not jsonbody.is_too_deep(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


def _read_plain(body: bytes, operation: Operation, members: list[Member] | None) -> Asked | None:
    """Read a body that passed the strict rules; None if a member is not of its type, or is not what it must be."""
    try:
        read = _decode_body(body)
        options, raw_options = _NO_OPTIONS, _present(read.stream_options)
        if raw_options is not None:
            options = _decode_options(raw_options)
            if not jsonbody.is_printed_plainly(raw_options):
                _object_members(raw_options, param="stream_options")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    prompts, n = 1, read.n or 1
    if operation is _CHAT:
        texts, text_bytes = 1, 0
        if read.messages:
            texts, text_bytes = len(read.messages), _text_bytes(read.messages)
        for defined in (read.tools, read.functions, read.response_format):
            if defined:
                text_bytes += len(_present(defined) or b"")
    elif operation is _TEXT_COMPLETION:
        texts, text_bytes = _prompt(_present(read.prompt))
        prompts = texts
    else:
        n = 1
        texts, text_bytes = _input(_present(read.input))
    most_tokens = read.max_completion_tokens
    if most_tokens is None and read.max_tokens is not msgspec.UNSET:
        most_tokens = read.max_tokens
    return Asked(
        model=read.model,
        stream=read.stream is True and operation is not _EMBEDDINGS,
        choices=n * prompts,
        prompts=prompts,
        max_output_tokens=most_tokens,
        asked_for_usage=options.include_usage is True,
        asked_for_running_usage=options.continuous_usage_stats is True or options.chunk_include_usage is True,
        asked_for_timings=read.timings_per_token is True,
        input_text_bytes=text_bytes,
        texts=texts,
        members=members,
        is_extensible=(
            not read.stream_options and read.timings_per_token is msgspec.UNSET and read.max_tokens is not None
        ),
    )


def _present(raw: msgspec.Raw) -> bytes | None:
    """The value; None if it is absent or null."""
    value = bytes(raw)
    return None if value in (b"", b"null") else value


# The careful way.


def read_carefully(body: bytes, operation: Operation) -> Asked:
    """`parse_body` for any body, and for the words of what is wrong with it."""
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
    options = request.options()
    prompts = 1
    if operation is _TEXT_COMPLETION:
        texts, text_bytes = _prompt(request.raw("prompt"))
        prompts = texts
    elif operation is _CHAT:
        texts, text_bytes = _messages(request)
    else:
        n = 1
        texts, text_bytes = _input(request.raw("input"))
    return Asked(
        model=model,
        stream=request.flag("stream") and operation is not _EMBEDDINGS,
        choices=n * prompts,
        prompts=prompts,
        max_output_tokens=most_tokens if most_completion_tokens is None else most_completion_tokens,
        asked_for_usage=options.flag("include_usage"),
        asked_for_running_usage=options.flag("continuous_usage_stats") or options.flag("chunk_include_usage"),
        asked_for_timings=request.flag("timings_per_token"),
        input_text_bytes=text_bytes,
        texts=texts,
        members=members,
        is_extensible=(
            request.spans.keys().isdisjoint(("stream_options", "timings_per_token"))
            and ("max_tokens" not in request.spans or most_tokens is not None)
        ),
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
            raise _wrong_type(self._within + name, words) from None

    def flag(self, name: str) -> bool:
        """A boolean; absent and null are false."""
        return self.raw(name) is not None and bool(self.read(name, bool, "a boolean"))

    def count(self, name: str, *, least: int, most: int = MAX_TOKENS) -> int | None:
        """An integer within bounds; None if it is absent or null."""
        if self.raw(name) is None:
            return None
        number: int = self.read(name, int, "an integer")
        if not least <= number <= most:
            bounds = f"at least {least}" if number < least else f"at most {most}"
            raise ClientError(400, "invalid_value", f"'{name}' must be {bounds}", param=self._within + name)
        return number

    def options(self) -> "_Request":
        """The members of `stream_options`; none if it is absent or null."""
        raw = self.raw("stream_options")
        if raw is None:
            return _Request(b"{}", [])
        if not raw.startswith(b"{"):
            raise _wrong_type("stream_options", "an object")
        return _Request(raw, _object_members(raw, param="stream_options"), within="stream_options.")


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


def _wrong_type(param: str, words: str) -> ClientError:
    return ClientError(400, "invalid_type", f"'{param}' must be {words}", param=param)


# Texts.


def _messages(request: _Request) -> tuple[int, int]:
    """How many messages there are, and their bytes of text, with the definitions of tools: the model reads them too."""
    total = sum(len(request.raw(name) or b"") for name in ("tools", "functions", "response_format"))
    raw = request.raw("messages")
    if raw is None:
        return 1, total
    if not raw.startswith(b"["):
        raise _wrong_type("messages", "an array of messages")
    try:
        messages = _decode_messages(raw)
    except (msgspec.MsgspecError, ValueError):
        return 1, total + len(raw)  # a shape we do not know: rather too much
    return max(1, len(messages)), total + _text_bytes(messages)


def _text_bytes(messages: list[_Message]) -> int:
    total = 0
    for message in messages:
        content = message.content
        if isinstance(content, str):
            total += _utf8_bytes(content)
        else:
            for part in content or ():
                total += _utf8_bytes(part if isinstance(part, str) else part.text or "")
        total += len(message.tool_calls)
    return total


def _prompt(raw: bytes | None) -> tuple[int, int]:
    """How many prompts there are, and their bytes of text."""
    if raw is None:
        return 1, 0
    sizes = _text_sizes(raw)
    if sizes is None:
        words = "a string, an array of strings, an array of tokens, or an array of token arrays"
        raise _wrong_type("prompt", words)
    return max(1, len(sizes)), sum(sizes)


def _input(raw: bytes | None) -> tuple[int, int]:
    """How many inputs there are, and their bytes of text."""
    if raw is None:
        return 1, 0
    if not raw.startswith((b'"', b"[")):
        raise _wrong_type("input", "a string or an array")
    sizes = _text_sizes(raw)
    if sizes is None:
        return 1, len(raw)  # parts of other kinds: rather too much
    return max(1, len(sizes)), sum(sizes)


_decode_texts = msgspec.json.Decoder(str | list[str | int | list[int]]).decode


def _text_sizes(raw: bytes) -> list[int] | None:
    """Bytes of each text: strings, or tokens at 4 bytes each; None for a mixture, and for anything else."""
    try:
        texts = _decode_texts(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
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
