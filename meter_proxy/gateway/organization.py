"""OpenAI's usage and cost reports of an organization, over what we know: accounts, keys, models, whole UTC days.

`GET /organization/usage/completions` and `GET /organization/costs` in OpenAI's shapes:
https://platform.openai.com/docs/api-reference/usage. A project is an account, an API key id is the key's id, a line
item is a model. A bucket is the whole UTC day in which it begins. What cannot be answered from that is refused, never
left out in silence. Usage is that of all metered operations, embeddings too.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from multidict import MultiMapping

from meter_proxy.errors import ClientError
from meter_proxy.ledger.books import FIELDS
from meter_proxy.ledger.days import DayTotal, Place
from meter_proxy.usage import NANO_USD

DAY_S = 86_400
LAST_INSTANT = 253_402_214_400  # 9999-12-31: what a calendar can hold
CURSOR = "page_"
ONLY_DAYS = "Usage is kept by UTC day here: bucket_width can only be 1d."

_KEYS = ("api_key_ids", "project_ids")
_NAMES: dict[str, Callable[[DayTotal], str]] = {
    "project_id": lambda total: total.account,
    "api_key_id": lambda total: total.key,
    "model": lambda total: total.model,
    "line_item": lambda total: total.model,
}


class Kind(NamedTuple):
    """One of the two reports."""

    columns: tuple[str, ...]  # that it can be grouped by
    models: str  # the parameter with model names
    most: int  # buckets on a page
    result: Callable[[list[int], Mapping[str, str]], dict[str, Any]]  # totals, and the values of its columns


class Report(NamedTuple):
    """What was asked for: one page of it."""

    kind: Kind
    days: tuple[date, ...]  # on this page, in order; none: it is empty
    next_page: str | None
    group_by: tuple[str, ...]
    models: frozenset[str]  # in these three, empty: all
    keys: frozenset[str]
    accounts: frozenset[str]

    def wants(self, place: Place) -> bool:
        """Whether a key's day belongs to it."""
        return (not self.keys or place.key in self.keys) and (not self.accounts or place.account in self.accounts)


def read_report(kind: Kind, query: MultiMapping[str], now: float) -> Report:
    """Read the query of a request; lists come as `models=a&models=b` or `models[]=a`. `now`: Unix seconds.

    Raises `ClientError` (400) for what is wrong, and for what cannot be told.
    """
    known = ("start_time", "end_time", "bucket_width", "limit", "page", "group_by", kind.models, *_KEYS)
    for name in query:
        if name.removesuffix("[]") not in known:
            raise _refused(name, f"{name!r} is not recorded here. There are {', '.join(known)}.")
    if "start_time" not in query:
        raise _refused("start_time", "start_time is missing: Unix seconds.", code="missing_required_parameter")
    if query.get("bucket_width", "1d") != "1d":
        raise _refused("bucket_width", ONLY_DAYS)
    start = _number(query, "start_time", 0, 0, LAST_INSTANT)
    end = _number(query, "end_time", int(now) + 1, 0, LAST_INSTANT)
    if "end_time" in query and end <= start:
        raise _refused("end_time", "end_time must be after start_time.")
    group_by = tuple(dict.fromkeys(_list(query, "group_by")))
    for column in group_by:
        if column not in kind.columns:
            raise _refused("group_by", f"group_by can be {', '.join(kind.columns)}; {column!r} is not recorded here.")
    first = _cursor(query, _day(start))
    limit = _number(query, "limit", 7, 1, kind.most)
    number = max(0, min(limit, (_day(end - 1) - first).days + 1)) if end > start else 0
    following = first + timedelta(days=number)
    return Report(
        kind,
        tuple(first + timedelta(days=place) for place in range(number)),
        f"{CURSOR}{following:%Y%m%d}" if number and following <= _day(end - 1) else None,
        group_by,
        *(frozenset(_list(query, name)) for name in (kind.models, *_KEYS)),
    )


class Sums:
    """Totals of a report, as they come in."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._sums: dict[date, dict[tuple[str, ...], list[int]]] = {day: {} for day in report.days}

    def add(self, total: DayTotal) -> None:
        """Count what a key used of a model on a day of the report."""
        report = self._report
        if report.models and total.model not in report.models:
            return
        group = tuple([_NAMES[column](total) for column in report.group_by])
        day = self._sums[total.day]
        day[group] = [one + other for one, other in zip(day.get(group, _NOTHING), total.totals, strict=True)]

    def page(self) -> dict[str, Any]:
        """The document."""
        report = self._report
        return {
            "object": "page",
            "data": [self._bucket(day) for day in report.days],
            "has_more": report.next_page is not None,
            "next_page": report.next_page,
        }

    def _bucket(self, day: date) -> dict[str, Any]:
        report, start = self._report, _instant(day)
        groups: Iterable[tuple[tuple[str, ...], list[int]]] = sorted(self._sums[day].items())
        results = [
            report.kind.result(totals, dict(zip(report.group_by, group, strict=True))) for group, totals in groups
        ]
        return {"object": "bucket", "start_time": start, "end_time": start + DAY_S, "results": results}


def _usage(totals: list[int], names: Mapping[str, str]) -> dict[str, Any]:
    amounts = dict(zip(FIELDS, totals, strict=True))
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": amounts["input_tokens"],
        "output_tokens": amounts["output_tokens"],
        "input_cached_tokens": amounts["cached_input_tokens"],
        "num_model_requests": amounts["requests"],
        "project_id": names.get("project_id"),
        "user_id": None,
        "api_key_id": names.get("api_key_id"),
        "model": names.get("model"),
        "batch": None,
        "service_tier": None,
    }


def _cost(totals: list[int], names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "object": "organization.costs.result",
        "amount": {"value": totals[FIELDS.index("cost_nano_usd")] / NANO_USD, "currency": "usd"},
        "line_item": names.get("line_item"),
        "project_id": names.get("project_id"),
        "api_key_id": names.get("api_key_id"),
    }


USAGE = Kind(("project_id", "api_key_id", "model"), "models", 31, _usage)
COSTS = Kind(("project_id", "api_key_id", "line_item"), "line_items", 180, _cost)

_NOTHING = [0] * len(FIELDS)


def _list(query: MultiMapping[str], name: str) -> list[str]:
    return [*query.getall(name, ()), *query.getall(f"{name}[]", ())]


def _number(query: MultiMapping[str], name: str, default: int, least: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 16 and least <= int(text) <= most):
        raise _refused(name, f"{name} must be a whole number from {least} to {most}.")
    return int(text)


def _cursor(query: MultiMapping[str], first: date) -> date:
    text = query.get("page")
    if text is None:
        return first
    try:
        day = datetime.strptime(text, f"{CURSOR}%Y%m%d").replace(tzinfo=UTC).date()
    except ValueError:
        day = date.min
    if day < first:
        raise _refused("page", "page must be the next_page of an answer to the same question.")
    return day


def _day(at: int) -> date:
    return datetime.fromtimestamp(at, UTC).date()


def _instant(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def _refused(param: str, message: str, *, code: str = "invalid_parameter") -> ClientError:
    return ClientError(400, code, message, param=param)
