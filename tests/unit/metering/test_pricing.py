"""What usage costs, to the nano-dollar."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_proxy.metering.pricing import TokenPrice, cost_nano_usd
from meter_proxy.usage import Usage

GPT = TokenPrice(Decimal("2.50"), Decimal("10.00"), Decimal("1.25"))


@pytest.mark.parametrize(
    ("usage", "price", "cost"),
    [
        (Usage(1_000_000, 0), GPT, 2_500_000_000),
        (Usage(16, 2, 4, 0), GPT, 12 * 2500 + 4 * 1250 + 2 * 10_000),
        (Usage(16, 2, 4), TokenPrice(Decimal("2.50"), Decimal("10.00")), 16 * 2500 + 2 * 10_000),
        (Usage(16, 2, 99), GPT, 16 * 1250 + 2 * 10_000),
        (Usage(1, 0), TokenPrice(Decimal("0.0005"), Decimal(0)), 1),
        (Usage(1, 0), TokenPrice(Decimal("0.00049"), Decimal(0)), 0),
        (Usage(1, 1), TokenPrice(Decimal("0.0004"), Decimal("0.0004")), 1),
        (Usage(), GPT, 0),
        (Usage(None, 3, 5), GPT, 30_000),
        (Usage(2**53, 2**53, 0), GPT, 2**53 * 12_500),
    ],
)
def test_cost(usage: Usage, price: TokenPrice, cost: int) -> None:
    """Rounded half up once, over the sum; cached input at its own price, and never more of it than input."""
    assert cost_nano_usd(usage, price) == cost


prices = st.decimals(min_value=0, max_value=1000, places=6)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9), prices, prices, prices)
def test_cost_is_within_half_a_nano_dollar_of_the_exact_one(
    fresh: int, cached: int, output: int, price: Decimal, cached_price: Decimal, output_price: Decimal
) -> None:
    """Whatever the prices are."""
    exact = (fresh * Fraction(price) + cached * Fraction(cached_price) + output * Fraction(output_price)) * 1000
    cost = cost_nano_usd(Usage(fresh + cached, output, cached), TokenPrice(price, output_price, cached_price))
    assert -Fraction(1, 2) < cost - exact <= Fraction(1, 2)
