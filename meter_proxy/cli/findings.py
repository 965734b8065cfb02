"""What `doctor` has found: each finding says whether it hurts, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    GOOD = "good"
    NOTE = "note"  # worth knowing; exit 0
    BAD = "bad"  # will hurt; exit 1


@dataclass(frozen=True)
class Finding:
    """`about`: what was looked at. `advice`: what to do; empty when there is nothing to do."""

    level: Level
    about: str
    message: str
    advice: str = ""


def good(about: str, message: str) -> Finding:
    """All is well."""
    return Finding(Level.GOOD, about, message)


def note(about: str, message: str, advice: str = "") -> Finding:
    """Not as one would have it, or not looked at."""
    return Finding(Level.NOTE, about, message, advice)


def bad(about: str, message: str, advice: str) -> Finding:
    """Will hurt; a bad finding without advice would help nobody."""
    return Finding(Level.BAD, about, message, advice)
