"""parse_body: what is understood, and what is refused."""

import json
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter_proxy.errors import ClientError
from meter_proxy.metering import jsonbody, request
from meter_proxy.metering.jsonbody import Member
from meter_proxy.metering.request import Asked, parse_body, read_carefully
from meter_proxy.usage import Operation


def asked(operation: Operation = Operation.CHAT, **body: Any) -> Asked:
    return parse_body(json.dumps({"model": "m", **body}, ensure_ascii=False).encode(), operation)


def refused(body: bytes, operation: Operation = Operation.CHAT) -> tuple[str, str | None]:
    """The code and the parameter of the refusal."""
    with pytest.raises(ClientError) as raised:
        parse_body(body, operation)
    assert raised.value.status == 400
    assert raised.value.type == "invalid_request_error"
    return raised.value.code, raised.value.param


def test_what_metering_needs_is_read() -> None:
    """And nothing else is asked of a body."""
    body = asked(
        model="gpt-4o",
        stream=True,
        n=3,
        max_tokens=10,
        max_completion_tokens=20,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        timings_per_token=True,
        seed=2**70,
        anything={"deep": [1, None]},
    )
    assert (body.model, body.stream, body.choices, body.prompts, body.max_output_tokens) == ("gpt-4o", True, 3, 1, 20)
    assert body.asked_for_usage and body.asked_for_running_usage and body.asked_for_timings


def test_absent_and_null_mean_the_default() -> None:
    """As in OpenAI's API."""
    for body in (asked(), asked(stream=None, n=None, max_tokens=None, max_completion_tokens=None, stream_options=None)):
        assert (body.stream, body.choices, body.max_output_tokens, body.asked_for_usage) == (False, 1, None, False)
    assert not asked(stream_options={"include_usage": None}).asked_for_usage
    assert asked(max_tokens=7).max_output_tokens == 7


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b"null", "invalid_json", None),
        (b'"model"', "invalid_json", None),
        (b'{"model":"m"', "invalid_json", None),
        (b'{"model":"m"}x', "invalid_json", None),
        (b'{"model":"m",}', "invalid_json", None),
        (b"{'model':'m'}", "invalid_json", None),
        (b'{"model":"m"/*x*/}', "invalid_json", None),
        (b'\xef\xbb\xbf{"model":"m"}', "invalid_json", None),
        ('{"model":"m"}'.encode("utf-16"), "invalid_json", None),
        (b'{"model":"m","x":"\xff"}', "invalid_json", None),
        (b'{"model":"m","x":["\xed\xa0\x80"]}', "invalid_json", None),
        (b'{"model":"m","x":NaN}', "invalid_json", None),
        (b'{"model":"m","x":[Infinity]}', "invalid_json", None),
        (b'{"model":"m","x":-Infinity}', "invalid_json", None),
        (b'{"model":"m","x":01}', "invalid_json", None),
        (b'{"model":"m","x":"\t"}', "invalid_json", None),
        (b'{"model":"m","x":' + b"[" * 128 + b"]" * 128 + b"}", "invalid_json", None),
        (b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json", None),
        (b"{" * 100_000, "invalid_json", None),
        (b"{}", "missing_required_parameter", "model"),
        (b'{"Model":"m"}', "missing_required_parameter", "model"),
        (b'{"model":null}', "invalid_type", "model"),
        (b'{"model":1}', "invalid_type", "model"),
        (b'{"model":["m"]}', "invalid_type", "model"),
        (b'{"model":""}', "invalid_value", "model"),
        (b'{"model":"m","stream":"true"}', "invalid_type", "stream"),
        (b'{"model":"m","stream":1}', "invalid_type", "stream"),
        (b'{"model":"m","n":0}', "invalid_value", "n"),
        (b'{"model":"m","n":-1}', "invalid_value", "n"),
        (b'{"model":"m","n":129}', "invalid_value", "n"),
        (b'{"model":"m","n":99999999999999999999999}', "invalid_value", "n"),
        (b'{"model":"m","n":1.0}', "invalid_type", "n"),
        (b'{"model":"m","n":true}', "invalid_type", "n"),
        (b'{"model":"m","n":"2"}', "invalid_type", "n"),
        (b'{"model":"m","max_tokens":-1}', "invalid_value", "max_tokens"),
        (b'{"model":"m","max_tokens":"9"}', "invalid_type", "max_tokens"),
        (b'{"model":"m","max_completion_tokens":[]}', "invalid_type", "max_completion_tokens"),
        (b'{"model":"m","stream_options":[]}', "invalid_type", "stream_options"),
        (b'{"model":"m","stream_options":true}', "invalid_type", "stream_options"),
        (b'{"model":"m","stream_options":{"include_usage":1}}', "invalid_type", "stream_options.include_usage"),
        (b'{"model":"m","model":"m"}', "duplicate_key", "model"),
        (b'{"model":"m","x":1,"x":{"y":2}}', "duplicate_key", "x"),
        (b'{"model":"m","mod\\u0065l":"n"}', "duplicate_key", "model"),
        (
            b'{"model":"m","stream_options":{"include_usage":true,"include_usage":false}}',
            "duplicate_key",
            "stream_options.include_usage",
        ),
        (b'{"model":"m","timings_per_token":"yes"}', "invalid_type", "timings_per_token"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(body: bytes, code: str, param: str | None) -> None:
    """In OpenAI's words, with the parameter."""
    assert refused(body) == (code, param)


def test_the_message_of_a_refusal_holds_nothing_of_the_body() -> None:
    """Errors echo nothing."""
    with pytest.raises(ClientError) as raised:
        parse_body(b'{"model":{"secret-4711":1}}', Operation.CHAT)
    assert "4711" not in str(raised.value)


def test_a_deep_body_within_the_bound_is_taken() -> None:
    """128 levels, the object itself being one."""
    assert parse_body(b'{"model":"m","x":' + b"[" * 127 + b"]" * 127 + b"}", Operation.CHAT).model == "m"


@pytest.mark.parametrize(
    ("prompt", "prompts", "text_bytes"),
    [
        ("春x", 1, 4),
        (["a", "bc"], 2, 3),
        ([1, 2, 3], 1, 12),
        ([[1, 2], [3]], 2, 12),
        ([], 1, 0),
        (None, 1, 0),
    ],
)
def test_prompts_are_counted(prompt: Any, prompts: int, text_bytes: int) -> None:
    """Each of them is answered n times; a token is four bytes of text."""
    body = asked(Operation.TEXT_COMPLETION, prompt=prompt, n=2, best_of=5)
    assert (body.prompts, body.choices, body.input_text_bytes) == (prompts, 2 * prompts, text_bytes)


@pytest.mark.parametrize("prompt", [7, {"a": 1}, ["a", 1], [1, [2]], [["a"]], [None], [True]])
def test_a_prompt_of_another_type_is_refused(prompt: Any) -> None:
    """How many answers it asks for cannot be told."""
    body = json.dumps({"model": "m", "prompt": prompt}).encode()
    assert refused(body, Operation.TEXT_COMPLETION) == ("invalid_type", "prompt")


def test_text_of_messages_and_tools_is_measured_and_images_are_not() -> None:
    """UTF-8 bytes of what the model reads as text."""
    messages = [
        {"role": "system", "content": "ab"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "春"}, {"type": "image_url", "image_url": {"url": "x" * 999}}],
        },
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x" * 999}}, "cd"]},
        {"role": "assistant", "content": None},
    ]
    assert asked(messages=messages).input_text_bytes == 2 + 3 + 2
    calls = [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]
    with_calls = [*messages, {"role": "assistant", "tool_calls": calls}]
    assert asked(messages=with_calls).input_text_bytes == 7 + len(json.dumps(calls))
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert asked(messages=messages, tools=tools).input_text_bytes == 7 + len(json.dumps(tools))


@pytest.mark.parametrize("messages", [[1, 2], [{"content": 7}], [{"content": [7]}]])
def test_odd_messages_are_not_refused(messages: Any) -> None:
    """The upstream answers for them; as text they count as long as they are."""
    assert asked(messages=messages).input_text_bytes == len(json.dumps(messages))


@pytest.mark.parametrize(
    ("value", "text_bytes"),
    [("春x", 4), (["a", "bc"], 3), ([1, 2], 8), ([[1], [2, 3]], 12), (None, 0), ([{"text": "a"}], 15)],
)
def test_embedding_inputs_are_measured(value: Any, text_bytes: int) -> None:
    """Texts, tokens, and parts of other kinds; they make no choices and no stream."""
    body = asked(Operation.EMBEDDINGS, input=value, n=3, stream=True)
    assert (body.input_text_bytes, body.choices, body.stream) == (text_bytes, 1, False)


def test_a_large_body_is_read_in_milliseconds() -> None:
    """A thousand messages and an image of a megabyte: the loop is not held up."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    messages = [{"role": "user", "content": 'say "hi"\n' * 50} for _ in range(1000)]
    body = json.dumps({"model": "m", "messages": [*messages, {"role": "user", "content": [image]}]}).encode()
    best = min(_seconds(body) for _ in range(5))
    assert best < 0.1


def _seconds(body: bytes) -> float:
    start = time.thread_time()  # of work: others may have the machine meanwhile
    parse_body(body, Operation.CHAT)
    return time.thread_time() - start


def verdict(read: Callable[[bytes, Operation], Asked], body: bytes, operation: Operation) -> object:
    """What is understood, or the words of the refusal."""
    try:
        return msgspec.structs.replace(read(body, operation), members=None)
    except ClientError as exc:
        return exc.status, exc.type, exc.code, exc.param, str(exc)


names = st.sampled_from(
    [
        *("model", "messages", "stream", "n", "max_tokens", "max_completion_tokens", "stream_options"),
        *(
            "timings_per_token",
            "tools",
            "functions",
            "response_format",
            "prompt",
            "input",
            "x",
            "\u00e9",
            'a"b',
            "\\",
            "",
        ),
    ]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.sampled_from([2**53, 2**53 + 1, 2**80, 1.0, 1.5, "m", "", "true", "\ud800"])
    | st.text(max_size=3)
)
inner_names = names | st.sampled_from(["content", "tool_calls", "text", "include_usage", "continuous_usage_stats"])
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(inner_names, inner, max_size=3), max_leaves=6
)
flags = st.sampled_from([True, False, True, False, None, 1])
counts = st.sampled_from([1, 2, 5, 128, 0, 129, None, -1, 2**53, 2**53 + 1, 1.0])
parts = st.fixed_dictionaries({"type": st.just("text")}, optional={"text": st.text(max_size=3) | st.none()})
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.just("user")},
        optional={
            "content": st.text(max_size=5) | st.none() | st.lists(st.text(max_size=2) | parts, max_size=2),
            "tool_calls": anything,
        },
    ),
    max_size=3,
)
texts = st.sampled_from(["a", ["a", "b"], [1, 2], [[1], [2, 3]], [], None, [1, "a"], [{"a": 1}], {"a": 1}])
usual: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["m", "\u6625", ""]),
    "messages": messages,
    "stream": flags,
    "n": counts,
    "max_tokens": counts,
    "max_completion_tokens": counts,
    "timings_per_token": flags,
    "prompt": texts,
    "input": texts,
}
option_names = st.sampled_from(["include_usage", "continuous_usage_stats", "chunk_include_usage", "x"])
pairs = st.lists(st.tuples(option_names, flags), max_size=3)
member = names.flatmap(lambda name: st.tuples(st.just(name), usual.get(name, anything) | anything))
members = st.lists(member, max_size=5)  # the same name may come twice
separators = st.sampled_from([(",", ":"), (", ", ": "), (",", ":"), (", ", ": "), (" ,", " : "), (",\n  ", ": ")])


def printed(
    members: list[tuple[str, Any]],
    options: list[tuple[str, Any]] | None,
    separators: tuple[str, str],
    ascii_only: bool,
    around: tuple[str, str],
    model: bool,
) -> bytes:
    """A body as some client might print it; `options` None: it has no `stream_options`."""
    comma, colon = separators
    fields = ['"model"' + colon + '"m"'] if model else []
    for name, value in members:
        value_text = json.dumps(value, separators=separators, ensure_ascii=ascii_only)
        fields.append(json.dumps(name, ensure_ascii=ascii_only) + colon + value_text)
    if options is not None:
        inside = comma.join(json.dumps(name) + colon + json.dumps(value) for name, value in options)
        fields.insert(len(fields) // 2, '"stream_options"' + colon + "{" + inside + "}")
    return (around[0] + "{" + comma.join(fields) + "}" + around[1]).encode("utf-8", "surrogatepass")


bodies = st.builds(
    printed,
    members,
    pairs | st.none(),
    separators,
    st.booleans(),
    st.sampled_from([("", "")] * 6 + [(" ", ""), ("", "\n"), ("\ufeff", ""), ("", "x"), ("", "}")]),
    st.booleans(),
)


@settings(max_examples=600)
@given(bodies, st.sampled_from(list(Operation)))
def test_the_plain_way_and_the_careful_way_are_of_one_mind(body: bytes, operation: Operation) -> None:
    """Whatever a body holds and however it is printed: the same is understood, or refused in the same words."""
    assert verdict(parse_body, body, operation) == verdict(read_carefully, body, operation)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","x":1,"x":1}',  # no room for a duplicate in compact print
        b'{"model": "m","x":1,"x":1}',
        b'{"model":"m","n":1,"":0,"":0}',
        b'{"a":1,"b":2,"c":3,"d":4,"model":"m","a":1}',  # as long as without the duplicate, but spaced
        b'{"model":"m","x":{"y":1},"x":{"y":1}}',
        b'{"model":"m","stream_options":{"include_usage":true,"include_usage":true}}',
        b'{"model": "m", "stream_options": {"include_usage": true, "include_usage": true}}',
        b'{ "model":"m","stream_options":{"x":1,"x":1}}',
    ],
)
def test_no_way_of_printing_hides_a_duplicate(body: bytes) -> None:
    """Length alone would be no proof."""
    assert refused(body)[0] == "duplicate_key"


@pytest.mark.parametrize("style", [{"separators": (",", ":")}, {}], ids=["compact", "spaced"])
def test_an_ordinary_body_is_read_the_plain_way(style: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In both styles that clients print; only a body over the bound has its members looked for."""
    walked: list[bytes] = []

    def walking(body: bytes, *, param: str | None) -> list[Member]:
        walked.append(body)
        return jsonbody.members(body)

    monkeypatch.setattr(request, "_object_members", walking)
    monkeypatch.setattr(request, "read_carefully", None)
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi \u6625"}]}],
        "temperature": 0.7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    small = json.dumps(body, **style).encode()
    assert parse_body(small, Operation.CHAT).asked_for_usage
    assert walked == []
    large = json.dumps({**body, "user": "x" * jsonbody.MAX_PRINTED_BYTES}, **style).encode()
    assert msgspec.structs.replace(parse_body(large, Operation.CHAT), members=None) == parse_body(small, Operation.CHAT)
    assert walked == [large]
