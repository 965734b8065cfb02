"""Secrets: read, digested, and never shown."""

import hashlib
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from meter_proxy.config import secrets
from meter_proxy.config.schema import RedisConfig
from meter_proxy.errors import ConfigError
from tests.unit.config.yaml_cases import BASE, config_of

SECRET = "sk-hunter2"
RAW = hashlib.sha256(SECRET.encode()).digest()


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_the_same_secret_is_the_same_key_from_wherever_it_comes(tmp_path: Path, ending: str) -> None:
    """Digest, environment and file give the same 32 bytes; a line end after it is not part of it."""
    (tmp_path / "secret").write_bytes((SECRET + ending).encode())
    assert secrets.key_digest(secrets.digest(SECRET.encode()), {}, tmp_path) == RAW
    assert secrets.key_digest({"env": "KEY"}, {"KEY": SECRET + ending}, tmp_path) == RAW
    assert secrets.key_digest({"file": "secret"}, {}, tmp_path) == RAW
    assert secrets.key_digest({"file": str(tmp_path / "secret")}, {}, Path("/")) == RAW


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            SECRET,
            "a secret in plain text is refused; write its digest, which `meter-proxy keys hash` prints",
        ),
        ("sha256:abc", "the digest after sha256: must have 64 hex digits"),
        ("sha256:" + "g" * 64, "the digest after sha256: must have 64 hex digits"),
        ({"env": "UNSET"}, "environment variable UNSET is not set"),
        ({"env": "EMPTY"}, "environment variable EMPTY is empty"),
        ({"env": "BLANK"}, "environment variable BLANK holds blanks or characters that no HTTP header can carry"),
        ({"file": "gone"}, "cannot read gone: No such file or directory"),
        ({"file": "."}, "cannot read .: Is a directory"),
        ({"file": "empty"}, "empty is empty"),
        ({"file": "big"}, "big holds more than 4096 bytes"),
        ({"file": "latin"}, "latin holds characters that no HTTP header can carry"),
        ({"file": "a\0b"}, "is not a file's name"),
        ({"fil": "x"}, "unknown key 'fil'; did you mean 'file'?; must be sha256:<64 hex digits> "),
        ({"env": "A", "file": "b"}, "must be sha256:<64 hex digits> "),
        ({}, "must be sha256:<64 hex digits> "),
        (["x"], "must be sha256:<64 hex digits> "),
        (5, "must be sha256:<64 hex digits> "),
    ],
)
def test_every_way_to_get_it_wrong_has_its_sentence(tmp_path: Path, written: object, message: str) -> None:
    """One clear sentence, and no secret in it."""
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "big").write_bytes(b"x" * 4097)
    (tmp_path / "latin").write_bytes("kéy".encode("latin-1"))
    with pytest.raises(ValueError) as caught:
        secrets.key_digest(written, {"EMPTY": "", "BLANK": "a b"}, tmp_path)
    assert str(caught.value).startswith(message)
    assert SECRET not in str(caught.value)


def test_an_upstreams_credential_comes_from_the_yaml_or_a_file_beside_it(tmp_path: Path) -> None:
    """api_key and api_key_file give the same; an empty one (`${VAR:-}`) is none."""
    (tmp_path / "upstream.key").write_text(SECRET + "\n")
    upstreams = (
        "upstreams:\n"
        "  a: {base_url: http://h/v1, api_key: '${KEY}'}\n"
        "  b: {base_url: http://h/v1, api_key_file: upstream.key}\n"
        "  c: {base_url: http://h/v1, api_key: '${NONE:-}', api_key_file: '${NONE:-}'}\n"
        "models: {'*': {upstream: a}}\n"
    )
    config = config_of(upstreams, tmp_path, {"KEY": SECRET})
    assert config.upstreams["a"].api_key == SecretStr(SECRET)
    assert config.upstreams["b"].api_key == SecretStr(SECRET)
    assert config.upstreams["c"].api_key is None


def test_no_secret_is_in_a_repr(tmp_path: Path) -> None:
    """Whatever is printed of a configuration can be pasted into an issue; digests are left out, too."""
    text = (
        "admin_token: ${S}\n"
        "redis: {url: 'redis://:${S}@h:1'}\n"
        "upstreams: {local: {base_url: 'http://h/v1', api_key: '${S}'}}\n"
        "models: {'*': {upstream: local}}\n"
        "keys: [{id: a, secret: {env: S}, quotas: unlimited}]\n"
    )
    config = config_of(text, tmp_path, {"S": SECRET})
    assert config.admin_token == config.upstreams["local"].api_key == SecretStr(SECRET)
    assert SECRET in config.redis.url
    for shown in (repr(config), str(config), repr(config.keys[0])):
        assert SECRET not in shown
        assert RAW.hex() not in shown
        assert repr(RAW) not in shown


def test_no_secret_is_in_a_fault(tmp_path: Path) -> None:
    """A secret in the wrong place is refused without being repeated."""
    wrong = (
        "listen: ${S}\n"
        "admin_token: ['${S}']\n"
        "redis: {url: '${S}', when_down: '${S}'}\n"
        "keys: [{id: a, secret: '${S}', disabled: '${S}', quotas: unlimited}]\n"
    )
    with pytest.raises(ConfigError) as caught:
        config_of(BASE + wrong, tmp_path, {"S": SECRET})
    assert len(caught.value.faults) == 6
    assert SECRET not in str(caught.value)


def test_no_secret_is_in_an_error_of_pydantic() -> None:
    """A program that builds sections itself may print what it gets."""
    with pytest.raises(ValidationError) as caught:
        RedisConfig(url=f"mysql://:{SECRET}@h")
    assert SECRET not in str(caught.value)
