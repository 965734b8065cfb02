"""The short, seeded form of the soak: each fault alone, then all of them."""

import pytest

from tests.soak.chaos import run


@pytest.mark.parametrize(
    ("faults", "rounds", "seed"),
    [
        ("workers", 5, 3),
        ("redis", 6, 5),
        ("workers,redis,network,hang-ups", 12, 7),
    ],
)
async def test_the_books_agree_whatever_happens(faults: str, rounds: int, seed: int) -> None:
    """Delivered <= billed <= generated for every exchange, whole ones as reported; audit finds no difference.

    To repeat one: python -m tests.soak.chaos --faults FAULTS --rounds ROUNDS --seed SEED
    """
    result = await run(rounds, seed, frozenset(faults.split(",")))
    assert not result.wrong
    assert result.differences == 0
    assert result.exchanges > 50
