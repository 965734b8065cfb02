"""Plain content events are known by their bytes, without parsing them.

A server prints the content events of one choice all alike but for the text. So an event that was parsed and found
to be plain content becomes a Template: its bytes before and after the text. Another event with the same bytes
around a whole JSON string has the same structure, therefore is a content event too. This cannot be fooled:
whatever stands in the string is text, and anything that would end the string early (a bare quote) or is no JSON
string (a control character, a broken escape) is not held by the template and gets parsed.

OpenAI adds a random `obfuscation` string to each event: a second string that may vary.

Cost, 200-byte event, this is most of what a stream costs:
`python -m timeit -s "from tests.unit.metering.timing import feed_plain" "feed_plain()"`.
"""

import json
import re
from typing import Any

from meter_proxy.metering.dialects import Path

# The inside of a JSON string (RFC 8259, section 7).
_STRING = rb'[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})[^"\\\x00-\x1f]*)*'
_is_string = re.compile(_STRING).fullmatch
_PROBE = "\N{BALLOT BOX WITH CHECK}probe"
_PROBE_BYTES = _PROBE.encode()


class Template:
    """The bytes of a plain content event around its text, and around its obfuscation if it has one."""

    __slots__ = ("_between", "_outside_bytes", "_prefix", "_prefix_bytes", "_suffix", "_suffix_bytes")

    def __init__(self, prefix: bytes, between: bytes | None, suffix: bytes) -> None:
        self._prefix = prefix
        self._between = between
        self._suffix = suffix
        self._prefix_bytes = len(prefix)
        self._suffix_bytes = len(suffix)
        self._outside_bytes = len(prefix) + len(suffix)

    def holds(self, text: bytes) -> bool:
        """True: this event has exactly this structure, with a text that is not empty. False: it must be parsed."""
        if not text.startswith(self._prefix) or not text.endswith(self._suffix):
            return False
        if len(text) <= self._outside_bytes:
            return False
        inside = text[self._prefix_bytes : -self._suffix_bytes]
        if self._between is None:
            return _is_string(inside) is not None
        content, between, obfuscation = inside.partition(self._between)
        return bool(content and between) and _is_string(content) is not None and _is_string(obfuscation) is not None


NO_TEMPLATE = Template(b"\x00", None, b"\x00")  # holds nothing: no event starts with a control character


def learn(text: bytes, spoken_at: tuple[Path, ...]) -> Template | None:
    """The template of a plain content event of one choice, or None if its text cannot be told for sure.

    `text` is the event's only line. A place is believed only when another text put there is read back from there
    and everything else stays the same.
    """
    try:
        wire = json.loads(text.removeprefix(b"data:"))
        choice = wire["choices"][0]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    spoken = [path for path in spoken_at if _at(choice, path)]
    if len(spoken) != 1:
        return None
    *parents, name = spoken[0]
    holder = _at(choice, tuple(parents))
    prefix, suffix = _around(text, str(name), wire, holder)
    if prefix is None or suffix is None:
        return None
    if isinstance(wire.get("obfuscation"), str):
        between, end = _around(suffix, "obfuscation", wire, wire, before=prefix + _PROBE_BYTES)
        if between is not None and end is not None:
            return Template(prefix, between, end)
    return Template(prefix, None, suffix)


def _around(
    text: bytes, name: str, wire: dict[str, Any], holder: dict[str, Any], before: bytes = b""
) -> tuple[bytes | None, bytes | None]:
    """The bytes of `text` around the string that is `holder[name]` in `wire`; leaves the probe there."""
    holder[name] = _PROBE
    member = re.compile(b'"%s"[ \t]*:[ \t]*"(%s)"' % (name.encode(), _STRING))
    for found in member.finditer(text):
        prefix, suffix = text[: found.start(1)], text[found.end(1) :]
        try:
            probed = json.loads((before + prefix + _PROBE_BYTES + suffix).removeprefix(b"data:"))
        except (ValueError, RecursionError):
            continue
        if probed == wire:
            return prefix, suffix
    return None, None


def _at(value: Any, path: Path) -> Any:
    """What stands at `path` below `value`; None if nothing does."""
    for step in path:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value
