"""The OpenAPI document of everything that can be asked of the proxy about itself: `GET /api/openapi.json`.

The paths below `/v1` are on the public listener (there under each of `path_prefixes`), all others on this one. Tests
hold real answers against these schemas, so that they say no more and no less than there is.
"""

from typing import Any

import msgspec

from meter_proxy.admin.proxy import WorkerState
from meter_proxy.admin.schemas import (
    BILLING_USAGE,
    COSTS_PAGE,
    ERROR,
    ERROR_BODY,
    KEY_USAGE,
    LIVE,
    QUOTA,
    READINESS,
    SUBSCRIPTION,
    USAGE_PAGE,
    USAGE_ROW,
    Schema,
    array,
    obj,
    ref,
    text,
    whole,
)
from meter_proxy.ledger.journal import SettledRecord

PUBLIC = [{"url": "http://127.0.0.1:8080", "description": "The public listener (`listen`)."}]
ADMIN = [{"url": "/", "description": "The admin listener (`admin`)."}]

_WHEN = "Only what was admitted since: 7d, 24h, 30m, a date or an RFC 3339 time (UTC if it names no zone)."


def document(version: str) -> dict[str, Any]:
    """The document, in version 3.1 of OpenAPI; `version`: ours."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "meter-proxy",
            "version": version,
            "description": "Who used how many tokens, what it cost, and what is left. Costs ending in _nano_usd are "
            "billionths of a US dollar; days are UTC days.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": ADMIN,
        "tags": [
            {"name": "reports", "description": "For the operator, on the admin listener."},
            {"name": "operation", "description": "Health, metrics and reload, on the admin listener."},
            {"name": "organization", "description": "OpenAI's reports, on the public listener, with the admin_token."},
            {"name": "caller", "description": "A caller's own, on the public listener, with its key."},
        ],
        "paths": {**_reports(), **_operation(), **_organization(), **_caller()},
        "components": {
            "securitySchemes": {
                "adminToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The `admin_token`. The admin listener asks for it only where one is configured.",
                },
                "apiKey": {"type": "http", "scheme": "bearer", "description": "The caller's key."},
            },
            "schemas": _schemas(),
        },
    }


def _schemas() -> dict[str, Schema]:
    # What msgspec writes, so also what it describes.
    _, made = msgspec.json.schema_components([SettledRecord, WorkerState], ref_template="#/components/schemas/{name}")
    record = made.pop("SettledRecord")
    record["description"] = "One admitted exchange. `time` is its admission; the billed figures are always there."
    return {
        **{name: {key: value for key, value in schema.items() if key != "title"} for name, schema in made.items()},
        "Record": {**record, "title": "Record", "additionalProperties": False},
        "UsageRow": USAGE_ROW,
        "Quota": QUOTA,
        "Live": LIVE,
        "KeyUsage": KEY_USAGE,
        "UsagePage": USAGE_PAGE,
        "CostsPage": COSTS_PAGE,
        "Subscription": SUBSCRIPTION,
        "BillingUsage": BILLING_USAGE,
        "Readiness": READINESS,
        "Error": ERROR,
        "ErrorBody": ERROR_BODY,
    }


def _reports() -> dict[str, Any]:
    limit = _query("limit", whole("The newest so many.", minimum=1, maximum=100_000, default=100))
    key = _query("key", text("Only of this key's id."))
    since = _query("since", text(_WHEN))
    return {
        "/api/records": _get(
            "reports",
            "records",
            "The newest usage records, oldest first by settlement",
            obj({"data": array(ref("Record"))}),
            [limit, key, since, _format("json", "csv", "jsonl")],
            ("text/csv", "application/jsonl"),
        ),
        "/api/usage": _get(
            "reports",
            "usage",
            "Totals by key, model and day, or some of them; sorted by these columns",
            obj(
                {"total": whole("With `top`: how many rows there are.", minimum=0), "data": array(ref("UsageRow"))},
                optional=("total",),
            ),
            [
                _query("by", text("The columns: any of key, model, day, in any order.", default="key,model,day")),
                since,
                key,
                _query("top", whole("Only the most expensive so many, these first.", minimum=1, maximum=1_000)),
                _format("json", "csv"),
            ],
            ("text/csv",),
        ),
        "/api/quotas": _get(
            "reports",
            "quotas",
            "The rules of all keys and accounts, the fullest first",
            obj({"total": whole("How many fit, on all pages."), "data": array(ref("Quota"))}),
            [
                _query("key", text("Only of this key's id, or of `account:NAME`.")),
                _query("q", text("Only with this text in the key or in the rule's name, whatever its case.")),
                _query("limit", whole("So many.", minimum=1, maximum=1_000, default=100)),
                _query("offset", whole("From this one on.", minimum=0, default=0)),
                _format("json", "csv"),
            ],
            ("text/csv",),
        ),
        "/api/live": _get(
            "reports",
            "live",
            "What is going on now",
            ref("Live"),
            [_query("limit", whole("So many streams.", minimum=1, maximum=500, default=100))],
        ),
        "/api/openapi.json": _get("reports", "openapi", "This document", {"type": "object"}, [], fails=()),
    }


def _operation() -> dict[str, Any]:
    health = _get("operation", "healthz", "The process lives", obj({"status": {"const": "ok"}}), [], fails=())
    readiness = _get("operation", "readyz", "Whether requests are served", ref("Readiness"), [], fails=())
    readiness["get"]["responses"]["503"] = _answer("Not ready.", ref("Readiness"))
    for path in (health, readiness):
        path["get"]["security"] = []
    metrics = _get("operation", "metrics", "Prometheus' text format", None, [], ("text/plain",), fails=())
    reload = {
        "tags": ["operation"],
        "operationId": "reload",
        "summary": "Read the configuration again, and serve by it: whole, or not at all",
        "security": [{"adminToken": []}],
        "responses": {
            "200": _answer("It is served.", obj({"reloaded": {"const": True}})),
            "422": _answer(
                "It is not good; nothing changed.", obj({"error": ref("ErrorBody"), "faults": array(text())})
            ),
            **_failures("401", "403"),
        },
    }
    return {"/healthz": health, "/readyz": readiness, "/metrics": metrics, "/-/reload": {"post": reload}}


def _organization() -> dict[str, Any]:
    common = [
        _query("start_time", whole("Unix seconds: the UTC day of it is the first bucket."), required=True),
        _query("end_time", whole("Unix seconds, exclusive. Default: now.")),
        _query("bucket_width", {"enum": ["1d"], "default": "1d"}),
        _query("page", text("The next_page of the answer before.")),
        _query("api_key_ids", array(text()), description="Ids of keys; also as api_key_ids[]."),
        _query("project_ids", array(text()), description="Names of accounts; also as project_ids[]."),
    ]

    def group_by(*columns: str) -> dict[str, Any]:
        return _query("group_by", array({"enum": list(columns)}), description="Also as group_by[].")

    usage = [
        *common,
        group_by("project_id", "api_key_id", "model"),
        _query("models", array(text()), description="Also as models[]."),
        _query("limit", whole("Buckets.", minimum=1, maximum=31, default=7)),
    ]
    costs = [
        *common,
        group_by("project_id", "api_key_id", "line_item"),
        _query("line_items", array(text()), description="Names of models; also as line_items[]."),
        _query("limit", whole("Buckets.", minimum=1, maximum=180, default=7)),
    ]
    fails = ("400", "401", "503")
    paths = {
        "/v1/organization/usage/completions": _get(
            "organization", "organizationUsage", "OpenAI's usage report", ref("UsagePage"), usage, fails=fails
        ),
        "/v1/organization/costs": _get(
            "organization", "organizationCosts", "OpenAI's cost report", ref("CostsPage"), costs, fails=fails
        ),
    }
    return {path: {**item, "servers": PUBLIC} for path, item in paths.items()}


def _caller() -> dict[str, Any]:
    dates = [
        _query("start_date", text("Default: the first of this month.", format="date")),
        _query("end_date", text("Not included. Default: tomorrow.", format="date")),
    ]
    paths = {}
    for prefix in ("/v1", ""):
        suffix = "" if prefix else "Unprefixed"
        paths[f"{prefix}/dashboard/billing/subscription"] = _get(
            "caller", f"subscription{suffix}", "one-api's: the limit", ref("Subscription"), [], fails=("401",)
        )
        paths[f"{prefix}/dashboard/billing/usage"] = _get(
            "caller",
            f"billingUsage{suffix}",
            "one-api's: what is used of the limit; without one, what was used from one day to another",
            ref("BillingUsage"),
            dates,
            fails=("400", "401", "503"),
        )
    paths["/v1/usage"] = _get(
        "caller",
        "keyUsage",
        "The caller's own usage of today and of the last days, and its quotas",
        ref("KeyUsage"),
        [_query("days", whole("So many UTC days, today's included.", minimum=1, maximum=92, default=1))],
        fails=("400", "401"),
    )
    for item in paths.values():
        item["get"]["security"] = [{"apiKey": []}]
    return {path: {**item, "servers": PUBLIC} for path, item in paths.items()}


def _get(
    tag: str,
    name: str,
    summary: str,
    schema: Schema | None,
    parameters: list[dict[str, Any]],
    others: tuple[str, ...] = (),
    *,
    fails: tuple[str, ...] = ("400", "401", "403"),
) -> dict[str, Any]:
    """A path that is read: JSON by `schema`, and text of the types `others`."""
    content: dict[str, Any] = {} if schema is None else {"application/json": {"schema": schema}}
    content |= {kind: {"schema": {"type": "string"}} for kind in others}
    operation = {
        "tags": [tag],
        "operationId": name,
        "summary": summary,
        "security": [{"adminToken": []}],
        "parameters": parameters,
        "responses": {"200": {"description": "As asked.", "content": content}, **_failures(*fails)},
    }
    return {"get": operation}


def _failures(*statuses: str) -> dict[str, Any]:
    words = {
        "400": "A parameter is wrong; it is named.",
        "401": "The token or key is missing or wrong.",
        "403": "Not for other web pages, nor under a foreign host name.",
        "503": "Redis is away.",
    }
    return {status: _answer(words[status], ref("Error")) for status in statuses}


def _answer(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _format(*choices: str) -> dict[str, Any]:
    return _query("format", {"enum": list(choices), "default": choices[0]})


def _query(name: str, schema: Schema, *, required: bool = False, description: str | None = None) -> dict[str, Any]:
    parameter: dict[str, Any] = {"name": name, "in": "query", "schema": schema}
    if description is not None:
        parameter["description"] = description
    return {**parameter, "required": True} if required else parameter
