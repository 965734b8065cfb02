"""What will be generated."""

import json
from collections import Counter

import pytest

from meter_proxy.mock_backend import plan as planning
from meter_proxy.mock_backend.asked import Asked
from meter_proxy.mock_backend.plan import Kind, Step, finish_reason


def asked(tokens: int = 40, *, choices: int = 1, tool: str | None = None, reasons: bool = False) -> Asked:
    return Asked(
        operation="chat",
        model="m",
        prompt_tokens=(3,),
        choices_per_prompt=choices,
        tokens_per_choice=tokens,
        tool=tool,
        reasons=reasons,
    )


def plan(asked: Asked, *, tokens_per_event: int, seed: int) -> list[Step]:
    return list(planning.plan(asked, tokens_per_event=tokens_per_event, seed=seed))


@pytest.mark.parametrize("tokens_per_event", [1, 3, 8])
@pytest.mark.parametrize("tokens", [0, 1, 2, 41])
def test_tokens_add_up_per_choice(tokens: int, tokens_per_event: int) -> None:
    """Every choice gets exactly its tokens, however they fall into events."""
    counts: Counter[int] = Counter()
    for step in plan(asked(tokens, choices=3), tokens_per_event=tokens_per_event, seed=1):
        assert 1 <= step.tokens <= tokens_per_event
        counts[step.choice] += step.tokens
    assert counts == (Counter({0: tokens, 1: tokens, 2: tokens}) if tokens else Counter())


def test_one_token_per_event_makes_counting_exact() -> None:
    """Events, words and tokens are the same number then."""
    steps = plan(asked(), tokens_per_event=1, seed=0)
    assert len(steps) == 40
    assert len("".join(step.text for step in steps).split()) == 40


def test_events_and_words_do_not_count_tokens_otherwise() -> None:
    """With several tokens per event some are silent: a meter that counts events or words is caught."""
    steps = plan(asked(), tokens_per_event=3, seed=0)
    words = len("".join(step.text for step in steps).split())
    assert len(steps) < words < 40
    assert all(step.text for step in steps)


def test_same_seed_same_plan() -> None:
    """Deterministic; another seed gives another plan."""
    assert plan(asked(), tokens_per_event=3, seed=7) == plan(asked(), tokens_per_event=3, seed=7)
    assert plan(asked(), tokens_per_event=3, seed=7) != plan(asked(), tokens_per_event=3, seed=8)


def test_choices_take_turns() -> None:
    """The events of several choices are interleaved, as servers send them."""
    choices = [step.choice for step in plan(asked(6, choices=2), tokens_per_event=1, seed=0)]
    assert choices == [0, 1] * 6


def test_reasoning_comes_first_and_is_half() -> None:
    """The first half of the tokens is reasoning, the rest content."""
    steps = plan(asked(10, reasons=True), tokens_per_event=1, seed=0)
    assert [step.kind for step in steps] == [Kind.REASONING] * 5 + [Kind.CONTENT] * 5


@pytest.mark.parametrize("tokens", [2, 3, 24])
def test_a_tool_call_has_whole_arguments(tokens: int) -> None:
    """A name, then pieces that together are JSON."""
    name, *arguments = plan(asked(tokens, tool="look_up"), tokens_per_event=3, seed=0)
    assert (name.kind, name.text) == (Kind.TOOL_NAME, "look_up")
    assert {step.kind for step in arguments} == {Kind.TOOL_ARGUMENTS}
    assert set(json.loads("".join(step.text for step in arguments))) == {"text"}
    assert finish_reason(asked(tool="look_up")) == "tool_calls"
