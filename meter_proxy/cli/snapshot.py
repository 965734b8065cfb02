"""What `top` shows, read from `/api/live` and `/api/quotas`: plain values, whatever the server has sent.

A server may lack a part (an older version, or no quotas): it is None, and `top` says so. A member of another type than
agreed counts as missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meter_proxy.cli.admin_client import AdminClient, AdminError

MAX_STREAMS = 1000  # a screen shows 50 of them; the sums per key are of these
MAX_QUOTAS = 100


@dataclass(frozen=True)
class Stream:
    """An exchange in flight, counted so far."""

    id: str
    key: str
    account: str
    model: str
    operation: str
    started: str
    duration_ms: float
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Quota:
    """A rule and its counter. `used`, `reserved` and `limit` in the rule's unit."""

    key: str
    rule: str
    unit: str
    limit: float
    used: float
    reserved: float
    resets_at: str | None
    warn_at: float | None

    @property
    def share(self) -> float:
        """Used and reserved, of the limit; may be above 1."""
        return (self.used + self.reserved) / self.limit if self.limit > 0 else 1.0


@dataclass(frozen=True)
class Snapshot:
    """One look at the proxy. `at` is the monotonic clock's second; None is what the server does not tell."""

    at: float
    ready: bool
    uptime_s: float
    workers: tuple[int, int]  # that run, of all
    inflight: int
    streams: tuple[Stream, ...] | None
    streams_total: int
    rates: Mapping[str, float] | None
    quotas: tuple[Quota, ...] | None
    quotas_total: int
    document: Mapping[str, Any] = field(repr=False)  # what the server said, for programs


def look(client: AdminClient, now: float) -> Snapshot:
    """Ask the proxy. Raises `AdminError` when `/api/live` cannot be had; quotas may be missing."""
    live = _live(client)
    try:
        quotas: dict[str, Any] | None = client.get_json(f"/api/quotas?limit={MAX_QUOTAS}")
    except AdminError as exc:
        if exc.status is None:
            raise
        quotas = None
    return read(live, quotas, now)


def _live(client: AdminClient) -> dict[str, Any]:
    try:
        return client.get_json(f"/api/live?limit={MAX_STREAMS}")
    except AdminError as exc:
        if exc.status != 400:
            raise
        return client.get_json("/api/live")  # a server that knows no such parameter


def read(live: Mapping[str, Any], quotas: Mapping[str, Any] | None, now: float) -> Snapshot:
    """Take the documents apart."""
    workers = _mappings(live.get("workers")) or ()
    streams = _mappings(live.get("streams"))
    rules = None if quotas is None else _mappings(quotas.get("data"))
    rates = live.get("rates")
    inflight = live.get("inflight")
    return Snapshot(
        at=now,
        ready=live.get("ready") is True,
        uptime_s=_number(live, "uptime_s"),
        workers=(sum(worker.get("pid") is not None for worker in workers), len(workers)),
        inflight=sum(int(_number(inflight, model)) for model in inflight) if isinstance(inflight, dict) else 0,
        streams=None if streams is None else tuple(map(_stream, streams)),
        streams_total=int(_number(live, "streams_total")) or len(streams or ()),
        rates={name: _number(rates, name) for name in rates} if isinstance(rates, dict) else None,
        quotas=None if rules is None else tuple(map(_quota, rules)),
        quotas_total=int(_number(quotas or {}, "total")) or len(rules or ()),
        document={"live": live, "quotas": quotas},
    )


def _stream(entry: Mapping[str, Any]) -> Stream:
    return Stream(
        id=_text(entry, "id"),
        key=_text(entry, "key"),
        account=_text(entry, "account"),
        model=_text(entry, "model"),
        operation=_text(entry, "operation"),
        started=_text(entry, "started"),
        duration_ms=_number(entry, "duration_ms"),
        input_tokens=int(_number(entry, "input_tokens")),
        output_tokens=int(_number(entry, "output_tokens")),
    )


def _quota(entry: Mapping[str, Any]) -> Quota:
    warn_at = entry.get("warn_at")
    return Quota(
        key=_text(entry, "key"),
        rule=_text(entry, "rule"),
        unit=_text(entry, "unit"),
        limit=_number(entry, "limit"),
        used=_number(entry, "used"),
        reserved=_number(entry, "reserved"),
        resets_at=_text(entry, "resets_at") or None,
        warn_at=None if warn_at is None else _number(entry, "warn_at"),
    )


def _mappings(value: object) -> tuple[Mapping[str, Any], ...] | None:
    return tuple(entry for entry in value if isinstance(entry, dict)) if isinstance(value, list) else None


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    return value if isinstance(value, str) else ""


def _number(entry: Mapping[str, Any], name: str) -> float:
    value = entry.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
