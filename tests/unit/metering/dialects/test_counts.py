"""One usage object from the wire, or the reason why it is none."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter_proxy.metering.dialects.counts import (
    Counts,
    Fault,
    PlainUsage,
    final_usage,
    read_timings,
    read_usage,
    running_usage,
)
from meter_proxy.metering.dialects.wire import read_answer, read_usage_object
from meter_proxy.usage import Usage


def read(**wire: Any) -> Counts:
    counts = read_usage(wire)
    assert isinstance(counts, Counts)
    return counts


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        ("16", Fault.NOT_A_COUNT),
        (True, Fault.NOT_A_COUNT),
        (False, Fault.NOT_A_COUNT),
        (1.5, Fault.NOT_A_COUNT),
        (float("nan"), Fault.NOT_A_COUNT),
        (float("inf"), Fault.NOT_A_COUNT),
        ([16], Fault.NOT_A_COUNT),
        ({}, Fault.NOT_A_COUNT),
        (-1, Fault.NEGATIVE),
        (-1.0, Fault.NEGATIVE),
        (2**53 + 1, Fault.TOO_LARGE),
        (1e300, Fault.TOO_LARGE),
    ],
)
@pytest.mark.parametrize(
    "name", ["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens"]
)
def test_one_bad_count_makes_the_usage_unusable(name: str, number: Any, fault: Fault) -> None:
    """Never a guess, never a credit."""
    assert read_usage({"prompt_tokens": 1, "completion_tokens": 1, name: number}) is fault


@pytest.mark.parametrize("wire", [None, 0, 7, "x", [16, 5], True])
def test_a_usage_that_is_no_object_is_none(wire: Any) -> None:
    """Whatever it is instead."""
    assert read_usage(wire) is Fault.NOT_AN_OBJECT
    assert read_timings(wire) is Fault.NOT_AN_OBJECT


@pytest.mark.parametrize("wire", [{}, {"prompt_tokens": None}, {"cost": 1}])
def test_a_usage_without_counts_is_none(wire: Any) -> None:
    """Nulls are no counts."""
    assert read_usage(wire) is Fault.NO_COUNTS


def test_counts_may_be_integral_floats_up_to_2_to_the_53() -> None:
    """Lua prints 16.0; 0 is a value."""
    assert read(prompt_tokens=16.0, completion_tokens=0) == Counts(16, 0, None, None, None)
    assert read(prompt_tokens=2**53, completion_tokens=float(2**53)).output_tokens == 2**53


def test_both_styles_of_names_are_read_and_a_zero_of_one_does_not_hide_the_other() -> None:
    """new-api prints the style that was not asked for as 0."""
    assert read(input_tokens=16, output_tokens=5) == Counts(16, 5, None, None, None)
    assert read(prompt_tokens=0, completion_tokens=0, input_tokens=16, output_tokens=5) == Counts(
        16, 5, None, None, None
    )
    assert read(prompt_tokens=16, completion_tokens=5, input_tokens=0, output_tokens=0) == Counts(
        16, 5, None, None, None
    )


@pytest.mark.parametrize(
    "details",
    [
        {"prompt_tokens_details": {"cached_tokens": 4}},
        {"input_tokens_details": {"cached_tokens": 4}},
        {"cached_tokens": 4},
        {"prompt_cache_hit_tokens": 4},
        {"prompt_tokens_details": {"cached_tokens": 0}, "cached_tokens": 4},
        {"prompt_tokens_details": None, "cached_tokens": 4},
        {"prompt_tokens_details": [], "cached_tokens": 4},
    ],
)
def test_cached_input_is_found_where_servers_put_it(details: Any) -> None:
    """In one of two details objects, or in the usage itself."""
    assert read(prompt_tokens=9, completion_tokens=1, **details).cached_input_tokens == 4


def test_a_bad_detail_is_left_out_and_flagged() -> None:
    """It is no reason to lose the counts."""
    counts = read(prompt_tokens=9, completion_tokens=1, cached_tokens="4", reasoning_tokens=-1)
    assert final_usage(counts, None) == (Usage(9, 1, None, None), [Fault.BAD_DETAIL])


@pytest.mark.parametrize(
    ("wire", "usage", "faults"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 4}, Usage(9, 4), []),
        ({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}, Usage(9, 4), []),
        # a total beyond its parts is output that the parts leave out: xAI says why, Gemini does not
        (
            {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 354, "reasoning_tokens": 340},
            Usage(12, 342, None, 340),
            [],
        ),
        ({"prompt_tokens": 7, "completion_tokens": 7, "total_tokens": 39}, Usage(7, 32), []),
        ({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 3}, Usage(9, 4), [Fault.TOTAL_TOO_SMALL]),
        ({"prompt_tokens": 9, "total_tokens": 13}, Usage(9, 4), []),
        ({"completion_tokens": 4, "total_tokens": 13}, Usage(9, 4), []),
        ({"prompt_tokens": 9}, Usage(9, None), [Fault.PARTIAL]),
        ({"completion_tokens": 4}, Usage(None, 4), [Fault.PARTIAL]),
        ({"total_tokens": 13}, Usage(None, None), [Fault.PARTIAL]),
        ({"prompt_tokens": 9, "completion_tokens": 4, "cached_tokens": 10}, Usage(9, 4, 9), [Fault.CACHED_OVER_INPUT]),
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "reasoning_tokens": 5},
            Usage(9, 4, None, 4),
            [Fault.REASONING_OVER_OUTPUT],
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "cached_tokens": 9, "reasoning_tokens": 4},
            Usage(9, 4, 9, 4),
            [],
        ),
    ],
)
def test_final_usage(wire: Any, usage: Usage, faults: list[Fault]) -> None:
    """Derived where it can be, clamped where it must be, flagged where it is odd."""
    assert final_usage(read(**wire), None) == (usage, faults)


def test_an_absent_output_count_of_embeddings_is_zero() -> None:
    """Nothing is generated there."""
    assert final_usage(read(prompt_tokens=8, total_tokens=8), 0) == (Usage(8, 0), [])
    assert final_usage(read(prompt_tokens=8), 0) == (Usage(8, 0), [])


@pytest.mark.parametrize(
    ("wire", "output_tokens"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}, 4),
        ({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 36}, None),
        ({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 36, "reasoning_tokens": 23}, 27),
        ({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 36, "reasoning_tokens": 22}, None),
        ({"prompt_tokens": 9}, None),
    ],
)
def test_a_running_total_is_trusted_only_if_its_parts_explain_it(wire: Any, output_tokens: int | None) -> None:
    """Gemini's totals jump ahead in mid-stream."""
    assert running_usage(read(**wire)).output_tokens == output_tokens


def test_timings_of_llamacpp_count_the_cached_input_apart() -> None:
    """prompt_n is only what was not in the cache."""
    assert read_timings({"prompt_n": 1, "cache_n": 12, "predicted_n": 2, "prompt_ms": 5.1}) == Counts(
        13, 2, 12, None, None
    )
    assert read_timings({"predicted_n": 2}) == Counts(None, 2, None, None, None)
    assert read_timings({"prompt_n": 1}) is Fault.NO_COUNTS
    assert read_timings({"prompt_n": 1, "predicted_n": -2}) is Fault.NEGATIVE


wire_counts = st.sampled_from([0, 1, 5, 9, None, 2**53]) | st.sampled_from([-1, 2**53 + 1, 1.0, 1.5, True, "1", [], {}])
likely_counts = st.sampled_from([0, 1, 5, 9, None])
details = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("cached_tokens", "reasoning_tokens", "audio_tokens"), likely_counts)
)
names = (
    *("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens"),
    *("cached_tokens", "reasoning_tokens", "prompt_cache_hit_tokens", "cost"),
)
details_names = (
    *("prompt_tokens_details", "completion_tokens_details"),
    *("input_tokens_details", "output_tokens_details"),
)
wire_usages = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(names, likely_counts | likely_counts | wire_counts),
        **dict.fromkeys(details_names, details | details | st.none() | wire_counts),
    },
)


@settings(max_examples=1000)
@given(wire_usages)
def test_a_usage_is_the_same_by_its_types_and_read_count_by_count(wire: dict[str, Any]) -> None:
    """By itself and in an answer, whatever is wrong with it."""
    text = json.dumps(wire).encode()
    answer = read_answer(b'{"choices":[],"usage":%b}' % text)
    assert answer is not None
    assert read_usage(read_usage_object(text)) == read_usage(answer.usage) == read_usage(wire)


def test_an_ordinary_usage_is_read_by_its_types() -> None:
    """No dictionary is made of it."""
    answer = read_answer(b'{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"cost":0.5,"x":null}}')
    assert answer is not None and type(answer.usage) is PlainUsage
    assert read_usage(answer.usage) == Counts(9, 4, None, None, None)
