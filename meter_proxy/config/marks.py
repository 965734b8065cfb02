"""YAML text -> plain data, and the line and column of every value and key in it.

Only mappings, lists and scalars come out; nothing is constructed by tag. Scalars stay text as it was
written, but for null and true/false: YAML's own guesses (`off` is false, `1:30` is 90) do not apply,
each field reads its own text.

Faults do not end the reading: what is wrong is left out of the data and listed in `broken`, so that
the rest can be checked. Reading is bounded in depth and in what aliases may expand to.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from meter_proxy.config.faults import Loc
from meter_proxy.config.values import is_whole

Mark: TypeAlias = tuple[int, int]  # line, column; both from 1

MAX_DEPTH = 32  # our deepest place has 6 levels
MAX_REPEATED_NODES = 100_000  # what aliases may expand to: a thousand keys that share a list of rules stay far below

_PREFIX = "tag:yaml.org,2002:"
_SCALAR_TAGS = {_PREFIX + name for name in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")}
_BOOLS = {"true": True, "false": False}


@dataclass
class Document:
    """What a YAML text says, and where it says it."""

    data: Any = None
    values: dict[Loc, Mark] = field(default_factory=dict)
    keys: dict[Loc, Mark] = field(default_factory=dict)
    faults: list[tuple[Mark, Loc, str]] = field(default_factory=list)
    broken: set[Loc] = field(default_factory=set)  # places whose value is not what the operator meant

    def mark(self, loc: Loc, *, key: bool = False) -> Mark:
        """Where `loc` stands, or the nearest place around it that is in the text."""
        if key and loc in self.keys:
            return self.keys[loc]
        while loc not in self.values and loc:
            loc = loc[:-1]
        return self.values.get(loc, (1, 1))


class Unreadable(Exception):
    """The text is no YAML document at all: one fault, at one place."""

    def __init__(self, mark: Mark, message: str) -> None:
        super().__init__(message)
        self.mark = mark
        self.message = message


def read(text: str) -> Document:
    """Read one YAML document. Raises Unreadable for syntax errors and for texts without any value."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        line, column = _mark(exc.problem_mark) if exc.problem_mark else (1, 1)
        problem = ", ".join(part for part in (exc.context, exc.problem) if part)
        if "${" in "".join(text.splitlines()[line - 1 : line]):
            problem += "; inside { } or [ ] put ${VAR} in quotes"
        raise Unreadable((line, column), f"not YAML: {problem}") from exc
    except yaml.reader.ReaderError as exc:
        before = text[: exc.position]
        mark = (before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise Unreadable(mark, f"not YAML: character #x{ord(text[exc.position]):04x} is not allowed") from exc
    except RecursionError as exc:
        raise Unreadable((1, 1), "not a configuration: nested too deeply") from exc
    if root is None:
        raise Unreadable((1, 1), "the file is empty; see `meter-proxy config schema` for what may stand in it")
    reader = _Reader()
    reader.document.data = reader.value(root, ())
    return reader.document


class _Reader:
    def __init__(self) -> None:
        self.document = Document()
        self._open: list[yaml.Node] = []  # from the root down to the value being read
        self._seen: set[int] = set()
        self._repeated = 0

    def value(self, node: yaml.Node, loc: Loc) -> Any:
        self.document.values[loc] = _mark(node.start_mark)
        self._count(node)
        if any(node is outer for outer in self._open):
            return self._fault(node, loc, "this alias contains itself")
        if len(self._open) >= MAX_DEPTH:
            raise Unreadable(_mark(node.start_mark), "not a configuration: nested too deeply")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _PREFIX + "map":
                return self._mapping(node, loc)
            if isinstance(node, yaml.SequenceNode) and node.tag == _PREFIX + "seq":
                return [self.value(item, (*loc, index)) for index, item in enumerate(node.value)]
            if isinstance(node, yaml.ScalarNode) and node.tag in _SCALAR_TAGS:
                return _scalar(node) if is_whole(node.value) else self._fault(node, loc, _half(node.value))
        finally:
            self._open.pop()
        return self._fault(node, loc, f"tag {node.tag.replace(_PREFIX, '!!')} is not allowed; write a plain value")

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in self._own_members(node, loc):
            mapping[key.value] = self.value(value, (*loc, key.value))
        for key, value in self._merged_members(node, loc):
            if key.value not in mapping:
                self.document.keys[*loc, key.value] = _mark(key.start_mark)
                mapping[key.value] = self.value(value, (*loc, key.value))
        return mapping

    def _own_members(self, node: yaml.MappingNode, loc: Loc) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """The members written in this mapping itself, each key once; the first one wins."""
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _SCALAR_TAGS:
                self._fault(key, loc, "a key must be plain text")
            elif not is_whole(key.value):
                self._fault(key, loc, _half(key.value))
            elif key.tag != _PREFIX + "merge":
                place = (*loc, key.value)
                if place not in self.document.keys:
                    self.document.keys[place] = _mark(key.start_mark)
                    yield key, value
                else:
                    line, column = self.document.keys[place]
                    message = f"duplicate key {key.value!r}; it stands first at line {line}, column {column}"
                    self.document.faults.append((_mark(key.start_mark), place, message))

    def _merged_members(self, node: yaml.MappingNode, loc: Loc) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """The members that `<<` brings in, nearest first."""
        for key, value in node.value:
            if key.tag != _PREFIX + "merge":
                continue
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                self._count(source)
                if not isinstance(source, yaml.MappingNode) or source in self._open:
                    self._fault(source, loc, "`<<` takes another mapping, or a list of mappings")
                    continue
                self._open.append(source)
                yield from ((k, v) for k, v in source.value if k.tag in _SCALAR_TAGS and k.tag != _PREFIX + "merge")
                yield from self._merged_members(source, loc)
                self._open.pop()

    def _count(self, node: yaml.Node) -> None:
        self._repeated += id(node) in self._seen
        self._seen.add(id(node))
        if self._repeated > MAX_REPEATED_NODES:
            raise Unreadable(_mark(node.start_mark), f"aliases expand to more than {MAX_REPEATED_NODES:,} values")

    def _fault(self, node: yaml.Node, loc: Loc, message: str) -> None:
        self.document.faults.append((_mark(node.start_mark), loc, message))
        self.document.broken.add(loc)


def _scalar(node: yaml.ScalarNode) -> Any:
    if node.tag == _PREFIX + "null":
        return None
    if node.tag == _PREFIX + "bool":
        return _BOOLS.get(node.value.lower(), node.value)
    return node.value


def _half(text: str) -> str:
    half = next(character for character in text if not is_whole(character))
    return f"holds half a character (\\u{ord(half):04x})"


def _mark(mark: yaml.Mark) -> Mark:
    return mark.line + 1, mark.column + 1
