"""Usage records for tests that need some, whatever is in them, and the totals that they must add up to."""

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

from redis import Redis

from meter_proxy.ledger.books import FIELDS
from meter_proxy.ledger.journal import JournalRecord
from meter_proxy.usage import Basis, Operation, Outcome, UsageRecord

DAY = "2026-03-01"
_numbers = itertools.count(1)

Totals = Counter[tuple[str, str, str, str, str]]  # account, key, YYYYMMDD, label, field -> total


def usage_record(**members: Any) -> UsageRecord:
    """Return a completed chat of alice; `members` replace what the test is about. Each has an id of its own."""
    number = next(_numbers)
    record: dict[str, Any] = {
        "id": f"r{number}",
        "time": f"{DAY}T12:00:00.000Z",
        "key": "alice",
        "account": "alice",
        "model": "m1",
        "upstream_model": "m1",
        "response_model": "m1",
        "upstream": "local",
        "operation": Operation.CHAT,
        "stream": True,
        "input_tokens": 10,
        "cached_input_tokens": None,
        "output_tokens": 5,
        "reasoning_tokens": None,
        "cost_nano_usd": 75_000,
        "input_basis": Basis.REPORTED,
        "basis": Basis.REPORTED,
        "outcome": Outcome.COMPLETED,
        "status": 200,
        "ttft_ms": 20.0,
        "duration_ms": 100.0,
        "client_request_id": None,
    }
    return UsageRecord(**{**record, **members})


def totals_of(records: Iterable[JournalRecord]) -> Totals:
    """Add up records as the contract says, without the product's books."""
    totals: Totals = Counter()
    for record in records:
        place = (record.account, record.key, record.time[:10].replace("-", ""), record.model_label)
        totals[*place, "requests"] += 1
        for field in FIELDS[1:]:
            totals[*place, field] += getattr(record, field) or 0
    return totals


def totals_in_redis(client: Redis, kind: str = "usage") -> Totals:
    """Read all readable counters; with `kind="books"` the workers' own, added up."""
    totals: Totals = Counter()
    for name in client.scan_iter(f"mp:*:{kind}:*"):
        _, account, _, key, day = str(name).split(":")
        for field, value in client.hgetall(name).items():
            label, word = str(field).rsplit("|", 1)
            if kind == "books":
                label = label.split("|", 1)[1]
            totals[account.strip("{}"), key, day, label, word] += int(value)
    return totals
