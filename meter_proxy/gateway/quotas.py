"""From a call to its grant: which rules apply, what it needs, and what a refusal looks like over HTTP."""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from meter_proxy.config.rulebook import RuleBook
from meter_proxy.errors import ClientError
from meter_proxy.gateway.inbound import Call, Caller
from meter_proxy.gateway.replies import unavailable
from meter_proxy.ledger import Ledger
from meter_proxy.ledger.grants import Grant, Unavailable
from meter_proxy.metering.pricing import TokenPrice, ceil_rates
from meter_proxy.quota.decision import Denied, Headers, Left, rate_limit_headers
from meter_proxy.quota.reservation import FREE, Asked, Rates, Want, want_for
from meter_proxy.quota.statement import Line, statement
from meter_proxy.quota.windows import window_at
from meter_proxy.telemetry.metrics import WorkerStats
from meter_proxy.usage import Operation

UNAVAILABLE_RETRY_S = 5


class MustAsk(Enum):
    """What this worker holds does not say."""

    MUST_ASK = "must ask"


MUST_ASK = MustAsk.MUST_ASK


class QuotaGate:
    """Asks the ledger for grants, in the words of the gateway."""

    def __init__(self, rules: RuleBook, ledger: Ledger, stats: WorkerStats) -> None:
        self.rules = rules
        self._ledger = ledger
        self._stats = stats

    def grant_now(self, call: Call) -> Grant | MustAsk | None:
        """`grant` without waiting; MUST_ASK where somebody else must be asked: then it is for `grant` to say."""
        quotas, want = self._ledger.quotas, self._want(call)
        if quotas is None or want is None:
            return None
        answer = quotas.reserve_now(want, key=call.caller.key_id, account=call.caller.account)
        return MUST_ASK if answer is None else self._granted(answer, want, call)

    async def grant(self, call: Call) -> Grant | None:
        """What `call` may use; None where no rule applies. Raises ClientError: 429, or 503 while Redis is away."""
        quotas, want = self._ledger.quotas, self._want(call)
        if quotas is None or want is None:
            return None
        answer = await quotas.reserve(want, key=call.caller.key_id, account=call.caller.account)
        return self._granted(answer, want, call)

    def _want(self, call: Call) -> Want | None:
        rules = self.rules.rules_for(call.caller.key, call.asked.model)
        return want_for(rules, _asked(call), _rates(call), self._ledger.now()) if rules else None

    def _granted(self, answer: Grant | Denied | Unavailable, want: Want, call: Call) -> Grant:
        match answer:
            case Grant():
                return answer
            case Denied():
                raise self._refusal(answer, want, call.caller.account)
            case Unavailable():
                raise unavailable(
                    "metering_unavailable",
                    "Quotas cannot be checked at the moment. Try again in a moment.",
                    retry_after_s=UNAVAILABLE_RETRY_S,
                )

    def _refusal(self, denied: Denied, want: Want, account: str) -> ClientError:
        self._stats.quota_rejected(denied.rule.scope, denied.rule.id)
        left = self._ledger.quotas.left(want, account) if self._ledger.quotas is not None else []
        headers = (*denied.headers, *self._headers(left))
        return ClientError(429, denied.code, denied.message, type=denied.type, headers=headers)

    def headers(self, grant: Grant) -> Headers:
        """What is left after this admission, for the reply."""
        quotas = self._ledger.quotas
        return self._headers(quotas.left(grant, "")) if quotas is not None else ()

    async def statement(self, caller: Caller) -> dict[str, Any]:
        """The caller's own usage of today, and its quotas. See `quota/statement.py`."""
        ledger, now = self._ledger, self._ledger.now()
        entries = [
            (rule, models, window_at(rule.per, rule.zone, now)) for rule, models in self.rules.rules_of(caller.key)
        ]
        seen: list[tuple[int, int]] | None = None
        totals: dict[str, dict[str, int]] | None = None
        if ledger.quotas is not None:
            pairs = [(rule, window) for rule, _, window in entries]
            seen = await ledger.quotas.look(pairs, caller.account)
            totals = await ledger.usage_on(
                caller.account, caller.key_id, datetime.fromtimestamp(now, UTC).strftime("%Y%m%d")
            )
            if seen is None:
                seen = ledger.quotas.known(pairs, caller.account)
        figures = seen if seen is not None else [(0, 0)] * len(entries)
        lines = [Line(*entry, *figure) for entry, figure in zip(entries, figures, strict=True)]
        return statement(
            key=caller.key_id,
            account=caller.account,
            now=now,
            live=totals is not None and ledger.store_up,
            totals=totals or {},
            lines=lines,
        )

    def _headers(self, left: Sequence[Left]) -> Headers:
        return rate_limit_headers(left, self._ledger.now())


def _asked(call: Call) -> Asked:
    asked = call.asked
    return Asked(
        stream=asked.stream,
        choices=asked.choices,
        max_output_tokens=asked.max_output_tokens,
        model_max_output_tokens=call.model.max_output_tokens,
        has_output=call.operation is not Operation.EMBEDDINGS,
        input_text_bytes=asked.input_text_bytes,
        texts=asked.texts,
    )


def _rates(call: Call) -> Rates:
    price = call.model.price
    if price is None:
        return FREE
    return Rates(*ceil_rates(TokenPrice(price.input, price.output, price.cached_input)))
