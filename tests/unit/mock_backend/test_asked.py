"""Understanding a request."""

import json
from typing import Any

import pytest
from multidict import CIMultiDict

from meter_proxy.mock_backend.asked import DEFAULT_TOKENS, Asked, BadRequest, Fault, FaultKind, understand

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say one word"}]


def chat(headers: dict[str, str] | None = None, **members: Any) -> Asked:
    body = json.dumps({"model": "m", "messages": MESSAGES, **members}).encode()
    return understand("chat", body, CIMultiDict(headers or {}))


def test_prompt_tokens_are_words_and_one_for_each_frame() -> None:
    """The mock's own rule, deterministic and unlike the meter's."""
    assert chat().prompt_tokens == (2 + 1 + 3 + 1,)
    parts = [{"type": "text", "text": "a b"}, {"type": "image_url", "image_url": {"url": "data:..."}}]
    assert chat(messages=[{"role": "user", "content": parts}]).prompt_tokens == (3,)


@pytest.mark.parametrize(
    ("prompt", "tokens"), [("a b", (3,)), (["a", "a b"], (2, 3)), ([1, 2, 3], (3,)), ([[1, 2], [3]], (2, 1))]
)
def test_prompts_come_in_four_forms(prompt: object, tokens: tuple[int, ...]) -> None:
    """A text, texts, token ids, lists of token ids: one entry per prompt, choices for each."""
    asked = understand("text_completion", json.dumps({"model": "m", "prompt": prompt, "n": 2}).encode(), CIMultiDict())
    assert asked.prompt_tokens == tokens
    assert asked.choices == 2 * len(tokens)


def test_limit_is_the_number_of_tokens() -> None:
    """max_completion_tokens, else max_tokens, else the default; x-mock-tokens above all."""
    assert chat().tokens_per_choice == DEFAULT_TOKENS
    assert not chat().is_cut_by_limit
    assert chat(max_tokens=5).tokens_per_choice == 5
    assert chat(max_tokens=5, max_completion_tokens=7).tokens_per_choice == 7
    assert chat({"X-Mock-Tokens": "9"}, max_tokens=5).tokens_per_choice == 9


def test_wishes_come_as_headers() -> None:
    """Status, delay and fault are read from x-mock-*."""
    asked = chat({"x-mock-status": "503", "x-mock-first-byte-ms": "250", "x-mock-fault": "reset@3"})
    assert (asked.status, asked.first_byte_delay_s) == (503, 0.25)
    assert asked.fault == Fault(FaultKind.RESET, 3)


def test_tool_is_called_once_and_never_when_forbidden() -> None:
    """The first tool, unless tool_choice is none or the tool has answered already."""
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    assert chat(tools=tools).tool == "look_up"
    assert chat(tools=tools, tool_choice="none").tool is None
    assert chat(tools=tools, messages=[*MESSAGES, {"role": "tool", "content": "42"}]).tool is None


@pytest.mark.parametrize(
    "members",
    [
        {"model": None},
        {"messages": []},
        {"messages": "hello"},
        {"max_tokens": "5"},
        {"max_tokens": -1},
        {"n": True},
        {"n": 100_000},
        {"stream_options": "yes"},
        {"tools": [{}]},
    ],
)
def test_nonsense_is_a_bad_request(members: dict[str, Any]) -> None:
    """Each wrong member is refused with its name."""
    with pytest.raises(BadRequest) as refused:
        chat(**members)
    assert refused.value.param == next(iter(members))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff"])
def test_a_body_that_is_no_object_is_a_bad_request(body: bytes) -> None:
    """Also bytes that are no UTF-8."""
    with pytest.raises(BadRequest):
        understand("chat", body, CIMultiDict())


@pytest.mark.parametrize(
    "header", [{"x-mock-fault": "explode@1"}, {"x-mock-tokens": "many"}, {"x-mock-fault": "reset@x"}]
)
def test_a_mistyped_wish_is_a_bad_request(header: dict[str, str]) -> None:
    """A chaos test with a typo must not pass quietly."""
    with pytest.raises(BadRequest, match="x-mock"):
        chat(header)
