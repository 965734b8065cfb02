"""`/api/*`: what goes on, who used what, how full the quotas are. `openapi.py` describes every answer.

Nothing here holds the loop for long, however many keys there are: what is large is made and sent in slices.
"""

import heapq
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from meter_proxy.admin.openapi import document
from meter_proxy.admin.proxy import Proxy
from meter_proxy.admin.queries import MAX_OFFSET, Query
from meter_proxy.admin.reports import Row, send
from meter_proxy.ledger.books import FIELDS as TOTALS
from meter_proxy.tasks import slices
from meter_proxy.telemetry.feed import RecordFeed
from meter_proxy.telemetry.metrics import Metrics
from meter_proxy.telemetry.quota_board import FIELDS as QUOTA_FIELDS
from meter_proxy.telemetry.records import MAX_RECENT, as_row
from meter_proxy.usage import UsageRecord

T = TypeVar("T")

DEFAULT_LIMIT = 100
DEFAULT_BY = "key,model,day"
MAX_QUOTAS = 1_000
MAX_TOP = 1_000
MAX_STREAMS = 500  # made and encoded in one go: 2 ms
BATCH = 100  # rows in one write: 1 ms, as CSV 2 ms
RECORD_FIELDS = (*UsageRecord.__struct_fields__, "model_label")
SERVING = ("ready", "leaving")  # states of a worker whose table of exchanges is true


class Api:
    """The handlers."""

    def __init__(self, metrics: Metrics, feed: RecordFeed, proxy: Proxy) -> None:
        self._metrics = metrics
        self._feed = feed
        self._proxy = proxy
        self._document = msgspec.json.encode(document(metrics.version))

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get("/api/records", self.records)
        app.router.add_get("/api/usage", self.usage)
        app.router.add_get("/api/quotas", self.quotas)
        app.router.add_get("/api/live", self.live)
        app.router.add_get("/api/openapi.json", self.openapi)

    async def records(self, request: web.Request) -> web.StreamResponse:
        """The newest `limit` records of all workers, oldest first by settlement."""
        query = Query(request, "limit", "key", "since", "format")
        format = query.one_of("format", "json", "csv", "jsonl")
        limit = query.number("limit", DEFAULT_LIMIT, most=MAX_RECENT)
        lines = await self._feed.records(limit, key=query.text("key"), since=query.since())
        return await send(request, "records", format, RECORD_FIELDS, _raw(lines))

    async def usage(self, request: web.Request) -> web.StreamResponse:
        """Totals; with `top`, only so many rows: the most expensive, then the largest, first."""
        query = Query(request, "by", "since", "key", "top", "format")
        format = query.one_of("format", "json", "csv")
        by = query.by(DEFAULT_BY)
        totals = await self._feed.usage(by, query.since(), query.text("key"))
        rows = (as_row(total, by) for total in _popped(totals))
        if query.text("top") is None:
            return await send(request, "usage", format, (*by, *TOTALS), slices(rows, BATCH))
        count, top = len(totals), query.number("top", DEFAULT_LIMIT, most=MAX_TOP)
        largest: list[Mapping[str, Any]] = []
        async for part in slices(rows, BATCH):
            largest = heapq.nlargest(top, chain(largest, part), key=_weight)
        return await send(request, "usage", format, (*by, *TOTALS), slices(largest, BATCH), {"total": count})

    async def quotas(self, request: web.Request) -> web.StreamResponse:
        """How full the quotas are, the fullest first."""
        query = Query(request, "key", "q", "limit", "offset", "format")
        format = query.one_of("format", "json", "csv")
        total, rows = await self._metrics.quota_board.page(
            time.time(),
            key=query.text("key"),
            q=query.text("q") or "",
            limit=query.number("limit", DEFAULT_LIMIT, most=MAX_QUOTAS),
            offset=query.number("offset", 0, least=0, most=MAX_OFFSET),
        )
        return await send(request, "quotas", format, QUOTA_FIELDS, slices(rows, BATCH), {"total": total})

    async def live(self, request: web.Request) -> web.StreamResponse:
        """What is going on now."""
        limit = Query(request, "limit").number("limit", DEFAULT_LIMIT, most=MAX_STREAMS)
        workers = self._proxy.worker_states()
        exchanges, rates = await self._feed.live(worker.index for worker in workers if worker.state in SERVING)
        now = time.time()
        return json_answer(
            {
                "ready": not self._proxy.reasons_not_ready(),
                "uptime_s": round(self._proxy.uptime_s, 3),
                "workers": workers,
                "inflight": {model: count for (model,), count in self._metrics.inflight.values.items()},
                "streams": [exchange.shown(now) for exchange in exchanges[:limit]],
                "streams_total": len(exchanges),
                "rates": rates,
            }
        )

    async def openapi(self, request: web.Request) -> web.StreamResponse:
        """The description of all this."""
        return web.Response(body=self._document, content_type="application/json")


def _weight(row: Mapping[str, Any]) -> tuple[int, int]:
    return int(row["cost_nano_usd"]), int(row["input_tokens"]) + int(row["output_tokens"])


def _popped(items: list[T]) -> Iterator[T]:
    """Yield the items and let each go: a million of them let go at once would hold the loop."""
    items.reverse()
    while items:
        yield items.pop()


async def _raw(lines: list[bytes]) -> AsyncIterator[list[Row]]:
    async for part in slices(_popped(lines), BATCH):
        yield [msgspec.Raw(line) for line in part]


def json_answer(data: Any, *, status: int = 200) -> web.Response:
    """A document that is small."""
    return web.Response(status=status, body=msgspec.json.encode(data), content_type="application/json")
