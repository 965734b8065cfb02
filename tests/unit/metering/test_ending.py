"""The end of a stream that a quota cuts off: in the stream's own shape."""

import json
from typing import Any

import pytest

from meter_proxy.metering.ending import failed, stopped
from meter_proxy.usage import Operation, Usage

SAMPLE = {
    "id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1700000000, "model": "gpt-x",
    "system_fingerprint": "fp_1", "service_tier": "default", "obfuscation": "zz",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
}  # fmt: skip
SHARED = {name: SAMPLE[name] for name in ("id", "object", "created", "model", "system_fingerprint", "service_tier")}


def payloads(ending: bytes) -> list[Any]:
    """The data of each event; [DONE] as text. Every event ends in a blank line."""
    assert ending.endswith(b"\n\n")
    data = [event.removeprefix(b"data: ") for event in ending[:-2].split(b"\n\n")]
    return [entry.decode() if entry == b"[DONE]" else json.loads(entry) for entry in data]


def stop(choices: list[int], usage: Usage | None = None, sample: Any = SAMPLE) -> list[Any]:
    return payloads(stopped(Operation.CHAT, json.dumps(sample).encode(), choices, usage))


def test_a_chat_stream_gets_its_finish_and_done() -> None:
    """What all events of the stream have in common, an empty delta, `length`; no usage that nobody asked for."""
    finish, done = stop([0])
    assert finish == {
        **SHARED, "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}],
    }  # fmt: skip
    assert done == "[DONE]"


def test_each_open_choice_is_ended_in_an_event_of_its_own() -> None:
    *finishes, done = stop([0, 2])
    assert [event["choices"][0]["index"] for event in finishes] == [0, 2]
    assert {event["choices"][0]["finish_reason"] for event in finishes} == {"length"}
    assert done == "[DONE]"


def test_the_usage_comes_after_the_finish_in_an_event_without_choices() -> None:
    finish, usage, done = stop([0], Usage(9, 3))
    assert "usage" not in finish
    assert usage == {
        **SHARED, "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }  # fmt: skip
    assert done == "[DONE]"


def test_where_events_carry_a_null_usage_the_finish_does_too() -> None:
    """OpenAI: with include_usage every event but the last has `usage: null`."""
    finish, usage, _ = stop([0], Usage(9, 3), {**SAMPLE, "usage": None})
    assert finish["usage"] is None
    assert usage["usage"]["total_tokens"] == 12


def test_a_running_usage_of_the_first_event_is_not_repeated() -> None:
    finish, _ = stop([0], None, {**SAMPLE, "usage": {"prompt_tokens": 9, "completion_tokens": 1}})
    assert "usage" not in finish


def test_a_completion_stream_has_text() -> None:
    sample = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [{"text": "a"}]}
    finish, _ = payloads(stopped(Operation.TEXT_COMPLETION, json.dumps(sample).encode(), [0], None))
    assert finish == {
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    "sample", [b"", b"{", b"[1]", b'"x"', b"[" * 100_000], ids=["empty", "cut", "list", "text", "deep"]
)
@pytest.mark.parametrize(
    ("operation", "object_"),
    [(Operation.CHAT, "chat.completion.chunk"), (Operation.TEXT_COMPLETION, "text_completion")],
)
def test_without_a_readable_event_the_shape_is_the_dialects(sample: bytes, operation: Operation, object_: str) -> None:
    """Never an exception: the stream must end."""
    finish, done = payloads(stopped(operation, sample, [0], None))
    assert (finish["object"], done) == (object_, "[DONE]")


def test_unknown_counts_are_zero() -> None:
    _, usage, _ = stop([0], Usage(None, None))
    assert usage["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def test_an_error_is_one_event_in_openais_shape_and_done() -> None:
    error, done = payloads(failed('The quota "day" is used up.'))
    assert error == {
        "error": {
            "message": 'The quota "day" is used up.', "type": "insufficient_quota", "param": None,
            "code": "insufficient_quota",
        }
    }  # fmt: skip
    assert done == "[DONE]"
