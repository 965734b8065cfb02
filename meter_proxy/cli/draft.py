"""A configuration of ours that is being written from somebody else's, and what could not be said in it.

What both importers need: ids that are free, upstreams that are the same only once, prices, and the YAML.
"""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import yaml

MAX_ID_CHARS = 64
MILLION = 1_000_000


class Draft:
    """`config` is the document of our YAML so far; `notes` list what has no equivalent, a sentence each."""

    def __init__(self) -> None:
        self.upstreams: dict[str, dict[str, Any]] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.keys: list[dict[str, Any]] = []
        self.accounts: dict[str, dict[str, Any]] = {}
        self.settings: dict[str, Any] = {}  # other members of the top level
        self.notes: list[str] = []
        self._ids: set[str] = set()  # of keys and accounts: they share one space

    def note(self, sentence: str) -> None:
        """Remember something that has no equivalent; the same only once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def upstream(self, name: str, base_url: str, api_key: str | None) -> str:
        """The name of the upstream at this address with this credential; a new one gets `name`, or `name-2`, ..."""
        entry = {"base_url": base_url.rstrip("/")} | ({"api_key": api_key} if api_key else {})
        for known, other in self.upstreams.items():
            if other == entry:
                return known
        if api_key and not api_key.startswith("${"):
            self.note("api keys of upstreams stand in the file as they are: better `${VARIABLE}`, or api_key_file")
        free = free_id(name, self.upstreams)
        self.upstreams[free] = entry
        return free

    def model(self, name: str, upstream: str, sent: str, **members: Any) -> None:
        """Add one way to a model. A further one is tried after those that are there, if it has the same name there."""
        entry = {"upstream": [upstream], **({"name": sent} if sent != name else {}), **members}
        known = self.models.setdefault(name, entry)
        if known is entry:
            return
        if known.get("name", name) != sent:
            has = known.get("name", name)
            self.note(f"model {name}: left out {sent} at {upstream}: one model has one name upstream, here {has}")
            return
        known.update({member: value for member, value in members.items() if member not in known})
        if upstream not in known["upstream"]:
            known["upstream"].append(upstream)
            self.note(f"model {name}: its upstreams are tried in order, not balanced")

    def new_id(self, name: str) -> str:
        """An id for a key or an account that no other has."""
        free = free_id(name, self._ids)
        self._ids.add(free)
        return free

    def has_price(self) -> bool:
        """Whether a rule on cost can count anything."""
        return any("price" in model for model in self.models.values())

    def document(self) -> dict[str, Any]:
        """The configuration, without what is empty."""
        models = {
            name: {**model, "upstream": model["upstream"][0] if len(model["upstream"]) == 1 else model["upstream"]}
            for name, model in self.models.items()
        }
        sections = {"upstreams": self.upstreams, "models": models, "accounts": self.accounts, "keys": self.keys}
        return {**self.settings, **{name: section for name, section in sections.items() if section}}


def free_id(name: str, taken: Iterable[str]) -> str:
    """`name` as an id: other characters become `-`, and a number follows where it is taken."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")[: MAX_ID_CHARS - 6] or "unnamed"
    found, number = base, 1
    while found in taken or found == "unknown":
        number += 1
        found = f"{base}-{number}"
    return found


def number(value: object) -> Decimal | None:
    """A finite number that is not negative, also one written as text (YAML takes `1e-6` for text); else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return found if found.is_finite() and found >= 0 else None


def price(input_usd: Decimal | None, output_usd: Decimal | None, cached_usd: Decimal | None = None) -> dict[str, Any]:
    """Members of a model: its price, from dollars per token; none where one of the two is not known."""
    if input_usd is None or output_usd is None:
        return {}
    parts = {"input": input_usd, "cached_input": cached_usd, "output": output_usd}
    return {"price": {name: plain(part * MILLION) for name, part in parts.items() if part is not None}}


def plain(amount: Decimal) -> Decimal | int:
    """The same amount as people write it: no exponent, no zeros at its end."""
    return int(amount) if amount == int(amount) else amount.normalize()


def as_yaml(document: Mapping[str, Any]) -> str:
    """Write a configuration, short mappings on one line."""
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Decimals as they are, and members of lists indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: object) -> bool:
        """What is the same twice is written twice: nobody edits `*id001`."""
        return True


def _decimal(dumper: yaml.SafeDumper, amount: Decimal) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", f"{amount:f}")


_Dumper.add_representer(Decimal, _decimal)
