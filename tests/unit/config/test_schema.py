"""The words of the code for what the YAML says, and the JSON Schema of the YAML."""

import json
import re
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from meter_proxy.config.load import json_schema
from meter_proxy.config.schema import Address, OnDisconnect, Quota
from tests.unit.config.yaml_cases import BASE, DIGEST, EXAMPLE, config_of


def test_the_example_in_the_words_of_the_code(tmp_path: Path) -> None:
    """Units are in the names, and every value is what the YAML said."""
    config = config_of(EXAMPLE, tmp_path, {"CI_KEY": "sk-ci-team", "UPSTREAM_KEY": "sk-up"})
    assert (config.listen, config.admin) == (Address("127.0.0.1", 8080), Address("127.0.0.1", 9090))
    assert config.admin_token is None
    assert (config.workers, config.state_dir) == (2, tmp_path / "state")
    assert config.path_prefixes == ("/v1", "/v1/llm")
    limits = config.limits
    assert (limits.max_body_bytes, limits.max_event_bytes) == (20 * 1024**2, 1024**2)
    assert (limits.header_timeout_s, limits.client_stall_s, limits.drain_timeout_s) == (10, 30, 60)
    assert (config.redis.url, config.redis.when_down) == ("embedded", "bounded")
    assert (config.redis.bounded_tokens, config.redis.usage_retention_s) == (20_000, 400 * 86_400)

    local = config.upstreams["local"]
    assert local.base_url == "http://127.0.0.1:8000/v1"
    assert local.api_key is not None
    assert local.api_key.get_secret_value() == "sk-up"
    assert (local.running_usage, local.tokenizer, local.bill_prompt) == ("auto", "auto", "on_first_token")
    assert local.on_disconnect == OnDisconnect(kind="cancel", drain_for_s=None)
    timeouts = local.timeouts
    assert (timeouts.connect_s, timeouts.first_byte_s, timeouts.idle_s, timeouts.total_s) == (5, 300, 120, 21_600)

    gpt, auto = config.models["gpt-4o"], config.models["auto"]
    assert gpt.price is not None
    assert [str(usd) for usd in (gpt.price.input, gpt.price.cached_input, gpt.price.output)] == [
        "2.50",
        "1.25",
        "10.00",
    ]
    assert (gpt.upstreams, gpt.name, gpt.max_output_tokens) == (("local",), None, 16_384)
    assert (auto.upstreams, auto.name, auto.price) == (("local",), "qwen2.5-72b", None)

    alice, ci = config.keys
    assert [rule.rule_id for rule in config.rules_of(alice)] == [
        "requests-minute", "tokens-day", "concurrent", "budget", "output_tokens-hour-133f28",
    ]  # fmt: skip
    assert [rule.limit for rule in config.rules_of(alice)] == [20, 200_000, 2, 20_000_000_000, 50_000]
    assert alice.quotas[0].warn_at == 0.8
    assert (alice.account_id, alice.unlimited, alice.models) == ("alice", False, ("gpt-4o*", "auto"))
    assert (ci.account_id, ci.unlimited, ci.quotas, ci.expires_at) == ("platform-team", True, (), None)
    assert config.accounts["platform-team"].quotas[0].limit == 10_000_000


def test_what_is_left_out_has_the_defaults_of_the_contract(tmp_path: Path) -> None:
    """Two lines are a configuration; sections that are begun and left empty are as if they were not there."""
    config = config_of(BASE + "limits:\nredis: {url: }\nworkers:\nkeys:\nplans: ~\n", tmp_path)
    assert (str(config.listen), str(config.admin)) == ("127.0.0.1:8080", "127.0.0.1:9090")
    assert 1 <= config.workers <= 4
    assert config.state_dir == tmp_path / "state"
    assert config.path_prefixes == ("/v1",)
    assert config.usage_page is False
    assert config.limits.max_body_bytes == 20 * 1024**2
    assert (config.redis.url, config.redis.usage_retention_s) == ("embedded", 400 * 86_400)
    assert (config.keys, config.plans, config.accounts) == ((), {}, {})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("drain", OnDisconnect(kind="drain")),
        ("{drain_for: 1.5s}", OnDisconnect(kind="drain_for", drain_for_s=1.5)),
    ],
)
def test_on_disconnect(tmp_path: Path, written: str, meant: OnDisconnect) -> None:
    """Cancel, drain, or drain for a time."""
    text = BASE.replace('/v1"', f'/v1", running_usage: off, on_disconnect: {written}')
    upstream = config_of(text, tmp_path).upstreams["local"]
    assert upstream.on_disconnect == meant
    assert upstream.running_usage == "off"  # which YAML 1.1 would read as false


@pytest.mark.parametrize(
    ("rule", "rule_id"),
    [
        ({"tokens": "1k", "per": "day"}, "tokens-day"),
        ({"tokens": "2k", "per": "day", "timezone": "Asia/Tokyo"}, "tokens-day"),
        ({"cost_usd": 1, "per": "total"}, "cost_usd-total"),
        ({"concurrent": 2}, "concurrent"),
        ({"concurrent": 2, "name": "width"}, "width"),
        ({"tokens": 1, "per": "day", "models": ["a", "b"]}, "tokens-day-7e18f7"),
        ({"tokens": 1, "per": "day", "models": ["b", "a", "b"]}, "tokens-day-7e18f7"),
        ({"concurrent": 2, "models": ["a", "b"]}, "concurrent-7e18f7"),
    ],
)
def test_a_rules_id_depends_on_what_it_counts_only(rule: dict[str, Any], rule_id: str) -> None:
    """Not on its position, its limit, or the order of its models: counters outlive edits."""
    assert Quota(**rule).rule_id == rule_id


def test_a_config_cannot_be_changed(tmp_path: Path) -> None:
    """A reload makes another one."""
    config = config_of(BASE, tmp_path)
    with pytest.raises(pydantic.ValidationError):
        config.workers = 3  # type: ignore[misc]


def _misfits(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str = "$") -> list[str]:
    """Where `value` does not fit: the keywords of JSON Schema that our schema uses, and no other."""
    known = {"type", "anyOf", "$ref", "enum", "const", "pattern", "properties", "additionalProperties", "required",
             "items", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
             "title", "description", "default", "$defs", "$schema", "propertyNames"}  # fmt: skip
    assert set(schema) <= known, set(schema) - known
    found: list[str] = []
    if "$ref" in schema:
        found += _misfits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, path)
    if "anyOf" in schema and all(_misfits(value, form, root, path) for form in schema["anyOf"]):
        found.append(f"{path}: no form fits {value!r}")
    types: dict[str, Any] = {
        "boolean": bool,
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "null": type(None),
    }
    names = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", [])
    if names and not any(isinstance(value, types[name]) for name in names):
        return [*found, f"{path}: {value!r} is no {names}"]
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        found.append(f"{path}: {value!r} is another word")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        found.append(f"{path}: {value!r} does not match")
    if isinstance(value, (int, float)) and value < schema.get("minimum", value):
        found.append(f"{path}: {value!r} is too small")
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += _misfits(item, schema.get("items", {}), root, f"{path}[{index}]")
    if isinstance(value, dict):
        found += [f"{path}.{name} is missing" for name in schema.get("required", []) if name not in value]
        for name, member in value.items():
            more = schema.get("additionalProperties", {})
            rest = more if isinstance(more, dict) else {"enum": []}
            found += _misfits(member, schema.get("properties", {}).get(name, rest), root, f"{path}.{name}")
    return found


def _as_an_editor_reads(text: str) -> Any:
    return json.loads(json.dumps(yaml.safe_load(text), default=str))


def test_the_json_schema_takes_the_example() -> None:
    """An editor shows no fault in what the proxy takes, and each default fits its own schema."""
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert _misfits(_as_an_editor_reads(EXAMPLE), schema, schema) == []
    assert _misfits(_as_an_editor_reads(BASE + "workers: ${WORKERS:-2}"), schema, schema) == []
    for section in (schema, *schema["$defs"].values()):
        for name, member in section["properties"].items():
            if member.get("default") is not None:
                assert _misfits(member["default"], member, schema, name) == []


@pytest.mark.parametrize(
    "added",
    [
        "worker: 2",
        "workers: two",
        "limits: {max_body: 20MB}",
        "limits: {drain_timeout: 10}",
        "redis: {when_down: opn}",
        "path_prefixes: [v1]",
        "keys: [{id: a b, secret: " + DIGEST + "}]",
        "keys: [{id: a, secret: hunter2}]",
        "keys: [{id: a, secret: {enx: A}}]",
        "keys: [{id: a, secret: " + DIGEST + ", quotas: unlimted}]",
        "plans: {p: {quotas: [{tokens: 1, per: dya}]}}",
    ],
)
def test_the_json_schema_refuses_what_the_proxy_refuses(added: str) -> None:
    """What an editor can know without the rest of the file."""
    schema = json_schema()
    assert _misfits(_as_an_editor_reads(BASE + added), schema, schema) != []
