"""The fenced blocks of a page of documentation, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w+)( [^\n]*)?$")
_HEADING = re.compile(r"^#+ (.*)$")
_ASSIGNMENT = re.compile(r"^[A-Z_]+=")
_INLINE = re.compile(r"`(meter-proxy [^`]+)`")
_COMMENT = re.compile(r"(^|\s)#.*$")


class Block(NamedTuple):
    """One fenced block. `note` is what stands behind the language: `fragment`, or nothing."""

    page: Path
    line: int
    heading: str
    language: str
    note: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def pages() -> list[Path]:
    """All pages that users read, as far as they are there."""
    found = [REPOSITORY / name for name in ("README.md", "deploy/README.md", "grafana/README.md")]
    return [*(page for page in found if page.exists()), *sorted((REPOSITORY / "deploy/docs").glob("*.md"))]


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in order; of all languages, if none is named."""
    return [block for block in _blocks(page) if not languages or block.language in languages]


def _blocks(page: Path) -> Iterator[Block]:
    heading = ""
    opened: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if opened is not None:
            if line == "```":
                yield Block(page, opened[0], heading, opened[1], opened[2], "".join(f"{one}\n" for one in lines))
                opened, lines = None, []
            else:
                lines.append(line)
        elif fence := _FENCE.match(line):
            opened = number, fence[1], (fence[2] or "").strip()
        elif title := _HEADING.match(line):
            heading = title[1]


def meter_proxy_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every `meter-proxy ...` of a page, in blocks and in running text: as written, and the words behind the name."""
    for block in blocks(page, "sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if (words := _words(_COMMENT.sub("", line))) is not None:
                yield line, words
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for command in _INLINE.findall(prose):
        if (words := _words(" ".join(command.split()))) is not None:
            yield command, words


def _words(line: str) -> list[str] | None:
    line = re.split(r"[|&;>]|\$\(", line, maxsplit=1)[0]
    if "meter-proxy " not in line:
        return None
    words = shlex.split(line)
    while words and _ASSIGNMENT.match(words[0]):
        del words[0]
    if not words or Path(words[0]).name != "meter-proxy":
        return None
    return words[1:]
