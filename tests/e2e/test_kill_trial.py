"""kill -9 of workers under load: nothing delivered is unbilled, nothing is billed twice."""

from tests.e2e.kill_trial import run


async def test_killed_workers_bill_what_was_counted_and_no_more() -> None:
    """Delivered <= billed <= generated for every exchange, whole ones as reported, Redis equal to the records."""
    result = await run(rounds=5, seed=3)
    assert not result.wrong
    assert result.kills >= 5
    assert result.crashed > 20
