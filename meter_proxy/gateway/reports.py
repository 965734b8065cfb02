"""The reports of the public listener, besides `GET /usage`: OpenAI's for the operator, one-api's for key holders.

GET /organization/usage/completions  GET /organization/costs            with the `admin_token`: organization.py
GET /dashboard/billing/subscription  GET /dashboard/billing/usage       with the caller's own key: dashboard.py
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from meter_proxy.config.secrets import is_bearer
from meter_proxy.errors import ClientError, StoreError
from meter_proxy.gateway import dashboard
from meter_proxy.gateway.gateway import Gateway
from meter_proxy.gateway.inbound import UNAUTHORIZED_HEADERS
from meter_proxy.gateway.organization import COSTS, USAGE, Kind, Sums, read_report
from meter_proxy.gateway.quotas import UNAVAILABLE_RETRY_S
from meter_proxy.gateway.replies import client_error, cors_headers, unavailable
from meter_proxy.ledger.books import FIELDS
from meter_proxy.ledger.days import Place, ReportStore, days_between, totals_at, totals_of_days

_COST = FIELDS.index("cost_nano_usd")


class Reports:
    """The handlers. One report of the organization at a time: it may be long, and streams have precedence."""

    def __init__(self, gateway: Gateway, store: ReportStore) -> None:
        self._gateway = gateway
        self._store = store
        self._one_at_a_time = asyncio.Lock()

    async def organization_usage(self, request: web.Request) -> web.StreamResponse:
        """OpenAI's usage of completions."""
        return await self._answer(request, partial(self._organization, USAGE, request))

    async def organization_costs(self, request: web.Request) -> web.StreamResponse:
        """OpenAI's costs."""
        return await self._answer(request, partial(self._organization, COSTS, request))

    async def subscription(self, request: web.Request) -> web.StreamResponse:
        """The caller's limit."""
        return await self._answer(request, partial(self._subscription, request))

    async def billing_usage(self, request: web.Request) -> web.StreamResponse:
        """What the caller has used of it."""
        return await self._answer(request, partial(self._billing_usage, request))

    async def _answer(self, request: web.Request, make: Callable[[], Awaitable[dict[str, Any]]]) -> web.StreamResponse:
        try:
            try:
                document = await make()
            except StoreError as exc:
                message = "The totals cannot be read at the moment. Try again in a moment."
                raise unavailable("metering_unavailable", message, retry_after_s=UNAVAILABLE_RETRY_S) from exc
        except ClientError as exc:
            return client_error(request, exc)
        response = web.Response(body=msgspec.json.encode(document), content_type="application/json")
        response.headers["Cache-Control"] = "no-store"
        response.headers.extend(cors_headers(request))
        return response

    async def _organization(self, kind: Kind, request: web.Request) -> dict[str, Any]:
        self._check_admin(request)
        report = read_report(kind, request.query, self._gateway.ledger.now())
        sums = Sums(report)
        if report.days:
            async with self._one_at_a_time:
                async for total in totals_of_days(self._store, report.days[0], report.days[-1], report.wants):
                    sums.add(total)
        return sums.page()

    def _check_admin(self, request: web.Request) -> None:
        token = self._gateway.config.admin_token
        if token is not None and is_bearer(request.headers.get("Authorization", ""), token.get_secret_value()):
            return
        how = "Send the admin_token" if token is not None else "Set admin_token in the configuration, and send it"
        raise ClientError(
            401, "invalid_admin_token", f"{how} as `Authorization: Bearer TOKEN`.", headers=UNAUTHORIZED_HEADERS
        )

    async def _subscription(self, request: web.Request) -> dict[str, Any]:
        caller = self._gateway.identify(request)
        lines = await self._gateway.quotas.lines(caller)
        return dashboard.subscription(dashboard.budget(lines), caller.key)

    async def _billing_usage(self, request: web.Request) -> dict[str, Any]:
        caller = self._gateway.identify(request)
        first, last = dashboard.read_days(request.query, self._gateway.ledger.now())
        lines = await self._gateway.quotas.lines(caller)
        rule = dashboard.budget(lines)
        if rule is not None:
            return dashboard.used(rule.used + rule.reserved)
        places = [Place(caller.account, caller.key_id, day) for day in days_between(first, last)]
        return dashboard.used(sum([total.totals[_COST] async for total in totals_at(self._store, places)]))
