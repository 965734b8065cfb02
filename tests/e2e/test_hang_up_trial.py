"""Hang-ups at random events, on the real processes: nobody pays for more, or gets more, than was generated."""

import pytest

from tests.e2e.hang_up_trial import COUNTED_DIALECTS, RUNNING_DIALECTS, try_dialect


@pytest.mark.parametrize("dialect", [*RUNNING_DIALECTS, *COUNTED_DIALECTS])
async def test_received_is_at_most_billed_is_at_most_generated(dialect: str) -> None:
    """With running usage the bill is the backend's own truth; without it, the events that it had sent."""
    trial = await try_dialect(dialect, 100, seed=7)
    assert not trial.wrong
    assert trial.hung_up > 50
