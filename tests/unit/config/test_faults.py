"""What check-config prints: every fault at once, each at its place, with what to write instead."""

from pathlib import Path

import pytest

from meter_proxy.config.faults import dotted
from tests.unit.config.yaml_cases import BASE, DIGEST, EXAMPLE, OTHER_DIGEST, config_of, faults_of

PUBLIC_ADMIN = "3:8: admin: 0.0.0.0:9090 is not on loopback: set admin_token, or listen on 127.0.0.1"
RULES = "`per: second|minute|hour|day|week|month|total`"
UNITS = "requests, tokens, input_tokens, output_tokens, cost_usd, concurrent"


def test_places_are_written_as_people_do() -> None:
    """Dots and brackets; quotes where a name would be misread."""
    assert dotted(("keys", 1, "quotas", 0, "per")) == "keys[1].quotas[0].per"
    assert dotted(("models", "*", "upstream")) == 'models["*"].upstream'
    assert dotted(("models", "gpt-4.1")) == 'models["gpt-4.1"]'
    assert dotted(()) == ""


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("worker: 2", ["3:1: worker: unknown key 'worker'; did you mean 'workers'?"]),
        ("wrokers: 2", ["3:1: wrokers: unknown key 'wrokers'; did you mean 'workers'?"]),
        ("zzz: 2", ["3:1: zzz: unknown key 'zzz'"]),
        ("workers: 2\nworkers: 3", ["4:1: workers: duplicate key 'workers'; it stands first at line 3, column 1"]),
        ("workers: 0", ["3:10: workers: must be at least 1"]),
        ("workers: 100k", ["3:10: workers: must be at most 256"]),
        ("listen: 8080", ["3:9: listen: must be HOST:PORT, such as 127.0.0.1:8080"]),
        ("listen: 127.0.0.1:9090", ["1:1: admin: must differ from listen"]),
        ("limits: 5", ["3:9: limits: must be a mapping"]),
        ("limits: {max_event: 0}", ["3:21: limits.max_event: must be at least 1"]),
        ("limits: {drain: 5s}", ["3:10: limits.drain: unknown key 'drain'"]),
        (
            "limits:\n  header_timeout: 10",
            ["4:19: limits.header_timeout: must be a duration with its unit, such as 250ms, 10s, 5m, 6h or 400d"],
        ),
        ("path_prefixes: /v1", ["3:16: path_prefixes: must be a list"]),
        ("path_prefixes: []", ["3:16: path_prefixes: must not be empty"]),
        ("path_prefixes: [/v1, v2]", ["3:22: path_prefixes[1]: must start with a slash: /v2"]),
        ("path_prefixes: [/a, /b, /a]", ["3:25: path_prefixes[2]: /a is listed twice"]),
        (
            "redis: {when_down: clsoed}",
            ["3:20: redis.when_down: must be one of closed, bounded, open; did you mean 'closed'?"],
        ),
        ("admin: 0.0.0.0:9090", [PUBLIC_ADMIN]),
        ("admin: 0.0.0.0:9090\nadmin_token: ${ADMIN_TOKEN:-}", [PUBLIC_ADMIN]),
        ("admin: 0.0.0.0:9090\nadmin_token: t0ken", []),
        (
            "listen: 0.0.0.0:8080",
            [
                "3:9: listen: 0.0.0.0:8080 is not on loopback and there are no keys: "
                "add keys, or start with --allow-anonymous"
            ],
        ),
        (
            "admin_token: ${TOKEN}",
            ["3:14: admin_token: environment variable TOKEN is not set; set it, or write ${TOKEN:-default}"],
        ),
        ("plans: {free plan: {}}", ["3:9: plans[\"free plan\"]: must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"]),
        ("plans: {free: {quotas: {}}}", ["3:24: plans.free.quotas: must be a list"]),
        ("plans: {free: {quotas: [5]}}", ["3:25: plans.free.quotas[0]: must be a mapping"]),
        ("keys: {}", ["3:7: keys: must be a list"]),
        ("keys: [~]", ["3:8: keys[0].id: is required"]),
        ("state_dir: []", ["3:12: state_dir: must be text, not a list"]),
        ("path_prefixes: [\"/\\ud800\"]", ["3:17: path_prefixes[0]: holds half a character (\\ud800)"]),
        ("\"\\ud800\": 1", ["3:1: holds half a character (\\ud800)"]),
        ("state_dir: ${LATIN}", ["3:12: state_dir: environment variable LATIN is not UTF-8"]),
        (
            f"keys: [{{id: a, secret: {DIGEST}, quotas: unlimited, expires_at: \"0001-01-01T00:00:00+14:00\"}}]",
            ["3:128: keys[0].expires_at: must be a moment such as 2027-01-01T00:00:00Z"],
        ),
        ("listen: 127.0.0.1:" + "9" * 5000, ["3:9: listen: must be HOST:PORT, such as 127.0.0.1:8080"]),
    ],
)  # fmt: skip
def test_top_level(tmp_path: Path, text: str, faults: list[str]) -> None:
    """Faults of the proxy's own settings."""
    assert faults_of(BASE + text, tmp_path, {"LATIN": b"\xe9".decode("utf-8", "surrogateescape")}) == faults


@pytest.mark.parametrize(
    ("upstream", "faults"),
    [
        ("{}", ["1:20: upstreams.local.base_url: is required"]),
        ("~", ["1:20: upstreams.local.base_url: is required"]),
        ("http://h", ["1:20: upstreams.local: must be a mapping with base_url"]),
        (
            "{base_url: http://h, api_key: a, api_key_file: secret}",
            ["1:20: upstreams.local: has both api_key and api_key_file; take one"],
        ),
        (
            "{base_url: http://h, api_key_file: gone}",
            ["1:55: upstreams.local.api_key_file: cannot read gone: No such file or directory"],
        ),
        (
            "{base_url: http://h, running_usage: vlm}",
            [
                "1:56: upstreams.local.running_usage: must be one of auto, vllm, sglang, llamacpp, off; "
                "did you mean 'vllm'?"
            ],
        ),
        (
            "{base_url: http://h, tokenizer: cl100k}",
            [
                "1:52: upstreams.local.tokenizer: must be one of auto, upstream, o200k_base, cl100k_base, none, "
                "FILE.json; did you mean 'cl100k_base'?"
            ],
        ),
        (
            "{base_url: http://h, tokenizer: " + "t" * 300 + ".json}",
            ["1:52: upstreams.local.tokenizer: cannot read " + "t" * 300 + ".json: File name too long"],
        ),
        ("{base_url: http://h, tokenizer: t.json}", ["1:52: upstreams.local.tokenizer: there is no file t.json"]),
        (
            "{base_url: http://h, on_disconnect: stop}",
            ["1:56: upstreams.local.on_disconnect: must be cancel, drain, or {drain_for: 5s}"],
        ),
        (
            "{base_url: http://h, on_disconnect: {drain_for: 0s}}",
            ["1:56: upstreams.local.on_disconnect: must be above 0"],
        ),
        (
            "{base_url: http://h, bill_prompt: on_first}",
            [
                "1:54: upstreams.local.bill_prompt: must be one of on_first_token, always, never; "
                "did you mean 'on_first_token'?"
            ],
        ),
        (
            "{base_url: http://h, timeouts: {conect: 5s}}",
            ["1:52: upstreams.local.timeouts.conect: unknown key 'conect'; did you mean 'connect'?"],
        ),
    ],
)
def test_upstreams(tmp_path: Path, upstream: str, faults: list[str]) -> None:
    """Faults of an upstream; that it is faulty is not told again of the models that use it."""
    (tmp_path / "secret").write_text("s3cret")
    text = f"upstreams: {{local: {upstream}}}\nmodels: {{'*': {{upstream: local}}}}\n"
    assert faults_of(text, tmp_path) == faults


@pytest.mark.parametrize(
    ("models", "faults"),
    [
        ("{'*': {}}", ["2:15: models[\"*\"].upstream: is required"]),
        ("{'*': local}", ["2:15: models[\"*\"]: must be a mapping with upstream"]),
        ("{a: {upstream: locl}}", ["2:24: models.a.upstream: there is no upstream 'locl'; did you mean 'local'?"]),
        ("{a: {upstream: [local, x]}}", ["2:32: models.a.upstream[1]: there is no upstream 'x'"]),
        ("{a: {upstream: [local, local]}}", ["2:32: models.a.upstream[1]: upstream 'local' is listed twice"]),
        ("{a: {upstream: []}}", ["2:24: models.a.upstream: must not be empty"]),
        ("{a: {upstream: local, price: 1}}", ["2:38: models.a.price: must be a mapping with input and output"]),
        (
            "{a: {upstream: local, price: {inputs: 0.10, output: 0.40}}}",
            [
                "2:38: models.a.price.input: is required",
                "2:39: models.a.price.inputs: unknown key 'inputs'; did you mean 'input'?",
            ],
        ),
        ("{a: {upstream: local, price: {input: 1}}}", ["2:38: models.a.price.output: is required"]),
        (
            "{a: {upstream: local, price: {input: -1, output: x}}}",
            [
                "2:46: models.a.price.input: must not be negative",
                "2:58: models.a.price.output: must be an amount of US dollars such as 2.50",
            ],
        ),
        ("{a: {upstream: local, max_output_tokens: 0}}", ["2:50: models.a.max_output_tokens: must be at least 1"]),
        ("{a b: {upstream: local}}", ["2:10: models[\"a b\"]: must be 1 to 256 printable characters without blanks"]),
        ("{a: }", ["2:12: models.a.upstream: is required"]),
        ("[a]", ["2:9: models: must be a mapping"]),
        ("{}", ["2:9: models: is required: add `models: {\"*\": {upstream: local}}` to pass any name"]),
    ],
)  # fmt: skip
def test_models(tmp_path: Path, models: str, faults: list[str]) -> None:
    """Faults of a model."""
    assert faults_of(f"upstreams: {{local: {{base_url: http://h/v1}}}}\nmodels: {models}\n", tmp_path) == faults


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("{}", f"a rule has exactly one of {UNITS}; it has none"),
        ("{tokens: 1, requests: 2, per: day}", f"a rule has exactly one of {UNITS}; not requests and tokens"),
        ("{tokens: 1}", f"a rule says per which time: add {RULES}"),
        ("{concurrent: 1, per: day}", "a concurrent rule counts what is open now; take out `per`"),
        ("{cost_usd: 0, per: day}", "a cost of 0 can never be met; the smallest is 0.000000001"),
        ("{cost_usd: 0.0000000001, per: day}", "a cost of 0 can never be met; the smallest is 0.000000001"),
    ],
)
def test_a_rule_by_itself(tmp_path: Path, rule: str, fault: str) -> None:
    """One unit, a window, a limit that can be met."""
    assert faults_of(BASE + f"plans: {{p: {{quotas: [{rule}]}}}}", tmp_path) == [f"3:22: plans.p.quotas[0]: {fault}"]


@pytest.mark.parametrize(
    ("member", "fault"),
    [
        ("tokens: 0", "tokens: must be at least 1"),
        ("tokens: -5", "tokens: must be at least 1"),
        ("tokens: 1, warn_at: 101%", "warn_at: must be between 0% and 100%"),
        ("tokens: 1, warn_at: -1%", "warn_at: must be between 0% and 100%"),
        ("tokens: 1, models: []", "models: must not be empty"),
        ("tokens: 1, name: a b", "name: must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"),
        ("tokens: 1, reserve: hart", "reserve: must be one of slice, hard; did you mean 'hard'?"),
        ("tokens: 1, when_exhausted: abort", "when_exhausted: must be one of stop, error, finish"),
        ("tokens: 1, when_down: close", "when_down: must be one of closed, bounded, open; did you mean 'closed'?"),
        (
            "tokens: 1, timezone: Asia/Shangai",
            "timezone: is not a time zone of the IANA database; did you mean 'Asia/Shanghai'?",
        ),
        ("token: 1, requests: 1", "token: unknown key 'token'; did you mean 'tokens'?"),
    ],
)
def test_a_member_of_a_rule(tmp_path: Path, member: str, fault: str) -> None:
    """Each member of a rule at its own place."""
    (found,) = faults_of(BASE + f"plans: {{p: {{quotas: [{{per: day, {member}}}]}}}}", tmp_path)
    assert found.split(": ", 1)[1] == f"plans.p.quotas[0].{fault}"


def test_every_fault_at_once(tmp_path: Path) -> None:
    """Faults of one entry hide neither those of others nor those between entries; positions are the file's."""
    text = f"""\
listen: 8080
upstreams:
  local: {{base_url: "ftp://h"}}
  other: {{base_url: "http://h/v1", running_usage: of}}
models:
  a: {{upstream: other, price: {{input: x, output: 1}}}}
  b: {{upstream: othr}}
plans:
  free: {{quotas: [{{tokens: 1, per: dya}}, {{tokens: 1, per: day}}, {{tokens: 2, per: day}}]}}
keys:
  - secret: {DIGEST}
  - id: x
    secret: {{env: GONE}}
    plan: fre
    expires_at: soon
  - id: x
    secret: {OTHER_DIGEST}
    plan: free
    secret: {DIGEST}
  - id: y
    secret: {OTHER_DIGEST}
    quotas: [{{cost_usd: 1, per: day, models: [a]}}, {{cost_usd: 1, per: day, models: [b]}}]
"""
    assert faults_of(text, tmp_path) == [
        "1:9: listen: must be HOST:PORT, such as 127.0.0.1:8080",
        "3:21: upstreams.local.base_url: must be a URL such as http://127.0.0.1:8000/v1",
        "4:51: upstreams.other.running_usage: must be one of auto, vllm, sglang, llamacpp, off; did you mean 'off'?",
        "6:39: models.a.price.input: must be an amount of US dollars such as 2.50",
        "7:17: models.b.upstream: there is no upstream 'othr'; did you mean 'other'?",
        "9:36: plans.free.quotas[0].per: must be one of second, minute, hour, day, week, month, total; "
        "did you mean 'day'?",
        "9:65: plans.free.quotas[2]: has the same id 'tokens-day' as another rule; give one of them a `name` "
        "(plans.free.quotas[1], line 9)",
        "11:5: keys[0].id: is required",
        "13:13: keys[1].secret: environment variable GONE is not set",
        "14:11: keys[1].plan: there is no plan 'fre'; did you mean 'free'?",
        "15:17: keys[1].expires_at: must be a moment such as 2027-01-01T00:00:00Z",
        "16:9: keys[2].id: 'x' is the id of another key (keys[1], line 12)",
        "19:5: keys[2].secret: duplicate key 'secret'; it stands first at line 17, column 5",
        "21:13: keys[3].secret: is the same secret as that of another key (keys[2], line 16)",
        "22:52: keys[3].quotas[1]: limits the cost of models without a price: b; "
        "add `price: {input: ..., output: ...}` to them",
    ]


def test_the_example_of_the_contract_is_good(tmp_path: Path) -> None:
    """The page that outsiders read can be copied as it is; only the variable must be set."""
    assert faults_of(EXAMPLE, tmp_path, {"CI_KEY": "sk-ci-team"}) == []
    assert config_of(EXAMPLE, tmp_path, {"CI_KEY": "sk-ci-team"}).keys[1].id == "ci"
    assert faults_of(EXAMPLE, tmp_path) == ["47:13: keys[1].secret: environment variable CI_KEY is not set"]
