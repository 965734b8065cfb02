"""One fault of a configuration, and how a place in it is written."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeAlias

Loc: TypeAlias = tuple[str | int, ...]  # ("keys", 1, "quotas", 0, "per")

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+\Z")


@dataclass(frozen=True)
class Fault:
    """What is wrong, where, and what to write instead. Lines and columns count from 1.

    A fault of a command line option has no line (0); its `path` is the option.
    """

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        parts = [f"{self.file}:{self.line}:{self.column}"] if self.line else []
        if self.path:
            parts.append(self.path)
        return ": ".join([*parts, self.message])


@dataclass(frozen=True)
class Finding:
    """A fault before its line is known."""

    loc: Loc
    message: str
    because: tuple[Loc, ...] = ()  # what else it rests on: a fault there may be the true one
    other: Loc | None = None  # the place with which this one collides
    on_key: bool = False  # the name is wrong, not the value


def dotted(loc: Loc) -> str:
    """Write a place as people do: `keys[1].quotas[0].per`, `models["*"].upstream`."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _PLAIN_NAME.match(part):
            path += f".{part}" if path else part
        else:
            path += f"[{json.dumps(part, ensure_ascii=False)}]"
    return path


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no known word is near."""
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""
