"""Values as people write them: `200k`, `20M`, `10s`, `80%`, `${VAR:-default}`.

Each reader takes what came out of the YAML (text, or a native value when a program builds the
configuration) and raises ValueError with a sentence that says what to write instead. The sentences
are shown to the operator, so readers of secrets are elsewhere and echo nothing.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any
from zoneinfo import available_timezones

from meter_proxy.config.faults import did_you_mean

MAX_COUNT = 2**53  # the largest integer that JSON readers everywhere keep exact
ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
MAX_MODEL_NAME_CHARS = 256

_NUMBER = re.compile(r"(?P<digits>[-+]?[0-9][0-9_]*(?:\.[0-9]+)?)\s*(?P<unit>[A-Za-z%]*)\Z")
_VARIABLE = re.compile(
    r"(?P<escape>\$\$\{)|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-[^}]*)?\}|(?P<broken>))", re.ASCII
)
_COUNT_UNITS = {"": 1, "k": 1_000, "M": 1_000_000}
_SIZE_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_DURATION_UNITS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}


def interpolate(text: str, env: Mapping[str, str]) -> str:
    """Replace `${VAR}` and `${VAR:-default}` (for unset or empty, as in a shell); `$${` is a literal `${`.

    What a variable holds is not interpolated again. ValueError names the variable that is missing.
    """

    def known(name: str) -> str:
        found = env.get(name, "")
        if not is_whole(found):
            raise ValueError(f"environment variable {name} is not UTF-8")
        return found

    def value(match: re.Match[str]) -> str:
        if match["escape"]:
            return "${"
        name, default = match["name"], match["default"]
        if name is None:
            raise ValueError("broken variable: write ${NAME} or ${NAME:-default}, or $${ for a literal ${")
        if default is not None:
            return known(name) or default[2:]
        if name not in env:
            raise ValueError(f"environment variable {name} is not set; set it, or write ${{{name}:-default}}")
        return known(name)

    return _VARIABLE.sub(value, text)


def is_whole(text: str) -> bool:
    """Whether text can be written as UTF-8: it holds no half of a character (surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text(value: Any) -> str:
    """Any non-empty text. Unquoted numbers are text; an unquoted true or false is not."""
    if isinstance(value, bool):
        raise ValueError("must be text; put it in quotes")
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {kind(value)}")
    if not value:
        raise ValueError("must not be empty")
    return value


def identifier(value: Any) -> str:
    """A name that is safe in labels, Redis keys and file names."""
    if not ID.match(name := text(value)):
        raise ValueError("must be 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    return name


def model_name(value: Any) -> str:
    """A model's name or pattern: printable, no blanks."""
    name = text(value)
    if len(name) > MAX_MODEL_NAME_CHARS or not name.isprintable() or " " in name:
        raise ValueError(f"must be 1 to {MAX_MODEL_NAME_CHARS} printable characters without blanks")
    return name


def switch(value: Any) -> bool:
    """true or false."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueError("must be true or false")


def one_of(*words: str) -> Callable[[Any], str]:
    """A reader for one of a few words."""

    def read(value: Any) -> str:
        if isinstance(value, str) and value in words:
            return value
        wanted = f"must be one of {', '.join(words)}"
        raise ValueError(wanted + (did_you_mean(value, words) if isinstance(value, str) else ""))

    return read


def count(value: Any) -> int:
    """A whole number of at least 1: `20`, `200k`, `1.5M`, `20_000`."""
    number = _number(value, _COUNT_UNITS, "a whole number such as 20, 200k, 1.5M or 20_000")
    if number != int(number):
        raise ValueError("must be a whole number")
    return int(_at_least_one(number))


def size_bytes(value: Any) -> int:
    """A size in bytes, at least 1: `512`, `64K`, `20M`, `1G` (multiples of 1024)."""
    return int(_at_least_one(_number(value, _SIZE_UNITS, "a size such as 64K, 20M or 1G")))


def duration_s(value: Any) -> float:
    """A duration in seconds, above 0: `250ms`, `10s`, `5m`, `6h`, `400d`."""
    number = _number(value, _DURATION_UNITS, "a duration with its unit, such as 250ms, 10s, 5m, 6h or 400d")
    if number <= 0:
        raise ValueError("must be above 0")
    return float(number)


def money_usd(value: Any) -> Decimal:
    """US dollars, exact, at least 0: `2.50`, `1k`."""
    number = _number(value, _COUNT_UNITS, "an amount of US dollars such as 2.50")
    if number < 0:
        raise ValueError("must not be negative")
    return number


def fraction(value: Any) -> float:
    """A share of a limit: `80%`, or `0.8`."""
    number = _number(value, {"": 1, "%": Decimal("0.01")}, "a share such as 80%")
    if not 0 <= number <= 1:
        raise ValueError("must be between 0% and 100%")
    return float(number)


def instant(value: Any) -> datetime:
    """A moment in RFC 3339 with its offset, in UTC; a date alone is its first moment in UTC."""
    if isinstance(value, datetime):
        moment = value
    else:
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise ValueError("must be a moment such as 2027-01-01T00:00:00Z") from None
        if len(value) == len("2027-01-01"):
            moment = moment.replace(tzinfo=UTC)
    if moment.tzinfo is None:
        raise ValueError("has no time zone; write it as 2027-01-01T00:00:00Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # in UTC it is before the year 1, or after 9999
        raise ValueError("must be a moment such as 2027-01-01T00:00:00Z") from None


def zone(value: Any) -> str:
    """The name of a time zone of the IANA database."""
    name = text(value)
    if name == "UTC" or name in _zones():
        return name
    if not _zones():
        raise ValueError("this machine has no time zone database; install tzdata")
    raise ValueError(f"is not a time zone of the IANA database{did_you_mean(name, _zones())}")


def kind(value: Any) -> str:
    """What a value is, in words for an operator."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case bool():
            return "true or false"
        case str():
            return "text"
    return "a number"


def _number(value: Any, units: Mapping[str, Decimal | int], wanted: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        raise ValueError(f"must be {wanted}, not {kind(value)}")
    match = _NUMBER.match(str(value).strip())
    if match is None or match["unit"] not in units:
        raise ValueError(f"must be {wanted}")
    number = Decimal(match["digits"].replace("_", "")) * units[match["unit"]]
    if number > MAX_COUNT:
        raise ValueError(f"must be at most {MAX_COUNT}")
    return number


def _at_least_one(number: Decimal) -> Decimal:
    if number < 1:
        raise ValueError("must be at least 1")
    return number


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    # `localtime` is a link that Debian keeps beside the database: another zone on each machine.
    return frozenset(available_timezones() - {"localtime"})
