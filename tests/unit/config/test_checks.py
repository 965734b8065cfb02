"""Faults between sections: each test changes one thing of a good configuration."""

from pathlib import Path

import pytest

from tests.unit.config.yaml_cases import BASE, DIGEST, OTHER_DIGEST, faults_of

MODELS = """\
upstreams: {local: {base_url: "http://127.0.0.1:8000/v1"}}
models:
  priced: {upstream: local, price: {input: 1, output: 2}, max_output_tokens: 4k}
  free: {upstream: local}
  "*": {upstream: local}
"""


def _keys(*entries: str) -> str:
    return "keys:\n" + "".join(f"  - {{{entry}}}\n" for entry in entries)


def _alice(members: str) -> str:
    return f"id: alice, secret: {DIGEST}, {members}"


@pytest.mark.parametrize(
    ("entry", "faults"),
    [
        (_alice("quotas: unlimited"), []),
        (_alice("plan: free"), []),
        (_alice("quotas: [{tokens: 1, per: day}]"), []),
        (
            _alice("account: team"),
            ["4:5: keys[0].quotas: the key has no rule; add a plan or quotas, or say `unlimited`"],
        ),
        (_alice("plan: empty"), ["4:5: keys[0].quotas: the key has no rule; add a plan or quotas, or say `unlimited`"]),
        (
            _alice("quotas: []"),
            ["4:106: keys[0].quotas: the key has no rule; add a plan or quotas, or say `unlimited`"],
        ),
        (_alice("plan: empty, quotas: unlimited"), []),
        (
            _alice("plan: free, quotas: unlimited"),
            ["4:118: keys[0].quotas: unlimited contradicts the rules of plan 'free'; take out one of them"],
        ),
        (_alice("plan: fre"), ["4:104: keys[0].plan: there is no plan 'fre'; did you mean 'free'?"]),
        (
            _alice("quotas: unlimited, account: tem"),
            ["4:126: keys[0].account: there is no account 'tem'; did you mean 'team'?"],
        ),
        (_alice("quotas: unlimited, account: team"), []),
        (_alice("quotas: unlimited, account: alice"), ["4:126: keys[0].account: there is no account 'alice'"]),
        (
            f"id: team, secret: {DIGEST}, quotas: unlimited",
            ["4:10: keys[0].id: 'team' is the name of an account; take another id, or say `account: team`"],
        ),
        (f"id: team, secret: {DIGEST}, quotas: unlimited, account: team", []),
        (
            f"id: unknown, secret: {DIGEST}, quotas: unlimited",
            ["4:10: keys[0].id: 'unknown' is the metrics' word for callers without a key; take another"],
        ),
        (
            "id: alice, quotas: unlimited",
            ["4:5: keys[0].secret: is required: `meter-proxy keys create --id ID` makes one"],
        ),
        (
            f"id: alice, quotas: unlimited, secret: [{DIGEST}, {DIGEST}]",
            ["4:44: keys[0].secret: is the same secret twice"],
        ),
        (
            f"id: alice, quotas: unlimited, secret: [{DIGEST}, {DIGEST}, {DIGEST}]",
            ["4:44: keys[0].secret: must have at most 2 entries"],
        ),
        (
            _alice("quotas: unlimitd"),
            ["4:106: keys[0].quotas: must be a list, or unlimited; did you mean 'unlimited'?"],
        ),
        (_alice("quotas: {}"), ["4:106: keys[0].quotas: must be a list, or unlimited"]),
        (_alice("quotas: unlimited, models: []"), ["4:125: keys[0].models: must not be empty"]),
    ],
)
def test_a_key_against_its_plan_and_account(tmp_path: Path, entry: str, faults: list[str]) -> None:
    """Names must exist, and a key without a rule must say that this is meant."""
    others = "plans: {free: {quotas: [{requests: 1, per: day}]}, empty: {}}\naccounts: {team: {}}\n"
    assert faults_of(BASE + _keys(entry) + others, tmp_path) == faults


def test_an_account_needs_no_section_to_group_keys(tmp_path: Path) -> None:
    """Without any `accounts:` the name only groups; but no key may have it for its id."""
    assert faults_of(BASE + _keys(_alice("account: team, quotas: unlimited")), tmp_path) == []
    other = f"id: team, secret: {OTHER_DIGEST}, quotas: unlimited"
    assert faults_of(BASE + _keys(_alice("account: team, quotas: unlimited"), other), tmp_path) == [
        "5:10: keys[1].id: 'team' is the name of an account; take another id, or say `account: team`"
    ]


def test_two_keys_share_neither_id_nor_secret(tmp_path: Path) -> None:
    """Both places are told."""
    twice = _keys(_alice("quotas: unlimited"), _alice("quotas: unlimited"))
    assert faults_of(BASE + twice, tmp_path) == [
        "5:10: keys[1].id: 'alice' is the id of another key (keys[0], line 4)",
        "5:25: keys[1].secret: is the same secret as that of another key (keys[0], line 4)",
    ]


@pytest.mark.parametrize(
    ("own", "faults"),
    [
        ("{tokens: 5, per: hour}", []),
        ("{name: x, tokens: 5, per: day}", []),
        ("{name: named, requests: 5, per: day}", []),  # replaces the plan's
        ("{name: named, requests: 2, per: day}", []),  # though they are equal
        ("{tokens: 5, per: day, models: [a]}", []),
        (
            "{tokens: 5, per: day}",
            [
                "5:107: keys[0].quotas[0]: has the same id 'tokens-day' as another rule; give both the same `name` "
                "to replace the plan's, or this one another (plans.free.quotas[0], line 3)"
            ],
        ),
        (
            "{tokens: 5, per: hour}, {tokens: 6, per: hour}",
            [
                "5:131: keys[0].quotas[1]: has the same id 'tokens-hour' as another rule; "
                "give one of them a `name` (keys[0].quotas[0], line 5)"
            ],
        ),
        (
            "{tokens: 5, per: day, models: [a, b]}, {tokens: 6, per: day, models: [b, a]}",
            [
                "5:146: keys[0].quotas[1]: has the same id 'tokens-day-7e18f7' as another rule; "
                "give one of them a `name` (keys[0].quotas[0], line 5)"
            ],
        ),
    ],
)
def test_two_rules_of_a_key_have_two_ids(tmp_path: Path, own: str, faults: list[str]) -> None:
    """Counters are kept under the id; a rule of the same name replaces the plan's."""
    plan = "plans: {free: {quotas: [{tokens: 1, per: day}, {name: named, requests: 2, per: day}]}}\n"
    assert faults_of(BASE + plan + _keys(_alice(f"quotas: [{own}], plan: free")), tmp_path) == faults


def test_two_rules_of_an_account_have_two_ids(tmp_path: Path) -> None:
    """As for keys and plans."""
    rules = "accounts: {team: {quotas: [{concurrent: 1}, {concurrent: 2}]}}"
    assert faults_of(BASE + rules, tmp_path) == [
        "3:45: accounts.team.quotas[1]: has the same id 'concurrent' as another rule; "
        "give one of them a `name` (accounts.team.quotas[0], line 3)"
    ]


NO_PRICE = "limits the cost of models without a price: {}; add `price: {{input: ..., output: ...}}` to them"
NO_BOUND = "reserves hard, but these models have no max_output_tokens: {}"


@pytest.mark.parametrize(
    ("rule", "models", "fault"),
    [
        ("{cost_usd: 1, per: day}", "", None),  # `free` and "*" cost nothing here, and that may be meant
        ("{cost_usd: 1, per: day, models: [priced]}", "", None),
        ("{cost_usd: 1, per: day, models: [free]}", "", NO_PRICE.format("free")),
        ("{cost_usd: 1, per: day, models: ['*r*']}", "", NO_PRICE.format("free")),
        ("{cost_usd: 1, per: day, models: [gpt-4o]}", "", NO_PRICE.format("*")),
        ("{cost_usd: 1, per: day, models: ['*']}", "", NO_PRICE.format("*, free")),
        ("{cost_usd: 1, per: day}", "models: [free]", NO_PRICE.format("free")),
        ("{cost_usd: 1, per: day}", "models: [free, x]", NO_PRICE.format("*, free")),
        ("{cost_usd: 1, per: day}", "models: [priced]", None),
        ("{cost_usd: 1, per: day, models: ['*']}", "models: [priced]", None),
        ("{tokens: 1, per: day, reserve: hard}", "", NO_BOUND.format("*, free")),
        ("{output_tokens: 1, per: day, reserve: hard}", "models: [free]", NO_BOUND.format("free")),
        ("{cost_usd: 1, per: day, reserve: hard}", "", NO_BOUND.format("*, free")),
        ("{tokens: 1, per: day, reserve: hard}", "models: [priced]", None),
        ("{tokens: 1, per: day, reserve: hard, models: [priced]}", "", None),
        ("{input_tokens: 1, per: day, reserve: hard}", "", None),
        ("{requests: 1, per: day, reserve: hard}", "", None),
    ],
)
@pytest.mark.parametrize("holder", ["keys[0]", "plans.p", "accounts.a"])
def test_a_rule_against_the_models_it_covers(
    tmp_path: Path, holder: str, rule: str, models: str, fault: str | None
) -> None:
    """Cost needs prices, hard needs a bound on the output; of the models that its callers may ask for."""
    entry = f"id: alice, secret: {DIGEST}, account: a, {models or 'disabled: false'}"
    sections = {
        "keys[0]": _keys(f"{entry}, quotas: [{rule}]") + "accounts: {a: {}}\n",
        "plans.p": _keys(f"{entry}, plan: p") + f"accounts: {{a: {{}}}}\nplans: {{p: {{quotas: [{rule}]}}}}\n",
        "accounts.a": _keys(f"{entry}, quotas: unlimited") + f"accounts: {{a: {{quotas: [{rule}]}}}}\n",
    }
    found = [text.split(": ", 1)[1] for text in faults_of(MODELS + sections[holder], tmp_path)]
    assert found == ([] if fault is None else [f"{holder}.quotas[0]: {fault}"])


def test_a_plan_without_keys_is_held_against_all_models(tmp_path: Path) -> None:
    """The next key that gets it may ask for anything; a rule that all its keys replace is held against none."""
    plan = "plans: {p: {quotas: [{name: n, tokens: 1, per: day, reserve: hard}]}}\n"
    fault = f"6:22: plans.p.quotas[0]: {NO_BOUND.format('*, free')}"
    assert faults_of(MODELS + plan, tmp_path) == [fault]
    replaced = _keys(_alice("plan: p, quotas: [{name: n, tokens: 1, per: day}]"))
    assert faults_of(MODELS + plan + replaced, tmp_path) == []


def test_a_rule_for_a_model_that_nobody_can_ask_for_is_a_typo(tmp_path: Path) -> None:
    """It would never count anything. Where `"*"` stands, any name can be asked for."""
    rule = "plans: {p: {quotas: [{tokens: 1, per: day, models: [prized]}]}}\n"
    assert faults_of(MODELS + rule, tmp_path) == []
    assert faults_of(MODELS.replace('  "*": {upstream: local}\n', "") + rule, tmp_path) == [
        "5:53: plans.p.quotas[0].models[0]: 'prized' matches no model; did you mean 'priced'?"
    ]


def test_a_limit_beyond_exact_counting_is_refused(tmp_path: Path) -> None:
    """Redis' scripts count in floats: exact to 2^53."""
    rule = "{cost_usd: 10_000_000, per: total}"
    text = BASE + f"keys: [{{id: a, secret: {DIGEST}, quotas: [{rule}]}}]\n"
    assert any("beyond what can be counted exactly" in fault for fault in map(str, faults_of(text, tmp_path)))


def test_more_rules_than_a_slot_holds_are_refused(tmp_path: Path) -> None:
    rules = ", ".join(f"{{name: {'n' * 60}{number}, requests: 1, per: day}}" for number in range(12))
    text = BASE + f"keys: [{{id: a, secret: {DIGEST}, quotas: [{rules}]}}]\n"
    assert any("12 rules" in fault for fault in map(str, faults_of(text, tmp_path)))
