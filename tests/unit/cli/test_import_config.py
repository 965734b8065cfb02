"""Other proxies' configurations become ours: `check-config` accepts what is written, and nothing is lost unsaid."""

import json
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from meter_proxy.config.load import load_config
from meter_proxy.config.schema import Config
from meter_proxy.config.secrets import digest
from tests.unit.cli.conftest import Run

LITELLM = """\
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      api_key: os.environ/OPENAI_API_KEY
      rpm: 480
      tpm: 100000
      input_cost_per_token: 0.0000025
      output_cost_per_token: 1e-5
      temperature: 0.2
  - model_name: gpt-4o
    litellm_params: {model: azure/gpt-4o-eu, api_base: "https://x.openai.azure.com/", api_key: os.environ/AZURE}
  - model_name: llama
    litellm_params: {model: hosted_vllm/meta-llama/Llama-3-8B, api_base: "http://10.0.0.1:8000/v1"}
  - model_name: llama
    litellm_params: {model: hosted_vllm/meta-llama/Llama-3-8B, api_base: "http://10.0.0.2:8000/v1", rpm: 20}
    model_info: {max_output_tokens: 4096}
  - model_name: claude
    litellm_params: {model: anthropic/claude-3-5-sonnet, api_key: os.environ/ANTHROPIC_API_KEY}
  - model_name: mistral
    litellm_params: {model: ollama_chat/mistral}
  - model_name: "*"
    litellm_params: {model: "*"}
litellm_settings: {drop_params: true, max_budget: 100, budget_duration: 30d, request_timeout: 600}
router_settings:
  routing_strategy: least-busy
  model_group_alias: {gpt-4: gpt-4o, gone: nothing}
  redis_host: redis.internal
  redis_password: os.environ/REDIS_PASSWORD
general_settings: {master_key: sk-1234, database_url: "postgresql://db", max_parallel_requests: 100, alerting: [slack]}
environment_variables: {FOO: bar}
callback_settings: {}
"""
ENVIRONMENT = {"OPENAI_API_KEY": "sk-upstream", "REDIS_PASSWORD": "secret"}


def imported(run: Run, tmp_path: Path, kind: str, source: Path) -> tuple[Config, str]:
    """Import to a file: the configuration as serve would read it, and the notes."""
    output = tmp_path / "meter-proxy.yaml"
    code, out, err = run("import", kind, source, "--output", output)
    assert (code, out) == (0, ""), err
    return load_config(output, ENVIRONMENT), err


@pytest.fixture
def litellm(tmp_path: Path) -> Path:
    """A `config.yaml` with something of everything."""
    path = tmp_path / "config.yaml"
    path.write_text(LITELLM)
    return path


def test_litellm_models_keep_their_names_prices_and_places(run: Run, tmp_path: Path, litellm: Path) -> None:
    """Prices per million tokens, exactly; deployments of one model in the order of the file."""
    config, _ = imported(run, tmp_path, "litellm", litellm)
    assert list(config.models) == ["gpt-4o", "llama", "mistral", "*", "gpt-4"]
    gpt = config.models["gpt-4o"]
    assert gpt.price is not None
    assert (str(gpt.price.input), str(gpt.price.output)) == ("2.5", "10")
    assert config.models["gpt-4"].name == "gpt-4o"
    assert config.models["gpt-4"].price == gpt.price
    openai = config.upstreams[gpt.upstreams[0]]
    assert openai.base_url == "https://api.openai.com/v1"
    assert openai.api_key is not None
    assert openai.api_key.get_secret_value() == "sk-upstream"
    assert openai.timeouts.total_s == 600
    llama = config.models["llama"]
    assert [config.upstreams[name].base_url for name in llama.upstreams] == [
        "http://10.0.0.1:8000/v1",
        "http://10.0.0.2:8000/v1",
    ]
    assert (llama.name, llama.max_output_tokens) == ("meta-llama/Llama-3-8B", 4096)
    assert config.upstreams[config.models["mistral"].upstreams[0]].base_url == "http://localhost:11434/v1"
    assert config.redis.url == "redis://:secret@redis.internal:6379"


def test_the_litellm_master_key_works_and_carries_the_limits(run: Run, tmp_path: Path, litellm: Path) -> None:
    """Callers need not change their key; what limited them limits them."""
    config, _ = imported(run, tmp_path, "litellm", litellm)
    (key,) = config.keys
    assert key.secret_sha256 == (bytes.fromhex(digest(b"sk-1234").removeprefix("sha256:")),)
    rules = {(rule.unit, rule.per, rule.limit, rule.models) for rule in key.quotas}
    assert rules == {
        ("requests", "minute", 480, ("gpt-4o",)),
        ("tokens", "minute", 100_000, ("gpt-4o",)),
        ("requests", "minute", 20, ("llama",)),
        ("concurrent", None, 100, None),
        ("cost_usd", "month", 100_000_000_000, None),
    }


@pytest.mark.parametrize(
    "said",
    [
        "model_list[1] (gpt-4o): left out: azure",
        "model_list[4] (claude): left out: anthropic",
        "litellm_params.temperature of gpt-4o",
        "llama: its upstreams are tried in order, not balanced",
        "set `price` of: llama, mistral, *",
        "gone: there is no model nothing",
        "virtual keys, teams, users",
        "environment of serve: FOO",
        "litellm_settings.drop_params",
        "router_settings.routing_strategy",
        "general_settings.alerting",
        "callback_settings",
    ],
)
def test_what_litellm_has_and_we_have_not_is_named(run: Run, litellm: Path, said: str) -> None:
    """Each on a line of its own on stderr; stdout is the YAML alone."""
    code, out, err = run("import", "litellm", litellm)
    assert code == 0
    assert yaml.safe_load(out)["models"]["*"]
    assert [line for line in err.splitlines() if said in line], err


def test_a_litellm_master_key_from_the_environment_stays_there(run: Run, tmp_path: Path) -> None:
    """Its secret is not asked for at the import."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "model_list: [{model_name: m, litellm_params: {model: openai/m}}]\n"
        "general_settings: {master_key: os.environ/MASTER_KEY}\n"
    )
    code, out, _ = run("import", "litellm", path)
    assert code == 0
    assert yaml.safe_load(out)["keys"] == [{"id": "master", "secret": {"env": "MASTER_KEY"}, "quotas": "unlimited"}]


def test_a_litellm_limit_without_a_key_or_price_is_said(run: Run, tmp_path: Path) -> None:
    """A limit that would be dropped silently is money lost."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "model_list: [{model_name: m, litellm_params: {model: openai/m, rpm: 5}}]\nlitellm_settings: {max_budget: 9}\n"
    )
    code, _, err = run("import", "litellm", path)
    assert code == 0
    assert "no key to limit: requests: 5" in err
    assert "max_budget: 9 USD per total needs models with a price" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not YAML"),
        ("[]", "it is not a mapping"),
        ("a: 1", "it has no list `model_list`"),
        ("\x00", "not YAML"),
    ],
)
def test_what_is_no_litellm_configuration_is_one_line(run: Run, tmp_path: Path, text: str, said: str) -> None:
    """Exit 2, nothing on stdout."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    code, out, err = run("import", "litellm", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_an_import_that_check_config_refuses_says_what_to_mend(run: Run, tmp_path: Path) -> None:
    """Exit 1; the YAML is there to be mended."""
    path = tmp_path / "config.yaml"
    path.write_text("model_list: [{model_name: m, litellm_params: {model: openai/m, api_base: 'ftp://x'}}]\n")
    code, out, err = run("import", "litellm", path)
    assert code == 1
    assert "ftp://x" in out
    assert "to be mended by hand: 4:15: upstreams.x.base_url: must be a URL" in err or "base_url: must be a URL" in err


def test_an_existing_file_is_not_overwritten_and_a_new_one_is_private(run: Run, tmp_path: Path, litellm: Path) -> None:
    """Credentials of upstreams may be in it."""
    output = tmp_path / "meter-proxy.yaml"
    output.write_text("mine")
    code, _, err = run("import", "litellm", litellm, "--output", output)
    assert (code, err) == (3, f"meter-proxy: {output} exists, and is not overwritten: name another --output\n")
    assert output.read_text() == "mine"
    output.unlink()
    run("import", "litellm", litellm, "--output", output)
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


SCHEMA = """
create table channels(id integer primary key, type int, key text, status int, name text, base_url text, models text,
  "group" text, model_mapping text, priority int);
create table tokens(id integer primary key, user_id int, key char(48), status int, name text, expired_time bigint,
  remain_quota bigint, unlimited_quota numeric, used_quota bigint, models text, subnet text);
create table users(id integer primary key, username text, quota bigint, status int);
create table options(key text primary key, value text);
"""
CHANNELS: list[tuple[Any, ...]] = [
    (1, 1, "sk-up", 1, "OpenAI main", "", "gpt-4o,small", "default", '{"small": "gpt-4o-mini"}', 0),
    (2, 14, "k", 1, "claude", "", "claude-3", "default", "", 0),
    (3, 1, "sk-b", 2, "old", "", "old-model", "default", "", 0),
    (4, 8, "sk-c\nsk-d", 1, "vllm", "http://10.0.0.9:8000", "gpt-4o,qwen", "vip", "", 9),
]
TOKENS: list[tuple[Any, ...]] = [
    (1, 1, "abc123", 1, "team a", -1, 500_000, 0, 0, None, ""),
    (2, 1, "def", 1, "team a", 1_893_456_000, 0, 1, 0, "gpt-4o,claude-3", "10.0.0.0/8"),
    (3, 1, "ghi", 4, "spent", -1, 0, 0, 0, None, ""),
    (4, 1, "jkl", 1, "claude only", -1, 0, 1, 0, "claude-3", ""),
    (5, 1, "mno", 1, "unpriced", -1, 100, 0, 0, "qwen", ""),
    (6, 1, "pqr", 2, "off", -1, 0, 1, 0, None, ""),
    (7, 2, "stu", 1, "of bob", -1, 0, 1, 0, None, ""),
]
USERS: list[tuple[Any, ...]] = [(1, "root", 25_000_000, 1), (2, "bob", 0, 1), (3, "nobody", 5, 1)]
OPTIONS: list[tuple[Any, ...]] = [
    ("ModelRatio", '{"gpt-4o": 1.25, "small": 0.075}'),
    ("CompletionRatio", '{"gpt-4o": 4, "small": 4}'),
    ("GroupRatio", "{}"),
]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A `one-api.db` with something of everything."""
    path = tmp_path / "one-api.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA)
        for name, rows in {"channels": CHANNELS, "tokens": TOKENS, "users": USERS, "options": OPTIONS}.items():
            places = ", ".join("?" * len(rows[0]))
            connection.executemany(f"insert into {name} values({places})", rows)
        connection.commit()
    return path


def test_one_api_channels_become_upstreams_in_the_order_of_priority(run: Run, tmp_path: Path, database: Path) -> None:
    """With their keys, their names for models, and prices from the ratios."""
    config, _ = imported(run, tmp_path, "one-api", database)
    assert {name: upstream.base_url for name, upstream in config.upstreams.items()} == {
        "vllm": "http://10.0.0.9:8000/v1",
        "OpenAI-main": "https://api.openai.com/v1",
    }
    assert config.models["gpt-4o"].upstreams == ("vllm", "OpenAI-main")
    assert config.models["small"].name == "gpt-4o-mini"
    prices = config.models["gpt-4o"].price, config.models["small"].price
    assert prices[0] is not None
    assert prices[1] is not None
    assert (str(prices[0].input), str(prices[0].output)) == ("2.5", "10")
    assert (str(prices[1].input), str(prices[1].output)) == ("0.15", "0.6")
    assert config.models["qwen"].price is None
    assert set(config.models) == {"gpt-4o", "small", "qwen"}


def test_one_api_tokens_go_on_working_within_what_was_left(run: Run, tmp_path: Path, database: Path) -> None:
    """`sk-` and the key is what clients send; 500,000 of quota are a dollar."""
    config, _ = imported(run, tmp_path, "one-api", database)
    keys = {key.id: key for key in config.keys}
    first = keys["team-a"]
    assert first.secret_sha256 == (bytes.fromhex(digest(b"sk-abc123").removeprefix("sha256:")),)
    assert [(rule.rule_id, rule.unit, rule.per, rule.limit) for rule in first.quotas] == [
        ("balance", "cost_usd", "total", 1_000_000_000)
    ]
    assert (first.account, first.disabled) == ("root", False)
    second = keys["team-a-2"]
    assert (second.unlimited, second.models, second.disabled) == (True, ("gpt-4o",), False)
    assert second.expires_at is not None
    assert second.expires_at.timestamp() == 1_893_456_000
    assert config.accounts["root"].quotas[0].limit == 50 * 1_000_000_000


def test_nobody_who_was_limited_in_one_api_is_unlimited_here(run: Run, tmp_path: Path, database: Path) -> None:
    """Spent, without a countable price, of another API, switched off, of a user without credit: disabled, and said."""
    config, err = imported(run, tmp_path, "one-api", database)
    assert {key.id for key in config.keys if key.disabled} == {"spent", "claude-only", "unpriced", "off", "of-bob"}
    for said in (
        "token spent: nothing is left",
        "token claude only: none of its models",
        "token unpriced: 0.0002 USD are left, and no model has a price",
        "user bob: nothing is left",
    ):
        assert said in err


@pytest.mark.parametrize(
    "said",
    [
        "channel claude: left out: type 14",
        "channel old: left out: it is disabled",
        "channel vllm: has 2 keys: the first is used",
        "channel vllm: group vip",
        "team a: its limit on addresses",
        "set `price` of: qwen",
        "GroupRatio",
    ],
)
def test_what_one_api_has_and_we_have_not_is_named(run: Run, database: Path, said: str) -> None:
    """On stderr."""
    code, _, err = run("import", "one-api", database)
    assert code == 0
    assert said in err


def test_one_api_as_json_is_the_same(run: Run, tmp_path: Path, database: Path) -> None:
    """Rows of the tables, also as an answer of its API."""
    tables: dict[str, Any] = {}
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        for name in ("channels", "tokens", "users", "options"):
            tables[name] = [dict(row) for row in connection.execute(f"select * from {name}")]
    tables["channels"] = {"success": True, "message": "", "data": tables["channels"]}
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tables))
    from_json, from_database = run("import", "one-api", path), run("import", "one-api", database)
    assert from_json[1].splitlines()[1:] == from_database[1].splitlines()[1:]
    assert from_json[2] == from_database[2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "neither a SQLite database nor JSON"),
        (b"[]", "it has neither `channels` nor `tokens`"),
        (b'{"tokens": 7}', "tokens: must be a list of objects"),
        (b"SQLite format 3\0 and then nothing", "cannot read the database"),
    ],
)
def test_what_is_no_one_api_export_is_one_line(run: Run, tmp_path: Path, content: bytes, said: str) -> None:
    """Exit 2, nothing on stdout, no traceback."""
    path = tmp_path / "one-api.db"
    path.write_bytes(content)
    code, out, err = run("import", "one-api", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
