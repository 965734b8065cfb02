"""How much an exchange must be granted before it may begin, and whether more comes later.

`hard`: all or nothing, an upper bound of what the exchange can use. `slice` (streams): the input, estimated, must fit
whole; of the output, a slice, renewed as the stream flows. What is reserved and not used is released at settlement.

The upper bound of input holds for text: no token is less than a byte. Images and audio have no bound that we know.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from meter_proxy.quota.charge import Charge, Unit
from meter_proxy.quota.rules import Rule
from meter_proxy.quota.windows import Window, window_at

SLICE_TOKENS = 512  # CONTRACT §2
PLAIN_TOKENS = 4_096  # per choice of a plain call whose output nobody bounds
ESTIMATE_BYTES = 4  # of text per token, as in `input_basis: estimated`
TEMPLATE_TOKENS = 16  # that a chat template may add to each message, at most ...
CONVERSATION_TOKENS = 32  # ... and to the whole


class Asked(Protocol):
    """What a request says about its size; `metering.request.Asked` is it."""

    @property
    def stream(self) -> bool:
        """Whether the answer comes in pieces."""

    @property
    def choices(self) -> int:
        """n x prompts."""

    @property
    def max_output_tokens(self) -> int | None:
        """Per choice, the client's."""

    @property
    def input_text_bytes(self) -> int:
        """Of all texts."""

    @property
    def texts(self) -> int:
        """Messages or prompts."""


class Rates(NamedTuple):
    """Nano-dollars per token, rounded up: what is reserved is never less than what is billed."""

    input: int
    output: int


FREE = Rates(0, 0)


class Want(msgspec.Struct, gc=False):
    """What an exchange asks of all its counters. All is granted, or nothing.

    A struct, and amounts without a name each: one is made for every request, within 1 us.
    """

    amounts: list[int]  # of each counter, if `most` is granted
    eaches: tuple[int, ...]  # of each counter, per output token granted; 0: output does not count, or all is asked for
    most: int  # output tokens: granted is min(most, what fits); 0 where no counter grows with them
    bound: int | None  # all the output there can be
    send_max_tokens: int | None  # per choice, to be sent upstream because the client gave none
    input_tokens: int  # what `amounts` were made with
    renews: bool  # more is asked for as the stream flows
    choices: int

    @property
    def least(self) -> int:
        """Output tokens below which nothing is granted."""
        return 1 if self.most else 0

    def amounts_for(self, tokens: int) -> list[int]:
        """Of each counter, if so many output tokens are granted: what it asks up front is that for 0."""
        if tokens == self.most:
            return self.amounts
        less = self.most - tokens
        return [amount - each * less for amount, each in zip(self.amounts, self.eaches, strict=True)]


class Terms:
    """The rules under which one key asks for one model, in their present windows: what all such calls have in common.

    They hold from `began_at` until `ends_at` (Unix seconds, Redis'): then a window ends.
    """

    __slots__ = (
        "_all_hard",
        "_eaches",
        "_grows",
        "_max_output_tokens",
        "_rows",
        "_some_hard",
        "began_at",
        "charges",
        "ends_at",
        "input_eaches",
        "rules",
        "windows",
    )

    def __init__(self, rules: Sequence[Rule], rates: Rates, max_output_tokens: int | None, now: float) -> None:
        """`rules`: those that apply to the model; `max_output_tokens`: per choice, the model's."""
        self.rules = tuple(rules)
        self.windows: tuple[Window, ...] = tuple(window_at(rule.per, rule.zone, now) for rule in rules)
        self.began_at = max((window.began_at for window in self.windows), default=0)
        self.ends_at = min((window.ends_at for window in self.windows if window.ends_at), default=math.inf)
        self.charges = tuple(  # to which counters an exchange belongs
            Charge(rule.holder, rule.id, window.id, rule.unit, window.ends_at)
            for rule, window in zip(rules, self.windows, strict=True)
        )
        self._rows = [_row(rule.unit, rates) for rule in rules]
        self.input_eaches = tuple(input_each for _, input_each, _ in self._rows)
        self._eaches = tuple(each for _, _, each in self._rows)
        self._all_hard = (0,) * len(self._rows)
        self._grows = any(self._eaches)
        self._some_hard = any(rule.hard for rule in rules)
        self._max_output_tokens = max_output_tokens

    def want(self, asked: Asked, *, has_output: bool = True) -> Want:
        """What a call needs to begin. `has_output`: embeddings have none."""
        choices, own_bound = asked.choices, asked.max_output_tokens
        per_choice = self._max_output_tokens if own_bound is None else own_bound
        bound: int | None = 0
        if has_output:
            bound = per_choice * choices if per_choice is not None else None
        if asked.stream:
            return self._stream_want(asked, bound, per_choice if own_bound is None and has_output else None)
        upper = _upper(asked)
        if bound is None:
            most = output = PLAIN_TOKENS * choices if self._grows else 0
            eaches, sent = self._eaches, None
        else:
            most, output, eaches = 0, bound, self._all_hard
            sent = per_choice if own_bound is None and has_output and self._grows else None
        amounts = [up_front + input_each * upper + each * output for up_front, input_each, each in self._rows]
        return Want(amounts, eaches, most, bound, sent, upper, False, choices)

    def _stream_want(self, asked: Asked, bound: int | None, sent: int | None) -> Want:
        estimate = -(-asked.input_text_bytes // ESTIMATE_BYTES)
        if self._some_hard:
            return self._mixed_want(asked, bound, sent, estimate)
        most = 0
        if self._grows:
            most = SLICE_TOKENS if bound is None or bound > SLICE_TOKENS else bound
        amounts = [up_front + input_each * estimate + each * most for up_front, input_each, each in self._rows]
        return Want(amounts, self._eaches, most, bound, None, estimate, most > 0, asked.choices)

    def _mixed_want(self, asked: Asked, bound: int | None, sent: int | None, estimate: int) -> Want:
        """Of a stream, where some rules, or all, are hard."""
        upper, is_hard = _upper(asked), [rule.hard and bound is not None for rule in self.rules]
        eaches = tuple(0 if hard else each for each, hard in zip(self._eaches, is_hard, strict=True))
        most = 0
        if any(eaches):
            most = SLICE_TOKENS if bound is None else min(SLICE_TOKENS, bound)
        amounts = []
        for rule, hard, (up_front, input_each, each) in zip(self.rules, is_hard, self._rows, strict=True):
            output = bound if hard and bound is not None else most
            amounts.append(up_front + input_each * (upper if rule.hard else estimate) + each * output)
        held_whole = any(hard and each for each, hard in zip(self._eaches, is_hard, strict=True))
        return Want(amounts, eaches, most, bound, sent if held_whole else None, estimate, most > 0, asked.choices)


def _upper(asked: Asked) -> int:
    return asked.input_text_bytes + TEMPLATE_TOKENS * asked.texts + CONVERSATION_TOKENS


def _row(unit: Unit, rates: Rates) -> tuple[int, int, int]:
    """What a call owes a counter: up front, per input token, per output token."""
    match unit:
        case Unit.TOKENS:
            return 0, 1, 1
        case Unit.INPUT_TOKENS:
            return 0, 1, 0
        case Unit.OUTPUT_TOKENS:
            return 0, 0, 1
        case Unit.COST_USD:
            return 0, rates.input, rates.output
        case Unit.REQUESTS | Unit.CONCURRENT:
            return 1, 0, 0
