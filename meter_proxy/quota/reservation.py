"""How much an exchange must be granted before it may begin, and whether more comes later.

`hard`: all or nothing, an upper bound of what the exchange can use. `slice` (streams): the input, estimated, must fit
whole; of the output, a slice, renewed as the stream flows. What is reserved and not used is released at settlement.

The upper bound of input holds for text: no token is less than a byte. Images and audio have no bound that we know.
"""

from collections.abc import Sequence
from typing import NamedTuple

from meter_proxy.quota.charge import Unit
from meter_proxy.quota.rules import Rule
from meter_proxy.quota.windows import Window, window_at

SLICE_TOKENS = 512  # CONTRACT §2
PLAIN_TOKENS = 4_096  # per choice of a plain call whose output nobody bounds
ESTIMATE_BYTES = 4  # of text per token, as in `input_basis: estimated`
TEMPLATE_TOKENS = 16  # that a chat template may add to each message, at most ...
CONVERSATION_TOKENS = 32  # ... and to the whole


class Asked(NamedTuple):
    """What a request says about its size."""

    stream: bool
    choices: int  # n x prompts
    max_output_tokens: int | None  # per choice, the client's
    model_max_output_tokens: int | None  # per choice, the model's
    has_output: bool  # embeddings have none
    input_text_bytes: int
    texts: int  # messages or prompts


class Rates(NamedTuple):
    """Nano-dollars per token, rounded up: what is reserved is never less than what is billed."""

    input: int
    output: int


FREE = Rates(0, 0)


class Claim(NamedTuple):
    """What an exchange asks of one counter: `base` up front, `each` per output token granted."""

    rule: Rule
    window: Window
    base: int
    each: int  # 0: output does not count, or all of it is in `base`
    input_each: int  # the part of `base` that is due to an input token


class Want(NamedTuple):
    """What an exchange asks of all its counters. All is granted, or nothing."""

    claims: tuple[Claim, ...]
    least: int  # output tokens; 0 where no claim has an `each`
    most: int  # granted is min(most, what fits)
    bound: int | None  # all the output there can be
    send_max_tokens: int | None  # per choice, to be sent upstream because the client gave none
    input_tokens: int  # what `base` was made with
    renews: bool  # more is asked for as the stream flows
    choices: int


def want_for(rules: Sequence[Rule], asked: Asked, rates: Rates, now: float) -> Want:
    """What an exchange under `rules` (those that apply to its model) needs to begin at `now` (Unix seconds, Redis')."""
    per_choice = asked.max_output_tokens
    if per_choice is None:
        per_choice = asked.model_max_output_tokens
    bound: int | None = 0 if not asked.has_output else None
    if asked.has_output and per_choice is not None:
        bound = per_choice * asked.choices
    estimate = -(-asked.input_text_bytes // ESTIMATE_BYTES)
    upper = asked.input_text_bytes + TEMPLATE_TOKENS * asked.texts + CONVERSATION_TOKENS

    claims: list[Claim] = []
    is_hard = False
    for rule in rules:
        hard = rule.hard or not asked.stream
        claim = _claim(rule, window_at(rule.per, rule.zone, now), upper if hard else estimate, rates)
        if hard and claim.each and bound is not None:
            claim = claim._replace(base=claim.base + claim.each * bound, each=0)
            is_hard = True
        claims.append(claim)

    grows = any(claim.each for claim in claims)
    most = 0
    if grows:
        most = SLICE_TOKENS if asked.stream else PLAIN_TOKENS * asked.choices
        most = most if bound is None else min(most, bound)
    return Want(
        claims=tuple(claims),
        least=min(1, most),
        most=most,
        bound=bound,
        send_max_tokens=per_choice if is_hard and asked.max_output_tokens is None and asked.has_output else None,
        input_tokens=estimate if asked.stream else upper,
        renews=grows and asked.stream and most > 0,
        choices=asked.choices,
    )


def _claim(rule: Rule, window: Window, input_tokens: int, rates: Rates) -> Claim:
    match rule.unit:
        case Unit.TOKENS:
            return Claim(rule, window, input_tokens, 1, 1)
        case Unit.INPUT_TOKENS:
            return Claim(rule, window, input_tokens, 0, 1)
        case Unit.OUTPUT_TOKENS:
            return Claim(rule, window, 0, 1, 0)
        case Unit.COST_USD:
            return Claim(rule, window, input_tokens * rates.input, rates.output, rates.input)
        case Unit.REQUESTS | Unit.CONCURRENT:
            return Claim(rule, window, 1, 0, 0)
