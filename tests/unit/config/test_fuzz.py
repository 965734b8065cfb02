"""Broken configurations by the hundred: whatever is wrong, the answer is faults, never an exception of another kind."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meter_proxy.config import marks
from meter_proxy.config.faults import Fault, Loc
from meter_proxy.config.load import check, load_config
from meter_proxy.errors import ConfigError
from tests.unit.config.yaml_cases import EXAMPLE

ENV = {"CI_KEY": "sk-ci-of-the-team"}
STRANGERS: list[Any] = [None, True, "", "x", 7, -1, [], ["x"], [[]], {}, {"x": 1}, [{"x": {}}], "${GONE}", "unlimited"]
STRANGERS += ["\ud800", {"\ud800": 1}, "9" * 5000, "0001-01-01T00:00:00+14:00", "\0", "http://[", "١"]


def places(value: Any, loc: Loc = ()) -> Iterator[Loc]:
    """Every place in plain data, the whole included."""
    yield loc
    for part, member in (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    ):
        yield from places(member, (*loc, part))


def mutate(data: Any, chance: random.Random) -> Any:
    """Change one place: another value, gone, under another name, twice, or with a stranger inside."""
    loc = chance.choice(list(places(data)))
    if not loc:
        return copy.deepcopy(chance.choice(STRANGERS)) if chance.random() < 0.1 else data
    around = data
    for part in loc[:-1]:
        around = around[part]
    last: Any = loc[-1]
    match chance.choice(["replace", "replace", "delete", "rename", "repeat", "insert"]):
        case "replace":
            around[last] = copy.deepcopy(chance.choice(STRANGERS))
        case "delete":
            del around[last]
        case "rename" if isinstance(around, dict):
            around[chance.choice([f"{last}s", str(last)[:-1], "x", "a b", "*", ""])] = around.pop(last)
        case "repeat" if isinstance(around, list):
            around.append(copy.deepcopy(around[last]))
        case _ if isinstance(around[last], dict):
            around[last]["x"] = copy.deepcopy(chance.choice(STRANGERS))
        case _:
            around[last] = [around[last]]
    return data


def answer(text: str, path: Path) -> list[Fault]:
    """The faults of a text; load_config must agree."""
    path.write_text(text)
    faults = check(path, ENV)
    try:
        load_config(path, ENV)
    except ConfigError as exc:
        assert exc.faults == [str(fault) for fault in faults]
        assert faults
    else:
        assert faults == []
    return faults


@pytest.mark.parametrize("seed", range(10))
def test_mutations_of_the_example_are_answered_with_faults(tmp_path: Path, seed: int) -> None:
    """One to three changes at any place, of any kind; each fault has a place in the file and one line."""
    chance = random.Random(seed)
    example = marks.read(EXAMPLE).data
    for _ in range(40):
        data = copy.deepcopy(example)
        for _ in range(chance.randint(1, 3)):
            data = mutate(data, chance)
        text = json.dumps(data)  # JSON is YAML
        for fault in answer(text, tmp_path / "c.yaml"):
            assert fault.line == 1, text
            assert fault.message, text
            assert "\n" not in str(fault), text


@pytest.mark.parametrize("seed", range(10))
def test_mangled_lines_are_answered_with_faults(tmp_path: Path, seed: int) -> None:
    """Lines lost, doubled, shifted, cut, or with a stray character."""
    chance = random.Random(seed)
    for _ in range(40):
        lines = EXAMPLE.splitlines()
        at = chance.randrange(len(lines))
        match chance.randrange(5):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[chance.randrange(len(lines))])
            case 2:
                lines[at] = "  " + lines[at]
            case 3:
                lines[at] = lines[at][: chance.randrange(len(lines[at]) + 1)]
            case 4:
                column = chance.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:column] + chance.choice("{}[]:,&*!|>'\"%@`#-? \t\x00é") + lines[at][column:]
        answer("\n".join(lines), tmp_path / "c.yaml")
