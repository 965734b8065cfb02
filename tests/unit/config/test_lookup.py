"""The hot path's two questions: whose secret is this, and where does this model go."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from meter_proxy.config.lookup import KeyRing, ModelTable
from meter_proxy.config.schema import Key
from tests.unit.config.yaml_cases import config_of

TEXT = """\
upstreams:
  one: {base_url: "http://one/v1"}
  two: {base_url: "http://two/v1"}
models:
  gpt-4o: {upstream: [one, two], price: {input: 1, output: 2}, max_output_tokens: 4k}
  auto: {upstream: one, name: qwen}
  "gpt-*": {upstream: two}
  "gpt-4o-*": {upstream: one}
  "[beta]x": {upstream: one}
  "?": {upstream: one}
  "*": {upstream: [two, one], name: any}
keys:
  - {id: all, secret: [{env: A1}, {env: A2}], quotas: unlimited}
  - {id: some, secret: {env: S}, quotas: unlimited, models: ["gpt-4o*", "[beta]*"]}
  - {id: off, secret: {env: O}, quotas: unlimited, disabled: true}
  - {id: ends, secret: {env: E}, quotas: unlimited, expires_at: 2027-01-01T00:00:00Z}
"""
ENV = {"A1": "secret-a1", "A2": "secret-a2", "S": "secret-s", "O": "secret-o", "E": "secret-e"}
NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC).timestamp()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


@pytest.fixture(scope="module")
def ring(directory: Path) -> KeyRing:
    return KeyRing(config_of(TEXT, directory, ENV))


@pytest.fixture(scope="module")
def table(directory: Path) -> ModelTable:
    return ModelTable(config_of(TEXT, directory, ENV))


@pytest.mark.parametrize(
    ("secret", "now", "key_id"),
    [
        (b"secret-a1", 0.0, "all"),
        (b"secret-a2", 0.0, "all"),
        (b"secret-s", 0.0, "some"),
        (b"secret-o", 0.0, None),
        (b"secret-e", NEW_YEAR - 0.001, "ends"),
        (b"secret-e", NEW_YEAR, None),
        (b"secret-a", 0.0, None),
        (b"secret-a1\n", 0.0, None),
        (b"", 0.0, None),
    ],
)
def test_only_the_whole_secret_of_a_key_in_force_is_found(
    ring: KeyRing, secret: bytes, now: float, key_id: str | None
) -> None:
    """Both secrets of a rotation; none of a disabled key, none from the moment on at which it expires."""
    found = ring.find(secret, now)
    assert (found.id if found else None) == key_id


def _key(ring: KeyRing, secret: bytes) -> Key:
    key = ring.find(secret, 0.0)
    assert key is not None
    return key


@pytest.mark.parametrize(
    ("asked", "entry", "upstreams", "sent"),
    [
        ("gpt-4o", "gpt-4o", ("one", "two"), "gpt-4o"),
        ("auto", "auto", ("one",), "qwen"),
        ("gpt-4o-mini", "gpt-4o-*", ("one",), "gpt-4o-mini"),
        ("gpt-5", "gpt-*", ("two",), "gpt-5"),
        ("[beta]x", "[beta]x", ("one",), "[beta]x"),
        ("GPT-4o", "*", ("two", "one"), "any"),
        ("b", "?", ("one",), "b"),
        ("bb", "*", ("two", "one"), "any"),
    ],
)
def test_a_name_goes_to_its_own_entry_before_patterns(
    table: ModelTable, asked: str, entry: str, upstreams: tuple[str, ...], sent: str
) -> None:
    """Own entry, then the longest pattern, then `"*"`; with case, and brackets are letters."""
    found = table.resolve(asked, None)
    assert found is not None
    assert (found.asked, found.entry, found.upstreams, found.upstream_model) == (asked, entry, upstreams, sent)
    assert found.is_configured is (asked == entry)


def test_price_and_bound_come_along(table: ModelTable) -> None:
    """What the bill needs is on the answer."""
    found = table.resolve("gpt-4o", None)
    assert found is not None
    assert found.price is not None
    assert (found.price.input, found.max_output_tokens) == (Decimal(1), 4000)


def test_a_key_gets_only_its_models(ring: KeyRing, table: ModelTable) -> None:
    """Patterns of the key are held against the name asked for, whichever entry it would go to."""
    key = _key(ring, b"secret-s")
    assert table.resolve("gpt-4o", key) is not None
    assert table.resolve("gpt-4o-mini", key) is not None
    assert table.resolve("[beta]y", key) is not None
    assert table.resolve("gpt-5", key) is None
    assert table.resolve("xgpt-4o", key) is None
    assert table.resolve("gpt-5", _key(ring, b"secret-a1")) is not None


def test_unknown_models_resolve_to_nothing(directory: Path) -> None:
    """Without `"*"` only what is configured exists."""
    table = ModelTable(config_of(TEXT.replace('  "*": {upstream: [two, one], name: any}\n', ""), directory, ENV))
    assert table.resolve("bb", None) is None
    assert table.resolve("", None) is None


def test_the_list_of_models_holds_names_only(ring: KeyRing, table: ModelTable) -> None:
    """Patterns are not listed; their upstreams are known to those who want to ask them."""
    assert table.list(None) == ["gpt-4o", "auto", "[beta]x"]
    assert table.list(_key(ring, b"secret-s")) == ["gpt-4o", "[beta]x"]
    assert table.passthrough_upstreams == ("one", "two")
