"""Request heads of the plain case, without I/O: understood whole, or left to aiohttp's parser.

Plain is a POST to a metered path, HTTP/1.1, with exactly one Host and one Content-Length, at most one credential, a
known and valid key, a JSON body in no coding, and nothing that asks for more than that: no Transfer-Encoding, Expect,
Upgrade, TE, Trailer, Origin, no options of Connection but `keep-alive`. Each line is printable ASCII, `name: value`.

Whatever else is not refused here, but not judged: one parser decides about everything unusual. So this one can be
wrong in one way only, by taking a request that aiohttp would refuse or read otherwise: tests look for one
(`tests/unit/gateway/test_plain_fuzz.py`).

Lines are judged once and remembered by their bytes: a client sends the same ones again and again.
"""

import re
from typing import NamedTuple

from meter_proxy.config.schema import Config
from meter_proxy.gateway.headers import Forwarded, goes_on
from meter_proxy.gateway.inbound import Caller, Inbound
from meter_proxy.gateway.routes import METERED, Route

MAX_HEAD_BYTES = 8_190  # aiohttp's bound of a single line; a head so long is nothing for a short cut
MAX_LINES = 64
MAX_REMEMBERED = 4_096  # lines
MAX_HEADS = 1_024
LONGEST_REMEMBERED_BYTES = 256
_MAX_LENGTH_DIGITS = 12

_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)[ \t]*")
_CREDENTIALS = frozenset({"authorization", "api-key", "x-api-key"})
_NOT_PLAIN = frozenset({
    "transfer-encoding", "expect", "upgrade", "te", "trailer", "origin", "proxy-authorization",
    # Of these aiohttp takes one only; nobody sends them with a request anyway.
    "content-location", "content-range", "etag", "max-forwards", "server",
})  # fmt: skip
# Ones that aiohttp's server acts on, or that say something of the body, or of how to reach us.
_ONLY_AS = {
    "connection": frozenset({"keep-alive"}),
    "content-type": frozenset(
        {"application/json", "application/json; charset=utf-8", "application/json;charset=utf-8"}
    ),
    "content-encoding": frozenset({"identity"}),
}


class PlainHead(NamedTuple):
    """One request head of the plain case, from a caller that may come in."""

    route: Route
    caller: Caller
    forwarded: Forwarded
    client_request_id: str | None
    length: int  # of the body, in bytes; within the bound


class _Credential(NamedTuple):
    caller: Caller


class _RequestId(NamedTuple):
    text: str


class _Single(NamedTuple):
    """A header that may stand once only."""

    bit: int
    line: bytes  # as it goes on; empty: it does not


class _Mark:
    """What to do with a line."""


_DROP, _HAND_OVER = _Mark(), _Mark()
_HOST, _CONTENT_TYPE, _USER_AGENT = 1, 2, 4
_SINGLES = {"host": _HOST, "content-type": _CONTENT_TYPE, "user-agent": _USER_AGENT}
# Bytes: the line goes on so. An int: the length of the body.
_Verdict = bytes | int | _Single | _Credential | _RequestId | _Mark


class PlainHeads:
    """Reads plain heads for one configuration."""

    def __init__(self, inbound: Inbound, config: Config) -> None:
        self._inbound = inbound
        self._max_body_bytes = config.limits.max_body_bytes
        self._routes = {
            f"POST {prefix}{route.path} HTTP/1.1".encode(): route
            for prefix in config.path_prefixes
            for route in METERED
        }
        self._anonymous = inbound.caller(None, 0.0)
        self._known: dict[bytes, _Verdict] = {}
        self._heads: dict[bytes, PlainHead] = {}

    def may_begin(self, beginning: bytes) -> bool:
        """Whether a head that is not whole yet may become a plain one."""
        if len(beginning) > MAX_HEAD_BYTES or beginning.count(b"\n") != beginning.count(b"\r\n"):
            return False
        line, whole, _ = beginning.partition(b"\r\n")
        if whole:
            return line in self._routes
        return any(start.startswith(line.removesuffix(b"\r")) for start in self._routes)

    def read(self, block: bytes, now: float) -> PlainHead | None:
        """The head in `block` (without its blank line) at `now` (Unix seconds); None if it is not plain."""
        plain = self._heads.get(block)
        if plain is None:
            plain = self._read(block, now)
            # The same head comes again with each body of the same length; less those that are for once.
            if plain is not None and plain.client_request_id is None and not _expires(plain.caller):
                if len(self._heads) >= MAX_HEADS:
                    self._heads.clear()
                self._heads[block] = plain
        return plain

    def _read(self, block: bytes, now: float) -> PlainHead | None:
        lines = block.split(b"\r\n")
        route = self._routes.get(lines[0])
        if route is None or len(block) > MAX_HEAD_BYTES or len(lines) > MAX_LINES:
            return None
        del lines[0]
        known = self._known
        forwarded: list[bytes] = []
        singles, length = 0, -1
        caller, request_id = self._anonymous, None
        for line in lines:
            verdict = known.get(line)
            if verdict is None:
                verdict = self._judge(line, now)
            kind = verdict.__class__
            if kind is bytes:
                forwarded.append(verdict)  # type: ignore[arg-type]
            elif verdict is _DROP:
                pass
            elif kind is _Single:
                bit, line_on = verdict  # type: ignore[misc]
                if singles & bit:
                    return None
                singles |= bit
                if line_on:
                    forwarded.append(line_on)  # type: ignore[arg-type]
            elif kind is int:
                if length >= 0:
                    return None
                length = verdict  # type: ignore[assignment]
            elif kind is _Credential:
                if caller is not None:
                    return None
                caller = verdict.caller  # type: ignore[union-attr]
            elif kind is _RequestId:
                if request_id is not None:
                    return None
                request_id = verdict.text  # type: ignore[union-attr]
                forwarded.append(b"X-Request-Id: %b\r\n" % request_id.encode())
            else:
                return None
        if caller is None or not singles & _HOST or not 0 <= length <= self._max_body_bytes:
            return None
        return PlainHead(route, caller, Forwarded(b"".join(forwarded), request_id is not None), request_id, length)

    def _judge(self, line: bytes, now: float) -> _Verdict:
        """What to do with a line that is new."""
        found = _LINE.fullmatch(line)
        if found is None:
            return _HAND_OVER
        name, value = found[1].decode().lower(), found[2].decode()
        if name == "x-request-id":
            return _RequestId(value)  # no two are the same: not remembered
        if name in _CREDENTIALS:
            verdict = self._credential(name, value, now)
            if verdict is _HAND_OVER:
                return verdict  # not remembered: there is no end of wrong ones
            if isinstance(verdict, _Credential) and _expires(verdict.caller):
                return verdict  # it must be looked at each time
        else:
            verdict = self._plain(found[1].decode(), name, value)
        if len(line) <= LONGEST_REMEMBERED_BYTES:
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[line] = verdict
        return verdict

    def _credential(self, name: str, value: str, now: float) -> _Verdict:
        if self._anonymous is not None:
            return _DROP  # there are no keys: nobody asks for it
        if name == "authorization":
            scheme, _, value = value.partition(" ")
            if scheme.lower() != "bearer":
                return _HAND_OVER
        caller = self._inbound.caller(value.strip().encode(), now)
        return _HAND_OVER if caller is None else _Credential(caller)

    def _plain(self, spelled: str, name: str, value: str) -> _Verdict:
        if name == "content-length":
            return int(value) if value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS else _HAND_OVER
        if name in _NOT_PLAIN or value.lower() not in _ONLY_AS.get(name, (value.lower(),)):
            return _HAND_OVER
        line = f"{spelled}: {value}\r\n".encode() if goes_on(name) else b""
        if name in _SINGLES:
            return _Single(_SINGLES[name], line)
        return line or _DROP

    def __repr__(self) -> str:
        return f"<PlainHeads {len(self._routes)} routes, {len(self._known)} lines remembered>"


def _expires(caller: Caller) -> bool:
    return caller.key is not None and caller.key.expires_at is not None
