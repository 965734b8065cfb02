"""What `/readyz` says of a Redis that is away; the same on both listeners."""

from collections.abc import Sequence

import msgspec
from aiohttp import web

from meter_proxy.config.schema import Config

STORE_IS_AWAY = "redis is away, and some rules are `when_down: closed`"
_POLICIES = ("closed", "bounded", "open")


def note_of_outage(config: Config) -> str:
    """What limited keys may do while Redis is away, in words for people: `redis is away: bounded`."""
    rules = [rule for key in config.keys for rule in config.rules_of(key)]
    rules += [rule for account in config.accounts.values() for rule in account.quotas]
    found = {rule.when_down or config.redis.when_down for rule in rules} or {config.redis.when_down}
    return f"redis is away: {', '.join(policy for policy in _POLICIES if policy in found)}"


def answer(reasons: Sequence[str], notes: Sequence[str]) -> web.Response:
    """Ready, unless there are `reasons` against it (503). `notes` are worth a look, no more."""
    document = {"ready": not reasons, "reasons": [*reasons, *notes]}
    return web.Response(
        status=503 if reasons else 200, body=msgspec.json.encode(document), content_type="application/json"
    )
