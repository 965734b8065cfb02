"""Usage x price -> integer nano-dollars, exact: rationals, rounded half up once per exchange."""

from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import NamedTuple

from meter_proxy.usage import Usage

_NANO_USD_PER_USD_PER_MILLION = 1000  # USD per million tokens x 1e9 nano-USD / 1e6 tokens


class TokenPrice(NamedTuple):
    """USD per million tokens. `cached_input` None: cached input costs what input costs."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None


def cost_nano_usd(usage: Usage, price: TokenPrice) -> int:
    """What this usage costs, in nano-dollars; counts that are not reported cost nothing.

    (input - cached) x input price + cached x cached price + output x output price. Cached input counts as part of
    the input, and at most as all of it.
    """
    input_tokens = usage.input_tokens or 0
    cached_tokens = min(usage.cached_input_tokens or 0, input_tokens)
    cached_price = price.input if price.cached_input is None else price.cached_input
    cost = (
        (input_tokens - cached_tokens) * Fraction(price.input)
        + cached_tokens * Fraction(cached_price)
        + (usage.output_tokens or 0) * Fraction(price.output)
    )
    return floor(cost * _NANO_USD_PER_USD_PER_MILLION + Fraction(1, 2))
