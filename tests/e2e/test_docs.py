"""The pages are true: their configurations are checked, their commands parse, their links lead somewhere."""

import re
from pathlib import Path

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from meter_proxy.cli.main import application
from meter_proxy.config.load import check
from meter_proxy.config.reload import FIXED, FIXED_LIMITS, FIXED_REDIS
from meter_proxy.ledger.journal import JournalRecord
from meter_proxy.telemetry.metrics import Metrics
from meter_proxy.usage import Basis, Operation, Outcome
from tests.support.pages import REPOSITORY, Block, blocks, meter_proxy_commands, pages

YAML_BLOCKS = [block for page in pages() for block in blocks(page, "yaml")]
COMMANDS = [
    pytest.param(words, id=f"{page.relative_to(REPOSITORY)}: {line.strip()}")
    for page in pages()
    for line, words in meter_proxy_commands(page)
]
_VARIABLE = re.compile(r"env: (\w+)|\$\{(\w+)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def variables(text: str) -> dict[str, str]:
    """A value for each variable of the environment that a configuration names, each another one."""
    return {name: f"sk-{name}" for names in _VARIABLE.findall(text) for name in names if name}


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=str)
def test_every_yaml_block_is_a_configuration_or_says_that_it_is_a_fragment(block: Block, tmp_path: Path) -> None:
    """`check-config` finds nothing; a fragment is YAML at least."""
    if block.note == "fragment":
        list(yaml.safe_load_all(block.text))
        return
    assert not block.note
    path = tmp_path / "meter-proxy.yaml"
    path.write_text(block.text)
    assert not check(path, variables(block.text))


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_parses(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It exists, and takes these options and arguments."""
    monkeypatch.chdir(tmp_path)
    for word in words:
        if re.fullmatch(r"[\w-]+(\.\w+)?", word):
            (tmp_path / word).touch()  # it may be a file that must be there
    command, name = get_command(application()), "meter-proxy"
    while isinstance(command, TyperGroup) and words:
        name, *words = words
        assert name in command.commands, name
        command = command.commands[name]
    command.make_context(name, list(words))


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """Files are there, and headings are."""
    for link in _LINK.findall(page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            text = re.sub(r"^```.*?^```$", "", target.read_text(), flags=re.MULTILINE | re.DOTALL)
            assert anchor in {anchor_of(title) for title in _HEADING.findall(text)}, link


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_metric_named_exists(page: Path) -> None:
    """As it is exposed, or as what a histogram is made of."""
    exposed = set(re.findall(r"^# TYPE (\S+)", Metrics(version="0", servers={}).render(), re.MULTILINE))
    exposed |= {f"{name}{suffix}" for name in exposed for suffix in ("_bucket", "_sum", "_count")}
    named = set(re.findall(r"\b(?:meter_proxy|gen_ai_server)_\w*[a-z]\b(?![./*])", page.read_text()))
    assert not named - exposed


def words_in_code(text: str) -> set[str]:
    """What stands in backticks."""
    return set(re.findall(r"`([^`\s]+)`", text))


def test_the_table_of_fields_is_whole() -> None:
    """Every field of a record as it is printed, every outcome and every basis has its place, and no other has."""
    table = (REPOSITORY / "deploy/docs/billing.md").read_text().partition("## The fields of a record")[2]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    fields = {name for first, _ in rows for name in words_in_code(first)}
    assert fields == {*JournalRecord.__struct_fields__} - {"charges"}
    explained = {name: meaning for first, meaning in rows for name in words_in_code(first)}
    assert words_in_code(explained["outcome"]) == {*map(str, Outcome)} - {"denied"}
    assert words_in_code(explained["basis"]) == {*map(str, Basis)} - {"tokenized"}  # which nothing makes yet
    assert words_in_code(explained["operation"]) == set(map(str, Operation))


def test_what_needs_a_restart_is_named() -> None:
    """All of it, and nothing else."""
    page = (REPOSITORY / "deploy/docs/troubleshooting.md").read_text()
    named = page.partition("These need a restart: ")[2].partition(". Variables")[0]
    fixed = {*FIXED, *(f"limits.{name}" for name in FIXED_LIMITS), *(f"redis.{name}" for name in FIXED_REDIS)}
    assert words_in_code(named) == {name.removesuffix("_s") for name in fixed}


def anchor_of(title: str) -> str:
    """How GitHub names a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
