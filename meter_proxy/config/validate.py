"""Plain data -> Config, with every fault: what is broken is left out, and the rest is looked at again.

pydantic ends a section's reading at its first faulty member, and the cross checks need a whole
Config. So each round leaves out the places known to be broken, until the rest is a Config. A finding
that may only come from what was left out is not reported.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from meter_proxy.config.checks import findings
from meter_proxy.config.faults import Finding, Loc, did_you_mean
from meter_proxy.config.schema import Config

Positions: TypeAlias = dict[Loc, list[int]]  # of a list: where its remaining items stood at first

_MESSAGES = {
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "missing": "is required",
}


def validate(
    data: Any, broken: Iterable[Loc], *, env: Mapping[str, str], base_dir: Path, allow_anonymous: bool
) -> tuple[Config | None, list[Finding]]:
    """Read `data` but for its `broken` places, whose faults the caller knows already.

    The Config is what could be read; it is good only without findings and without broken places.
    """
    left_out = set(broken)
    found: list[Finding] = []
    while () not in left_out:
        rest, positions = _without(data, left_out)
        try:
            config = Config.model_validate(rest, context={"env": env, "base_dir": base_dir})
        except ValidationError as exc:
            errors = exc.errors(include_url=False)
        else:
            checked = findings(config, allow_anonymous=allow_anonymous)
            return config, found + _news((_in_data(one, data, positions) for one in checked), left_out)
        new = [_in_data(_finding(error), data, positions) for error in errors]
        found += _news(new, left_out)
        left_out |= {
            one.loc[:-1] if error["type"] == "missing" else one.loc for one, error in zip(new, errors, strict=True)
        }
    return None, found


def _without(data: Any, left_out: set[Loc]) -> tuple[Any, Positions]:
    """A copy of `data` without some places."""
    positions: Positions = {}

    def copy(value: Any, loc: Loc) -> Any:
        if isinstance(value, dict):
            return {key: copy(member, (*loc, key)) for key, member in value.items() if (*loc, key) not in left_out}
        if isinstance(value, list):
            positions[loc] = [index for index in range(len(value)) if (*loc, index) not in left_out]
            return [copy(value[index], (*loc, index)) for index in positions[loc]]
        return value

    return copy(data, ()), positions


def _finding(error: ErrorDetails) -> Finding:
    loc, kind = error["loc"], error["type"]
    if loc and loc[-1] == "[key]":  # pydantic's way to say that a mapping's key is wrong
        return Finding(loc[:-1], str(error["ctx"]["error"]), on_key=True)
    if kind == "extra_forbidden":
        name = str(loc[-1])
        return Finding(loc, f"unknown key {name!r}{did_you_mean(name, _keys_of(loc[:-1]))}", on_key=True)
    if kind == "value_error":
        return Finding(loc, str(error["ctx"]["error"]))
    if kind == "too_long":
        return Finding(loc, f"must have at most {error['ctx']['max_length']} entries")
    if kind == "less_than_equal":
        return Finding(loc, f"must be at most {error['ctx']['le']}")
    return Finding(loc, _MESSAGES.get(kind, error["msg"]))


def _in_data(finding: Finding, data: Any, positions: Positions) -> Finding:
    """The same finding, with its places as in the whole data."""

    def place(loc: Loc) -> Loc:
        original: Loc = ()
        here = data
        for part in loc:
            if isinstance(part, str):
                here = here.get(part) if isinstance(here, dict) else None
            elif isinstance(here, list):
                part = positions[original][part]
                here = here[part]
            else:
                break  # one value that stands for a list of one
            original = (*original, part)
        return original

    return replace(
        finding,
        loc=place(finding.loc),
        because=tuple(place(loc) for loc in finding.because),
        other=place(finding.other) if finding.other is not None else None,
    )


def _news(found: Iterable[Finding], left_out: set[Loc]) -> list[Finding]:
    """Those that rest on nothing that was left out."""
    around = {gone[:length] for gone in left_out for length in range(len(gone))}

    def intact(place: Loc) -> bool:
        inside = any(place[:length] in left_out for length in range(len(place) + 1))
        return not inside and place not in around

    return [finding for finding in found if all(intact(place) for place in (finding.loc, *finding.because))]


def _keys_of(loc: Loc) -> list[str]:
    """The keys that the section at `loc` knows, in the YAML's words."""
    here: Any = Config
    for part in loc:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = next(f for name, f in here.model_fields.items() if (f.alias or name) == part)
            here = field.annotation
        else:
            # dict[Id, Upstream] -> Upstream, tuple[Key, ...] -> Key
            here = next(a for a in reversed(get_args(here)) if a is not Ellipsis)
        if type(None) in get_args(here):  # Price | None -> Price
            here = next(a for a in get_args(here) if a is not type(None))
    return [field.alias or name for name, field in here.model_fields.items()]
