"""Usage x price -> integer nano-dollars, exact: rationals, rounded half up once per exchange."""

from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from math import lcm
from typing import NamedTuple

import msgspec

from meter_proxy.usage import Usage

_NANO_USD_PER_USD_PER_MILLION = 1000  # USD per million tokens x 1e9 nano-USD / 1e6 tokens


class Rates(NamedTuple):
    """Nano-dollars per token, as integers over one denominator."""

    input: int
    cached_input: int
    output: int
    denominator: int


class TokenPrice(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """USD per million tokens. `cached_input` None: cached input costs what input costs."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None

    @cached_property
    def rates(self) -> Rates:
        """The same in integers. Once for each price: fractions cost 50 us."""
        cached_price = self.input if self.cached_input is None else self.cached_input
        exact = [Fraction(each) * _NANO_USD_PER_USD_PER_MILLION for each in (self.input, cached_price, self.output)]
        denominator = lcm(*(each.denominator for each in exact))
        in_, cached, out = (each.numerator * (denominator // each.denominator) for each in exact)
        return Rates(in_, cached, out, denominator)


def cost_nano_usd(usage: Usage, price: TokenPrice) -> int:
    """What this usage costs, in nano-dollars; counts that are not reported cost nothing.

    (input - cached) x input price + cached x cached price + output x output price. Cached input counts as part of
    the input, and at most as all of it.
    """
    input_rate, cached_rate, output_rate, denominator = price.rates
    input_tokens = usage.input_tokens or 0
    cost = input_tokens * input_rate + (usage.output_tokens or 0) * output_rate
    if usage.cached_input_tokens:
        cost += min(usage.cached_input_tokens, input_tokens) * (cached_rate - input_rate)
    return (2 * cost + denominator) // (2 * denominator)  # rounded half up


def ceil_rates(price: TokenPrice) -> tuple[int, int]:
    """Nano-dollars per input and per output token, rounded up: no usage costs more than its tokens at these."""
    rates = price.rates
    dearest_input = max(rates.input, rates.cached_input)
    return -(-dearest_input // rates.denominator), -(-rates.output // rates.denominator)
