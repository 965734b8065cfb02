"""BodyMeter and NullMeter: plain answers."""

import json
from typing import Any

import pytest

from meter_proxy.metering import body
from meter_proxy.metering.body import BodyMeter, NullMeter
from meter_proxy.metering.request import Asked
from meter_proxy.metering.tally import NOTHING
from meter_proxy.usage import Basis, Operation, Usage


def metered(answer: Any, operation: Operation = Operation.CHAT, choices: int = 1) -> BodyMeter:
    meter = BodyMeter(operation, asked=Asked(model="m", choices=choices))
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    assert meter.feed(data[:5]) + meter.feed(data[5:]) == data
    assert meter.usage_so_far().basis is Basis.NONE and not meter.done
    assert meter.finish() == b""
    return meter


def message(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m-1", "choices": [{"index": 0, "message": {"role": "assistant", "content": content}}], **more}


USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def test_the_usage_in_a_body_is_reported_when_it_is_whole() -> None:
    """And the answer is complete then."""
    meter = metered(message("hi", usage=USAGE))
    assert meter.usage_so_far().usage == Usage(9, 4)
    assert meter.usage_so_far().basis is Basis.REPORTED
    assert meter.done and meter.finished and meter.has_usage and not meter.failed and meter.bad_usage == []
    assert meter.response_model == "m-1"


def test_several_choices_share_one_usage() -> None:
    """It is the sum already."""
    answer = {"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}], "usage": USAGE}
    assert metered(answer, choices=2).usage_so_far().usage == Usage(9, 4)


def test_an_explicit_zero_is_zero() -> None:
    """Zero is a value, for an empty answer and for none."""
    reading = metered(message("", usage={"prompt_tokens": 9, "completion_tokens": 0})).usage_so_far()
    assert (reading.usage, reading.basis) == (Usage(9, 0), Basis.REPORTED)


@pytest.mark.parametrize(
    ("usage", "reason"),
    [
        (None, "missing"),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, "placeholder"),
        ({"prompt_tokens": "9"}, "not_a_count"),
        ([], "not_an_object"),
    ],
)
def test_text_without_a_usage_counts_as_one_event_and_is_flagged(usage: Any, reason: str) -> None:
    """Never silently 0."""
    meter = metered(message("hi", usage=usage))
    assert (meter.usage_so_far().usage.output_tokens, meter.usage_so_far().basis) == (1, Basis.COUNTED)
    assert meter.bad_usage == [reason]


def test_embeddings_without_a_usage_are_flagged_and_with_one_have_no_output() -> None:
    """There is no text to count."""
    vectors = {"data": [{"embedding": [0.1, 0.2], "index": 0}]}
    reading = metered(
        {**vectors, "usage": {"prompt_tokens": 8, "total_tokens": 8}}, Operation.EMBEDDINGS
    ).usage_so_far()
    assert (reading.usage, reading.basis) == (Usage(8, 0), Basis.REPORTED)
    meter = metered(vectors, Operation.EMBEDDINGS)
    assert meter.usage_so_far().basis is Basis.NONE
    assert meter.bad_usage == ["missing"]


@pytest.mark.parametrize(
    "answer", [{"error": {"message": "x"}, "usage": USAGE}, {"choices": None, "base_resp": {"status_code": 1}}]
)
def test_an_error_in_a_200_bills_nothing(answer: Any) -> None:
    """Whatever else it holds."""
    meter = metered(answer)
    assert meter.failed and not meter.finished
    assert meter.usage_so_far().basis is Basis.NONE


@pytest.mark.parametrize(
    "answer", [b"<html>", b'{"choices":[', b"[1,2]", b"7", b'{"a":1}{"b":2}', b"{" * 100_000, b"[" * 100_000]
)
def test_what_is_no_json_object_is_flagged(answer: bytes) -> None:
    """Half a body is no evidence, and depth no danger."""
    meter = metered(answer)
    assert meter.bad_usage == ["unreadable"]
    assert meter.usage_so_far().basis is Basis.NONE and not meter.done


def test_an_empty_body_is_nothing() -> None:
    """Not even odd."""
    meter = BodyMeter(Operation.CHAT, asked=Asked(model="m"))
    meter.feed(b" \n")
    meter.finish()
    assert meter.bad_usage == [] and meter.usage_so_far().basis is Basis.NONE


def test_a_body_over_the_bound_passes_unmetered_and_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded."""
    monkeypatch.setattr(body, "MAX_BODY_BYTES", 100)
    data = json.dumps(message("x" * 200, usage=USAGE)).encode()
    meter = metered(data)
    assert meter.bad_usage == ["body_too_big"]
    assert meter.usage_so_far().basis is Basis.NONE


def test_an_error_status_bills_nothing() -> None:
    """And passes as it is."""
    meter = NullMeter()
    assert meter.feed(b'{"usage":{"prompt_tokens":1}}') == b'{"usage":{"prompt_tokens":1}}'
    assert meter.finish() == b""
    assert meter.usage_so_far() == NOTHING
