"""deploy/meter-proxy.yaml is the reference: whole, valid, and true about the defaults."""

import shutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from meter_proxy.config.load import load_config
from meter_proxy.config.schema import Config, JournalConfig, Limits, RedisConfig, Section, Upstream
from tests.support.proc import REPOSITORY, run_command

REFERENCE = REPOSITORY / "deploy" / "meter-proxy.yaml"
ENVIRONMENT = {"CI_KEY": "sk-ci"}


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """The file, in a directory that has the secrets it names."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "openai").write_text("sk-openai\n")
    (tmp_path / "secrets" / "ci").write_text("sk-ci-next\n")
    return Path(shutil.copy(REFERENCE, tmp_path))


def sections_of(annotation: Any) -> Iterator[type[Section]]:
    """The sections inside a type: `dict[Id, Model]` has Model."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from sections_of(argument)


def options_of(section: type[BaseModel]) -> Iterator[str]:
    """Every option as `Quota.per`: a rule's options are the same in plans, keys and accounts."""
    for name, field in section.model_fields.items():
        yield f"{section.__name__}.{field.alias or name}"
        for inner in sections_of(field.annotation):
            yield from options_of(inner)


def written(value: Any, section: type[BaseModel]) -> Iterator[str]:
    """Every option that a document sets, in the same form."""
    for name, field in section.model_fields.items():
        key = field.alias or name
        if key not in value:
            continue
        yield f"{section.__name__}.{key}"
        for inner in sections_of(field.annotation):
            member = value[key]
            if typing.get_origin(field.annotation) is dict:
                members = list(member.values())
            else:
                members = member if isinstance(member, list) else [member]
            for one in members:
                if isinstance(one, dict):
                    yield from written(one, inner)


def test_every_option_is_in_it() -> None:
    """Each option of the schema, and nothing that is none."""
    options = set(options_of(Config))
    assert {"Config.listen", "Timeouts.first_byte", "Quota.when_down", "Price.cached_input"} <= options
    assert set(written(yaml.safe_load(REFERENCE.read_text()), Config)) == options


async def test_check_config_finds_nothing(reference: Path) -> None:
    """The installed command agrees."""
    code, out, err = await run_command("check-config", reference, env=ENVIRONMENT)
    assert code == 0, out + err


def test_what_it_calls_a_default_is_one(reference: Path) -> None:
    """Whatever does not say Example has the value that it would have without being written."""
    config = load_config(reference, ENVIRONMENT)
    assert config.limits == Limits()
    assert config.redis == RedisConfig()
    examples = {"keep_bytes": None, "archive": None}
    assert config.journal.model_copy(update=examples) == JournalConfig()
    plain = Upstream(base_url="http://127.0.0.1:8000/v1")
    assert config.upstreams["local"] == plain
    smallest = Config(upstreams={"local": plain})
    for name in ("listen", "admin", "admin_token", "path_prefixes"):
        assert getattr(config, name) == getattr(smallest, name), name
    assert config.state_dir == reference.parent / smallest.state_dir.name
