"""What will be generated for a request: steps, the same ones for the same request and seed.

A step is one event's worth of tokens and happens as a whole: between two steps nothing is half made, so
"generated" and "sent" cannot differ at a hang-up. An event holds 1 to `tokens_per_event` tokens; when it
holds the most, one of them is silent (as servers swallow the tokens of a tool call's syntax), so that
with `tokens_per_event > 1` neither events nor words count tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from random import Random

from meter_proxy.mock_backend.asked import Asked

_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "iris", "jade", "loam", "moss")


class Kind(Enum):
    """What a step's text is."""

    REASONING = "reasoning"
    CONTENT = "content"
    TOOL_NAME = "tool name"
    TOOL_ARGUMENTS = "tool arguments"


@dataclass(frozen=True, slots=True)
class Step:
    """One event's worth of generation for one choice."""

    choice: int
    kind: Kind
    text: str
    tokens: int


def plan(asked: Asked, *, tokens_per_event: int, seed: int) -> Iterator[Step]:
    """The steps of all choices, in the order in which they are generated: the choices take turns."""
    lanes = [_lane(asked, choice, tokens_per_event, Random(seed + choice)) for choice in range(asked.choices)]
    while lanes:
        still_running = []
        for lane in lanes:
            if (step := next(lane, None)) is not None:
                yield step
                still_running.append(lane)
        lanes = still_running


def finish_reason(asked: Asked) -> str:
    """How each choice ends."""
    if asked.tool is not None:
        return "tool_calls"
    return "length" if asked.is_cut_by_limit else "stop"


def _lane(asked: Asked, choice: int, tokens_per_event: int, chance: Random) -> Iterator[Step]:
    """The steps of one choice: reasoning first, then a tool call or content."""
    reasoning_tokens = asked.tokens_per_choice // 2 if asked.reasons else 0
    for text, tokens in _pieces(reasoning_tokens, tokens_per_event, chance):
        yield Step(choice, Kind.REASONING, text, tokens)
    rest_tokens = asked.tokens_per_choice - reasoning_tokens
    if asked.tool is None:
        for text, tokens in _pieces(rest_tokens, tokens_per_event, chance):
            yield Step(choice, Kind.CONTENT, text, tokens)
    elif rest_tokens:
        yield Step(choice, Kind.TOOL_NAME, asked.tool, 1)
        opening, left_tokens = '{"text":"', rest_tokens - 1
        for text, tokens in _pieces(left_tokens, tokens_per_event, chance):
            left_tokens -= tokens
            closing = "" if left_tokens else '"}'
            yield Step(choice, Kind.TOOL_ARGUMENTS, opening + text + closing, tokens)
            opening = ""


def _pieces(total_tokens: int, tokens_per_event: int, chance: Random) -> Iterator[tuple[str, int]]:
    """(text, tokens) of consecutive events; the tokens add up to `total_tokens`."""
    word = chance.randrange(len(_WORDS))
    while total_tokens > 0:
        tokens = min(chance.randint(1, tokens_per_event), total_tokens)
        spoken = tokens - 1 if tokens == tokens_per_event > 1 else tokens
        yield "".join(f"{_WORDS[(word + i) % len(_WORDS)]} " for i in range(spoken)), tokens
        word += spoken
        total_tokens -= tokens
