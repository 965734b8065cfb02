"""A rule must not go on with a counter that holds another unit."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from meter_proxy.config.load import load_config
from meter_proxy.ledger.admission import Admission
from meter_proxy.ledger.journal import encode_line
from meter_proxy.ledger.slots import SlotTable
from meter_proxy.ledger.units import held_units
from meter_proxy.quota.charge import Charge, Unit
from meter_proxy.usage import Operation
from tests.support.journals import open_journal
from tests.support.records import usage_record

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC).timestamp()
APRIL = datetime(2026, 4, 1, tzinfo=UTC).timestamp()
YAML = """
upstreams: {local: {base_url: "http://127.0.0.1:1/v1"}}
models: {"*": {upstream: local, price: {input: 1, output: 1}}}
plans: {free: {quotas: [{name: planned, tokens: 10, per: day}]}}
keys:
  - {id: alice, secret: {env: A}, plan: free, account: team, quotas: [{name: budget, tokens: 9, per: month}]}
  - {id: bob, secret: {env: B}, plan: free}
accounts: {team: {quotas: [{name: shared, output_tokens: 3, per: total}]}}
"""


def charge(rule: str, window: str, unit: Unit = Unit.COST_USD, *, holder: str = "k", ends_at: float = APRIL) -> Charge:
    return Charge(holder, rule, window, unit, int(ends_at))


def settle(state: Path, *charges: Charge, key: str = "alice") -> None:
    """One exchange, in a journal of a worker that is no more."""
    journal = open_journal(state / "w3")
    journal.append(encode_line(usage_record(key=key, account="team" if key == "alice" else key), "m1", charges))
    journal.close()


def places(directory: Path, now: float = NOW) -> list[str]:
    path = directory / "c.yaml"
    path.write_text(YAML)
    config = load_config(path, {"A": "sk-a-secret", "B": "sk-b-secret"})
    return [f"{finding.loc}" for finding in held_units(config, now)]


@pytest.mark.parametrize(
    ("held", "key", "place"),
    [
        (charge("budget", "202603"), "alice", "('keys', 0, 'quotas', 0)"),
        (charge("budget", "202604"), "alice", "('keys', 0, 'quotas', 0)"),  # a clock that is ahead
        (charge("planned", "20260315", Unit.REQUESTS), "bob", "('plans', 'free', 'quotas', 0)"),
        (charge("shared", "total", holder="a", ends_at=0), "alice", "('accounts', 'team', 'quotas', 0)"),
    ],
)
def test_a_counter_of_another_unit_is_found(tmp_path: Path, held: Charge, key: str, place: str) -> None:
    assert places(tmp_path) == []
    settle(tmp_path / "state", held, key=key)
    assert places(tmp_path) == [place]


def test_what_does_no_harm_is_not_refused(tmp_path: Path) -> None:
    """A window that is over, one of another length, the same unit, somebody else's, a rule that is no more."""
    settle(
        tmp_path / "state",
        charge("budget", "202602"),
        charge("budget", "20260315"),
        charge("budget", "202603", Unit.TOKENS),
        charge("planned", "20260315", Unit.TOKENS),
        charge("gone", "202603"),
        charge("budget", "202603", holder="a"),
    )
    settle(tmp_path / "state", charge("budget", "202603"), key="bob")
    assert places(tmp_path) == []


def test_the_window_over_the_rule_may_have_its_name(tmp_path: Path) -> None:
    settle(tmp_path / "state", charge("budget", "202603"))
    assert places(tmp_path, APRIL) == []


def test_a_place_is_named_once_however_many_keys_it_is_for(tmp_path: Path) -> None:
    for key in ("alice", "bob"):
        settle(tmp_path / "state", charge("planned", "20260315"), key=key)
    assert places(tmp_path) == ["('plans', 'free', 'quotas', 0)"]


def test_what_a_killed_process_had_in_flight_counts_too(tmp_path: Path) -> None:
    """The next start settles it under the rule that it was admitted by."""
    worker = tmp_path / "state" / "w0"
    worker.mkdir(parents=True)
    table = SlotTable(worker, slots=8)
    record = usage_record()
    admission = Admission(
        id=record.id,
        time=record.time,
        key="alice",
        account="team",
        model="m1",
        upstream_model="m1",
        upstream="local",
        operation=Operation.CHAT,
        stream=True,
        input_text_bytes=4,
        charges=(charge("budget", "202603"),),
    )
    assert table.take(admission.slot_text()) is not None
    assert places(tmp_path) == ["('keys', 0, 'quotas', 0)"]
    table.close()


def test_a_journal_that_cannot_be_read_is_left_to_the_start(tmp_path: Path) -> None:
    """Which says what is wrong with it; the others are compared."""
    settle(tmp_path / "state", charge("budget", "202603"))
    broken = tmp_path / "state" / "w0" / f"journal-{'b' * 32}"
    broken.mkdir(parents=True)
    (broken / "0000000000000100.log").write_bytes(b"")  # what came before is missing
    assert places(tmp_path) == ["('keys', 0, 'quotas', 0)"]


def test_what_may_not_be_read_is_said_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`check-config` by somebody else than who serves. To root nothing is forbidden: here a directory is in the way."""
    settle(tmp_path / "state", charge("budget", "202603"))
    (tmp_path / "state" / "w0" / "slots").mkdir(parents=True)
    assert places(tmp_path) == ["('keys', 0, 'quotas', 0)"]
    assert "w0 holds is not compared with the rules" in caplog.text
