"""Files, options of the command line, and URLs become a Config, or faults."""

from pathlib import Path

import pytest

from meter_proxy.config.load import (
    Overrides,
    check,
    config_for_upstream,
    load_config,
    not_yet_enforced,
    state_dir_of,
)
from meter_proxy.config.schema import Address
from meter_proxy.errors import ConfigError
from tests.unit.config.yaml_cases import BASE, EXAMPLE, config_of, faults_of


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "1:1: the file is empty; see `meter-proxy config schema` for what may stand in it"),
        (b"a: 1\nb: \xc3\xa9\xff", "2:5: not UTF-8: byte 0xff"),
        ("a: 1".encode("utf-16"), "1:1: not UTF-8: byte 0xff"),
        (b"a: [", "1:5: not YAML: while parsing a flow node, expected the node content, but found '<stream end>'"),
        (b"a: \0", "1:4: not YAML: character #x0000 is not allowed"),
        (b"[]", "1:1: must be a mapping, not a list"),
        (b"text", "1:1: must be a mapping"),
        (b"#" * (16 * 1024**2 + 1), "1:1: the file is larger than 16777216 bytes"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_clear_line(tmp_path: Path, content: bytes, fault: str) -> None:
    """Never a traceback, always a place."""
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    assert [str(found) for found in check(path, {})] == [f"{path}:{fault}"]


def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    """Missing, or a directory."""
    gone = tmp_path / "gone.yaml"
    assert [str(found) for found in check(gone, {})] == [f"{gone}:1:1: cannot read the file: No such file or directory"]
    assert [str(found) for found in check(tmp_path, {})] == [f"{tmp_path}:1:1: cannot read the file: Is a directory"]
    with pytest.raises(ConfigError) as caught:
        load_config(gone, {})
    assert str(caught.value) == f"{gone}:1:1: cannot read the file: No such file or directory"


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    """Editors of some systems leave one."""
    assert faults_of("\ufeff" + BASE, tmp_path) == []


def test_relative_paths_mean_the_directory_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the proxy is started from: for the state, for secrets, for tokenizers; links are not followed."""
    (tmp_path / "etc" / "data").mkdir(parents=True)
    (tmp_path / "etc" / "tokenizer.json").write_text("{}")
    (tmp_path / "etc" / "data" / "c.yaml").write_text(
        BASE.replace('/v1"', '/v1", tokenizer: ./tokenizer.json') + "state_dir: ../state\n"
    )
    (tmp_path / "etc" / "c.yaml").symlink_to("data/c.yaml")
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("etc/c.yaml"), {})
    assert config.state_dir == tmp_path / "etc" / ".." / "state"
    assert config.upstreams["local"].tokenizer == str(tmp_path / "etc" / "tokenizer.json")


def test_options_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over what the file does not say; a relative --state-dir means the current directory."""
    path = tmp_path / "c.yaml"
    path.write_text(BASE + "listen: 127.0.0.1:1\nworkers: 2\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    overrides = Overrides(listen="127.0.0.1:2", admin="[::1]:3", redis="redis://h:4", workers=5, state_dir="s")
    config = load_config(path, {}, overrides=overrides)
    assert (config.listen, config.admin) == (Address("127.0.0.1", 2), Address("::1", 3))
    assert (config.redis.url, config.workers, config.state_dir) == ("redis://h:4", 5, tmp_path / "here" / "s")
    assert load_config(path, {}).listen == Address("127.0.0.1", 1)


def test_faults_of_options_name_the_option(tmp_path: Path) -> None:
    """No line of the file is blamed for them."""
    path = tmp_path / "c.yaml"
    path.write_text(BASE + "workers: 2\n")
    overrides = Overrides(listen="8080", admin="0.0.0.0:1", redis="mysql://hunter2", workers=0)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {}, overrides=overrides)
    assert caught.value.faults == [
        "--listen: must be HOST:PORT, such as 127.0.0.1:8080",
        "--workers: must be at least 1",
        "--redis: must be embedded, or a URL with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://",
        "--admin: 0.0.0.0:1 is not on loopback: set admin_token, or listen on 127.0.0.1",
    ]


def test_a_public_listener_without_keys_must_be_meant(tmp_path: Path) -> None:
    """--allow-anonymous is an option and no word of the YAML, so that no copied file opens a proxy."""
    path = tmp_path / "c.yaml"
    path.write_text(BASE + "listen: 0.0.0.0:8080\n")
    assert len(check(path, {})) == 1
    assert check(path, {}, allow_anonymous=True) == []
    assert load_config(path, {}, allow_anonymous=True).listen.port == 8080


def test_a_url_alone_is_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One upstream, any model, no keys; /v1 where the URL has no path."""
    monkeypatch.chdir(tmp_path)
    config = config_for_upstream("http://127.0.0.1:8000", listen="127.0.0.1:1", workers=1, redis="redis://h")
    assert config.upstreams["upstream"].base_url == "http://127.0.0.1:8000/v1"
    assert config.models["*"].upstreams == ("upstream",)
    assert (config.keys, config.workers, config.redis.url) == ((), 1, "redis://h")
    assert config.state_dir == tmp_path / "state"
    assert config_for_upstream("https://h/api/v3/").upstreams["upstream"].base_url == "https://h/api/v3"


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("127.0.0.1:8000", "--upstream: must be a URL such as http://127.0.0.1:8000/v1"),
        ("http://h:x/v1", "--upstream: is not a URL: its host or port is broken"),
        ("http://u:hunter2@h", "--upstream: must not hold a user or password; use api_key"),
    ],
)
def test_a_wrong_url_names_its_option(url: str, fault: str) -> None:
    """One line."""
    with pytest.raises(ConfigError) as caught:
        config_for_upstream(url)
    assert caught.value.faults == [fault]


def test_a_url_alone_serves_only_this_machine_unless_asked() -> None:
    """As with a file."""
    with pytest.raises(ConfigError) as caught:
        config_for_upstream("http://h", listen="0.0.0.0:1")
    assert caught.value.faults == [
        "--listen: 0.0.0.0:1 is not on loopback and there are no keys: add keys, or start with --allow-anonymous"
    ]
    assert config_for_upstream("http://h", listen="0.0.0.0:1", allow_anonymous=True).listen.port == 1


def test_what_is_not_enforced_yet_is_said(tmp_path: Path) -> None:
    """One line a thing; nothing for what works, and nothing for defaults."""
    assert not_yet_enforced(config_of(BASE, tmp_path)) == []
    assert not_yet_enforced(config_of(EXAMPLE, tmp_path, {"CI_KEY": "sk-ci-team"})) == []
    tokenizer = BASE.replace('/v1"', '/v1", tokenizer: o200k_base')
    assert not_yet_enforced(config_of(tokenizer, tmp_path)) == [
        "not enforced yet: tokenizer o200k_base of upstream local"
    ]


def test_the_books_are_found_without_the_secrets(tmp_path: Path) -> None:
    """`usage` and `records` run in shells that lack the proxy's environment."""
    path = tmp_path / "c.yaml"
    path.write_text(EXAMPLE.replace("127.0.0.1:8080", "0.0.0.0:8080"))
    assert state_dir_of(path, {}) == tmp_path / "state"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (BASE + "state_dir: []", "3:12: state_dir: must be text, not a list"),
        (BASE + "state_dir: ${UNSET}", "3:12: state_dir: environment variable UNSET is not set; "),
        (BASE + "state_dir: a\nstate_dir: b", "4:1: state_dir: duplicate key 'state_dir'; it stands first at line 3"),
        ("- a", "1:1: must be a mapping, not a list"),
        ("", "1:1: the file is empty; "),
    ],
)
def test_no_other_books_are_read_when_the_place_is_unclear(tmp_path: Path, text: str, fault: str) -> None:
    """A default is no answer to a fault."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        state_dir_of(path, {})
    (found,) = caught.value.faults
    assert found.startswith(f"{path}:{fault}")
