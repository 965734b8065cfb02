"""Which entries of `models:` a pattern speaks of. `*` and `?` are wildcards; case counts.

A pattern covers the entries whose names it matches; when it matches none, the entry to which a
caller's model of that very name would go (so that `gpt-4o-mini` may be named where only `"*"` stands).
"""

import re
from collections.abc import Iterable
from fnmatch import translate
from itertools import chain

CATCH_ALL = "*"


def is_pattern(name: str) -> bool:
    """Whether a name stands for more than itself."""
    return "*" in name or "?" in name


def matcher(patterns: Iterable[str]) -> re.Pattern[str]:
    """An expression that matches the names which one of the patterns means."""
    # A bracket is a letter like others: there are models called `[beta]x`.
    return re.compile("|".join(translate(pattern.replace("[", "[[]")) for pattern in patterns))


def may_meet(one: str, other: str) -> bool:
    """Whether some name may match both patterns: False only if their beginnings or their ends exclude each other."""
    heads = zip(one.partition("*")[0], other.partition("*")[0], strict=False)
    tails = zip(reversed(one.rpartition("*")[2]), reversed(other.rpartition("*")[2]), strict=False)
    return all(a == b or "?" in (a, b) for a, b in chain(heads, tails))


def in_order(entries: Iterable[str]) -> list[str]:
    """Those that are patterns, in the order in which they are tried: the longer the sooner, `"*"` last."""
    return sorted((e for e in entries if is_pattern(e)), key=lambda e: (e == CATCH_ALL, -len(e), e))


def covered(patterns: Iterable[str] | None, entries: Iterable[str]) -> set[str]:
    """The entries that the patterns speak of; None speaks of all."""
    known = list(entries)
    if patterns is None:
        return set(known)
    found: set[str] = set()
    for pattern in patterns:
        matches = matcher([pattern])
        named = {entry for entry in known if matches.match(entry)}
        found |= named or set([e for e in in_order(known) if matcher([e]).match(pattern)][:1])
    return found
