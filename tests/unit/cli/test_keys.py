"""`keys create` and `keys hash` as they are typed."""

import hashlib
import json
import re

import pytest
import yaml
from typer.testing import CliRunner

from meter_proxy.cli.main import application


def _create(*options: str) -> str:
    result = CliRunner().invoke(application(), ["keys", "create", *options])
    assert result.exit_code == 0
    return result.output


def _secret(output: str) -> str:
    (secret,) = re.findall(r"^  (\S+)$", output, re.MULTILINE)
    return str(secret)


def test_create_prints_a_secret_once_and_the_entry_for_it() -> None:
    """The entry can be pasted under `keys:`, and is the secret's own."""
    output = _create("--id", "alice")
    secret = _secret(output)
    (entry,) = yaml.safe_load(output[output.index("  - id:") :])
    assert entry["id"] == "alice"
    assert entry["secret"] == "sha256:" + hashlib.sha256(secret.encode()).hexdigest()
    assert output.count(secret) == 1


def test_secrets_cannot_be_guessed() -> None:
    """32 random bytes behind the prefix; never the same twice."""
    first, second = (_secret(_create("--id", "a", "--prefix", "sk-x-")) for _ in range(2))
    assert first.startswith("sk-x-")
    assert len(first.removeprefix("sk-x-")) == 43
    assert first != second
    assert _secret(_create("--id", "a")).startswith("sk-mp-")


@pytest.mark.parametrize("options", [["--id", "a b"], ["--id", ""], ["--id", "a", "--prefix", "a b"], []])
def test_create_refuses_what_could_not_be_used(options: list[str]) -> None:
    """Exit 2, and no secret is made."""
    result = CliRunner().invoke(application(), ["keys", "create", *options])
    assert result.exit_code == 2
    assert "Secret" not in result.output


@pytest.mark.parametrize("typed", ["test", "test\n", "test\r\n"])
def test_hash_reads_one_line(typed: str) -> None:
    """The line end is not part of the secret."""
    result = CliRunner().invoke(application(), ["keys", "hash"], input=typed)
    assert result.exit_code == 0
    assert result.output == "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n"


@pytest.mark.parametrize("typed", ["", "\n"])
def test_hash_of_nothing_is_refused(typed: str) -> None:
    """A digest of the empty secret would let everybody in who sends none."""
    result = CliRunner().invoke(application(), ["keys", "hash"], input=typed)
    assert result.exit_code == 2
    assert "sha256:" not in result.output


def test_a_new_key_for_programs() -> None:
    """One JSON document: the secret, and the entry for it."""
    document = json.loads(_create("--id", "ci", "--format", "json"))
    digest = hashlib.sha256(document["secret"].encode()).hexdigest()
    assert document["entry"] == {"id": "ci", "secret": f"sha256:{digest}", "quotas": "unlimited"}
    result = CliRunner().invoke(application(), ["keys", "hash", "--format", "json"], input=document["secret"])
    assert json.loads(result.output) == {"secret": f"sha256:{digest}"}
