"""The examples in `--help` teach; one that does not work teaches the wrong thing."""

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.main import get_command

from meter_proxy.cli.main import application
from tests.unit.cli.conftest import Run


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name)


def _parse(words: list[str]) -> str:
    """Find the command and parse its words without running it; its name."""
    command: Any = get_command(application())
    context: Any = command.make_context("meter-proxy", words)
    rest = [*context._protected_args, *context.args]
    while hasattr(command, "commands"):
        _, command, rest = command.resolve_command(context, rest)
        if hasattr(command, "commands"):
            context = command.make_context("group", rest, parent=context)
            rest = [*context._protected_args, *context.args]
    command.make_context("command", rest, parent=context)
    return str(command.name)


def _examples(help: str) -> list[str]:
    _, heading, examples = help.partition("Examples:\n")
    assert heading, "a help text without examples"
    return [line.strip() for line in examples.splitlines() if line.strip()]


ALL = sorted(_commands(get_command(application())))


def test_every_command_is_looked_at() -> None:
    """The list is not empty by mistake."""
    assert {("serve",), ("top",), ("keys", "create"), ("import", "one-api")} <= set(ALL)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_example_in_a_help_text_parses_and_is_of_its_command(run: Run, path: tuple[str, ...]) -> None:
    """Each can be pasted into a shell: it is on one line, and has no option that does not exist."""
    examples = _examples(run(*path, "--help")[1])
    assert examples
    for example in examples:
        commands = [part.strip() for part in example.replace("<", "|").replace(">", "|").split("|")]
        (ours,) = [shlex.split(part) for part in commands if part.startswith("meter-proxy ")]
        assert tuple(ours[1 : len(path) + 1]) == path
        assert _parse(ours[1:]) == path[-1]


def test_an_example_with_a_wrong_option_would_be_noticed() -> None:
    """The check can fail."""
    with pytest.raises(typer.TyperException):
        _parse(["usage", "--bye", "key"])
