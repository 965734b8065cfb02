"""Usage x price -> integer nano-dollars, exact: rationals, rounded half up once per exchange."""

from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from math import lcm
from typing import NamedTuple

from meter_proxy.usage import Usage

_NANO_USD_PER_USD_PER_MILLION = 1000  # USD per million tokens x 1e9 nano-USD / 1e6 tokens


class TokenPrice(NamedTuple):
    """USD per million tokens. `cached_input` None: cached input costs what input costs."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None


class _Rates(NamedTuple):
    """Nano-dollars per token, as integers over one denominator."""

    input: int
    cached_input: int
    output: int
    denominator: int


def cost_nano_usd(usage: Usage, price: TokenPrice) -> int:
    """What this usage costs, in nano-dollars; counts that are not reported cost nothing.

    (input - cached) x input price + cached x cached price + output x output price. Cached input counts as part of
    the input, and at most as all of it.
    """
    rates = _rates(price)
    input_tokens = usage.input_tokens or 0
    cached_tokens = min(usage.cached_input_tokens or 0, input_tokens)
    cost = (
        (input_tokens - cached_tokens) * rates.input
        + cached_tokens * rates.cached_input
        + (usage.output_tokens or 0) * rates.output
    )
    return (2 * cost + rates.denominator) // (2 * rates.denominator)  # rounded half up


def ceil_rates(price: TokenPrice) -> tuple[int, int]:
    """Nano-dollars per input and per output token, rounded up: no usage costs more than its tokens at these."""
    rates = _rates(price)
    dearest_input = max(rates.input, rates.cached_input)
    return -(-dearest_input // rates.denominator), -(-rates.output // rates.denominator)


@lru_cache(maxsize=1024)  # one entry per price in the configuration: fractions cost 50 us an exchange
def _rates(price: TokenPrice) -> _Rates:
    cached_price = price.input if price.cached_input is None else price.cached_input
    exact = [Fraction(each) * _NANO_USD_PER_USD_PER_MILLION for each in (price.input, cached_price, price.output)]
    denominator = lcm(*(each.denominator for each in exact))
    in_, cached, out = (each.numerator * (denominator // each.denominator) for each in exact)
    return _Rates(in_, cached, out, denominator)
