"""Which rules apply to whom, for which model."""

from pathlib import Path

from meter_proxy.config.load import load_config
from meter_proxy.config.rulebook import RuleBook

YAML = """
upstreams: {local: {base_url: "http://127.0.0.1:1/v1"}}
models: {gpt-4o: {upstream: local}, "*": {upstream: local}}
redis: {when_down: open}
plans:
  free: {quotas: [{name: budget, tokens: 10, per: day}, {requests: 5, per: minute}]}
keys:
  - {id: alice, secret: {env: A}, plan: free, account: team, quotas: [
      {name: budget, tokens: 99, per: month, warn_at: 80%, when_down: closed},
      {output_tokens: 7, per: hour, models: ["gpt-*"], reserve: slice}]}
  - {id: bob, secret: {env: B}, quotas: unlimited}
accounts: {team: {quotas: [{concurrent: 3}]}}
"""


def rulebook(directory: Path) -> tuple[RuleBook, dict[str, object]]:
    path = directory / "c.yaml"
    path.write_text(YAML)
    config = load_config(path, {"A": "sk-a-secret", "B": "sk-b-secret"})
    return RuleBook(config), {key.id: key for key in config.keys}


def test_plan_key_and_account_add_up(tmp_path: Path) -> None:
    """A rule of the key's own with the same name replaces the plan's; the account's come last."""
    book, keys = rulebook(tmp_path)
    rules = book.rules_for(keys["alice"], "gpt-4o")  # type: ignore[arg-type]
    assert [(rule.holder, rule.owner, rule.limit) for rule in rules] == [
        ("k", "alice", 5),
        ("k", "alice", 99),
        ("k", "alice", 7),
        ("a", "team", 3),
    ]
    assert len(book.rules_for(keys["alice"], "llama")) == 3  # type: ignore[arg-type]
    assert book.rules_for(keys["bob"], "gpt-4o") == ()  # type: ignore[arg-type]
    assert book.rules_for(None, "gpt-4o") == ()


def test_shares_are_what_was_written_and_policies_are_inherited(tmp_path: Path) -> None:
    """80% of 99 is reached at 80, not at 79.2 or 81."""
    book, keys = rulebook(tmp_path)
    rules = {rule.id: rule for rule in book.rules_for(keys["alice"], "m")}  # type: ignore[arg-type]
    assert rules["budget"].warn_from == 80
    assert rules["budget"].when_down == "closed"
    assert rules["requests-minute"].when_down == "open"
