"""JSON Schemas of the answers in `openapi.py`, one after the other."""

from typing import Any

from meter_proxy.ledger.books import FIELDS
from meter_proxy.quota.charge import Unit

Schema = dict[str, Any]


def obj(properties: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    """An object with just these members, all there but for those that are `optional`."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def array(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def ref(name: str) -> Schema:
    """One of the document's own."""
    return {"$ref": f"#/components/schemas/{name}"}


def text(description: str | None = None, **more: Any) -> Schema:
    """A string."""
    return _described({"type": "string", **more}, description)


def whole(description: str | None = None, **more: Any) -> Schema:
    """An integer."""
    return _described({"type": "integer", **more}, description)


def or_null(schema: Schema) -> Schema:
    """That, or null."""
    return {**schema, "type": [schema["type"], "null"]}


def _described(schema: Schema, description: str | None) -> Schema:
    return schema if description is None else {**schema, "description": description}


_COUNT = whole(minimum=0)
_RATE: Schema = {"type": "number", "minimum": 0}
_INSTANT = text(format="date-time")
_AMOUNT: Schema = {"type": "number", "minimum": 0, "description": "US dollars for cost_usd; else a whole number."}
_UNIT: Schema = {"enum": [unit.value for unit in Unit]}
_PER: Schema = {"enum": ["second", "minute", "hour", "day", "week", "month", "total", None]}
_MODELS = {**or_null(array(text())), "description": "Names and patterns; null: all."}

ERROR = obj({"error": ref("ErrorBody")})
ERROR_BODY = obj({"message": text(), "type": text(), "param": or_null(text()), "code": text()})

USAGE_ROW = obj(
    {
        "key": text(),
        "model": text("A configured name, one of the first 100 others, or `other`."),
        "day": text(format="date"),
        **dict.fromkeys(FIELDS, _COUNT),
    },
    optional=("key", "model", "day"),
)

QUOTA = obj(
    {
        "key": text("The key's id; `account:NAME`: an account's rule."),
        "rule": text(),
        "unit": _UNIT,
        "per": _PER,
        "limit": _AMOUNT,
        "used": _AMOUNT,
        "reserved": _AMOUNT,
        "remaining": _AMOUNT,
        "resets_at": {**or_null(_INSTANT), "description": "null: never."},
        "warn_at": {"type": ["number", "null"], "description": "A share of the limit."},
        "models": _MODELS,
    }
)

_STREAM = obj(
    {
        "id": text(),
        "key": text(),
        "account": text(),
        "model": text("As asked."),
        "operation": text(),
        "stream": {"type": "boolean"},
        "started": _INSTANT,
        "duration_ms": _COUNT,
        "input_tokens": whole("What would be billed if it ended now.", minimum=0),
        "output_tokens": whole("The same.", minimum=0),
    }
)

LIVE = obj(
    {
        "ready": {"type": "boolean"},
        "uptime_s": _RATE,
        "workers": array(ref("WorkerState")),
        "inflight": {"type": "object", "additionalProperties": _COUNT, "description": "By model."},
        "streams": {**array(_STREAM), "description": "Exchanges in flight, oldest first."},
        "streams_total": whole("All of them.", minimum=0),
        "rates": {
            **obj({"requests_per_s": _RATE, "input_tokens_per_s": _RATE, "output_tokens_per_s": _RATE}),
            "description": "Of the last 10 s.",
        },
    }
)

_DOLLARS = text("US dollars, with all digits.", pattern=r"^\d+(\.\d+)?$")
_CENTS: Schema = {"type": "number", "minimum": 0, "description": "US cents."}
_OWN_AMOUNT: Schema = {"anyOf": [_DOLLARS, _COUNT]}
_OWN_QUOTA = obj(
    {
        "rule": text(),
        "scope": {"enum": ["key", "account"]},
        "unit": _UNIT,
        "per": _PER,
        "models": _MODELS,
        "limit": _OWN_AMOUNT,
        "used": _OWN_AMOUNT,
        "reserved": _OWN_AMOUNT,
        "remaining": _OWN_AMOUNT,
        "window": text(),
        "began_at": or_null(_INSTANT),
        "resets_at": or_null(_INSTANT),
        "timezone": text(),
        "warning": {"type": "boolean"},
    }
)
_DAY = obj(
    {
        "day": text(format="date"),
        "models": array(obj({"model": text(), **dict.fromkeys(FIELDS[:-1], _COUNT), "cost_usd": _DOLLARS})),
    }
)
KEY_USAGE = obj(
    {
        "object": {"const": "usage"},
        "key": text(),
        "account": text(),
        "as_of": _INSTANT,
        "live": {"type": "boolean", "description": "false while Redis is away: the figures may be too low."},
        "today": _DAY,
        "days": {**array(_DAY), "description": "Those with usage, oldest first."},
        "quotas": array(_OWN_QUOTA),
    }
)


def _page(result: Schema) -> Schema:
    bucket = obj({"object": {"const": "bucket"}, "start_time": _COUNT, "end_time": _COUNT, "results": array(result)})
    next_page = {**or_null(text()), "description": "Give it as `page`; null: this was the last one."}
    return obj(
        {"object": {"const": "page"}, "data": array(bucket), "has_more": {"type": "boolean"}, "next_page": next_page}
    )


_GROUP = {**or_null(text()), "description": "Where it is grouped by this."}
USAGE_PAGE = _page(
    obj(
        {
            "object": {"const": "organization.usage.completions.result"},
            "input_tokens": _COUNT,
            "output_tokens": _COUNT,
            "input_cached_tokens": _COUNT,
            "num_model_requests": _COUNT,
            "project_id": _GROUP,
            "user_id": {"type": "null"},
            "api_key_id": _GROUP,
            "model": _GROUP,
            "batch": {"type": "null"},
            "service_tier": {"type": "null"},
        }
    )
)
COSTS_PAGE = _page(
    obj(
        {
            "object": {"const": "organization.costs.result"},
            "amount": obj({"value": _RATE, "currency": {"const": "usd"}}),
            "line_item": _GROUP,
            "project_id": _GROUP,
            "api_key_id": _GROUP,
        }
    )
)

SUBSCRIPTION = obj(
    {
        "object": {"const": "billing_subscription"},
        "has_payment_method": {"type": "boolean"},
        "soft_limit_usd": _RATE,
        "hard_limit_usd": {**_RATE, "description": "100000000 where no cost rule applies."},
        "system_hard_limit_usd": _RATE,
        "access_until": whole("Unix seconds; 0: without end.", minimum=0),
    }
)
BILLING_USAGE = obj({"object": {"const": "list"}, "total_usage": _CENTS})

READINESS = obj({"ready": {"type": "boolean"}, "reasons": array(text())})
