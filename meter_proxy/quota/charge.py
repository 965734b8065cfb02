"""To which counters an exchange belongs, decided at its admission and carried by value.

A charge stands in the slot and in the journal line: a restart, a reload or an edit of the rules changes nothing
about an exchange that was admitted before. It names the rule and the window, never the limit.
"""

from enum import StrEnum

import msgspec


class Unit(StrEnum):
    """What a rule counts; the words of the configuration."""

    REQUESTS = "requests"
    TOKENS = "tokens"  # input and output
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"  # with reasoning
    COST_USD = "cost_usd"  # in nano-dollars
    CONCURRENT = "concurrent"  # what is open now: reserved, never used


KEY_HOLDER = "k"
ACCOUNT_HOLDER = "a"


class Charge(msgspec.Struct, frozen=True, array_like=True):
    """One counter: whose, of which rule, in which window."""

    holder: str  # "k": the record's key (and its plan); "a": its account
    rule: str  # the rule's id
    window: str  # as in CONTRACT §2: 20260131, 2026013114, 2026W05, total, ...
    unit: Unit
    ends_at: int  # of the window, Unix seconds; 0: never


_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400
# How long a counter is kept after its window, by the length of the window's name: an exchange of that window may
# still be running (`timeouts.total`), or wait for Redis to come back.
_KEPT_S = {14: _MINUTE_S, 12: _HOUR_S, 10: _DAY_S, 8: 7 * _DAY_S, 7: 40 * _DAY_S, 6: 40 * _DAY_S}


def expires_at(window: str, ends_at: int) -> int:
    """When the counter of a window may be forgotten, Unix seconds; 0: never. Depends on the window alone."""
    return ends_at + _KEPT_S.get(len(window), 40 * _DAY_S) if ends_at else 0
