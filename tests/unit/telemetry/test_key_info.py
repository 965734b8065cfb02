"""Keys and their accounts."""

import pytest

from meter_proxy.telemetry import key_info
from meter_proxy.telemetry.key_info import KeyInfo
from tests.unit.telemetry.quota_configs import config_with, key


def test_a_key_is_under_one_account_only() -> None:
    """Also when it moves: a join over two series of a key would fail. Without `account` it has its own."""
    info = KeyInfo()
    info.configure(config_with(key("alice"), key("ci", account="team")))
    assert dict(info.values) == {("alice", "alice"): 1, ("ci", "team"): 1}
    info.show("ci", "team")
    info.configure(config_with(key("ci", account="sales")))
    info.show("ci", "team")  # of an exchange admitted before the move
    assert dict(info.values) == {("ci", "sales"): 1}


def test_a_key_that_is_not_configured_appears_when_it_was_used() -> None:
    """`anonymous`, and what an exchange from before a reload still uses."""
    info = KeyInfo()
    info.configure(config_with())
    info.show("anonymous", "anonymous")
    assert info.render().endswith('meter_proxy_key_info{key="anonymous",account="anonymous"} 1\n')


def test_too_many_keys_appear_as_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """And stay over a reload."""
    monkeypatch.setattr(key_info, "MAX_SERIES", 1)
    info = KeyInfo()
    config = config_with(key("a"), key("b"), key("c"))
    info.configure(config)
    info.show("c", "c")
    info.configure(config)
    assert [name for name, _ in info.values] == ["a", "c"]
