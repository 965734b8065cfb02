"""parse_body: what is understood, and what is refused."""

import json
import time
from typing import Any

import pytest

from meter_proxy.errors import ClientError
from meter_proxy.metering.request import Asked, parse_body
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
    start = time.perf_counter()
    parse_body(body, Operation.CHAT)
    return time.perf_counter() - start
