"""Noticing that a configuration has changed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from meter_proxy.config.load import config_for_upstream
from meter_proxy.config.reload import ConfigSource, files_of
from meter_proxy.config.schema import Config
from meter_proxy.errors import ConfigError


def nothing() -> Config:
    return config_for_upstream("http://127.0.0.1:9", state_dir=Path("state"))


def source_of(path: Path, load: Callable[[], Config] = nothing) -> ConfigSource:
    """Loaded once."""
    source = ConfigSource(path, load, {})
    source.load()
    return source


def changes_within(source: ConfigSource, looks: int) -> list[bool]:
    return [source.has_changed() for _ in range(looks)]


def write(path: Path, text: str) -> None:
    """A write that no clock is too coarse for."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 1_000_000, before + 1_000_000))


def test_a_change_is_told_when_it_has_settled_and_until_it_is_loaded(tmp_path: Path) -> None:
    """An editor that is still writing is waited for."""
    path = tmp_path / "c.yaml"
    write(path, "a: 1")
    source = source_of(path)
    assert changes_within(source, 2) == [False, False]
    write(path, "a: 2")
    assert changes_within(source, 1) == [False]
    write(path, "a: 3")
    assert changes_within(source, 3) == [False, True, True]
    source.load()
    assert changes_within(source, 2) == [False, False]


def test_a_change_of_the_same_size_and_a_replaced_file_are_changes(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    write(path, "a: 1")
    source = source_of(path)
    other = tmp_path / "new"
    write(other, "a: 2")
    os.utime(other, ns=(path.stat().st_mtime_ns,) * 2)
    other.replace(path)
    assert changes_within(source, 2) == [False, True]


def test_a_file_that_is_only_touched_is_no_change(tmp_path: Path) -> None:
    """Every minute some tool does it."""
    path = tmp_path / "c.yaml"
    write(path, "a: 1")
    source = source_of(path)
    write(path, "a: 1")
    assert changes_within(source, 3) == [False, False, False]


def test_what_is_written_while_it_is_loaded_is_a_change(tmp_path: Path) -> None:
    """It may have come too late."""
    path = tmp_path / "c.yaml"
    write(path, "a: 1")

    def slow() -> Config:
        write(path, "a: 2")
        return nothing()

    assert changes_within(source_of(path, slow), 2) == [False, True]


def test_a_bad_one_is_not_tried_again_until_it_changes(tmp_path: Path) -> None:
    """One line in the log, not one a second."""
    path = tmp_path / "c.yaml"
    write(path, "a: 1")

    def bad() -> Config:
        raise ConfigError(["no"])

    source = ConfigSource(path, bad, {})
    with pytest.raises(ConfigError):
        source.load()
    assert changes_within(source, 3) == [False, False, False]
    write(path, "a: 2")
    assert changes_within(source, 2) == [False, True]


def test_a_file_that_is_gone_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    write(path, "a: 1")
    source = source_of(path)
    path.unlink()
    assert changes_within(source, 3) == [False, False, False]
    path.write_text("a: 2")
    assert changes_within(source, 2) == [False, True]


def test_the_links_of_a_config_map_are_followed(tmp_path: Path) -> None:
    """Kubernetes swaps the directory behind them."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "c.yaml", f"a: {name}")
    (tmp_path / "data").symlink_to("one")
    (tmp_path / "c.yaml").symlink_to("data/c.yaml")
    source = source_of(tmp_path / "c.yaml")
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(tmp_path / "data")
    assert changes_within(source, 2) == [False, True]


SECRETS = """
upstreams: {local: {base_url: http://x/v1, api_key_file: up.key}}
keys:
  - {id: a, secret: {file: "${WHERE}/a.key"}}
  - {id: b, secret: [{file: b.key}, {env: B}]}
"""


def test_a_rotated_secret_is_a_change(tmp_path: Path) -> None:
    """Also one that was not there before."""
    path = tmp_path / "c.yaml"
    write(path, SECRETS)
    env = {"WHERE": str(tmp_path / "run")}
    expected = [path, tmp_path / "up.key", tmp_path / "run" / "a.key", tmp_path / "b.key"]
    assert files_of(path, env) == expected
    source = ConfigSource(path, nothing, env)
    (tmp_path / "run").mkdir()
    source.load()
    for secret in expected[1:]:
        write(secret, "sk-1")
        assert changes_within(source, 2) == [False, True]
        source.load()
        write(secret, "sk-2")
        assert changes_within(source, 2) == [False, True]
        source.load()


@pytest.mark.parametrize("text", ["keys: [", "file: ${NOT_SET}", "file: [1]", "- file:\n- 1", "", "file: \0"])
def test_what_cannot_be_read_names_no_files(tmp_path: Path, text: str) -> None:
    """Loading it says what is wrong."""
    path = tmp_path / "c.yaml"
    write(path, text)
    assert files_of(path, {}) == [path]
