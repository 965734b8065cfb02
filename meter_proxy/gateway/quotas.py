"""From a call to its grant: which rules apply, what it needs, and what a refusal looks like over HTTP."""

from datetime import UTC, datetime
from enum import Enum
from typing import Any

from meter_proxy.config.lookup import ResolvedModel
from meter_proxy.config.rulebook import MAX_REMEMBERED, RuleBook
from meter_proxy.errors import ClientError
from meter_proxy.gateway.inbound import Call, Caller
from meter_proxy.gateway.replies import unavailable
from meter_proxy.ledger import Ledger
from meter_proxy.ledger.grants import Grant, Tab, Unavailable
from meter_proxy.metering.pricing import TokenPrice, ceil_rates
from meter_proxy.quota.decision import Denied
from meter_proxy.quota.headers import Headers
from meter_proxy.quota.reservation import FREE, Rates, Terms
from meter_proxy.quota.statement import Line, statement
from meter_proxy.quota.windows import window_at
from meter_proxy.telemetry.stats import WorkerStats
from meter_proxy.usage import Operation

UNAVAILABLE_RETRY_S = 5
DAY_S = 86_400


class MustAsk(Enum):
    """What this worker holds does not say."""

    MUST_ASK = "must ask"


MUST_ASK = MustAsk.MUST_ASK
_EMBEDDINGS = Operation.EMBEDDINGS  # an attribute of an enum costs 0.1 us


class QuotaGate:
    """Asks the ledger for grants, in the words of the gateway. One serves one configuration."""

    def __init__(self, rules: RuleBook, ledger: Ledger, stats: WorkerStats) -> None:
        self.rules = rules
        self._ledger = ledger
        self._stats = stats
        self._tabs: dict[tuple[str, str], tuple[ResolvedModel, Tab]] = {}  # by key id and model

    def grant_now(self, call: Call) -> Grant | MustAsk | None:
        """`grant` without waiting; MUST_ASK where somebody else must be asked: then it is for `grant` to say."""
        tab = self._tab(call)
        if tab is None:
            return None
        want = tab.terms.want(call.asked, has_output=call.operation is not _EMBEDDINGS)
        answer = tab.quotas.reserve_now(tab, want)
        if answer is None:
            return MUST_ASK
        return answer if answer.__class__ is Grant else self._granted(answer, tab)

    async def grant(self, call: Call) -> Grant | None:
        """What `call` may use; None where no rule applies. Raises ClientError: 429, or 503 while Redis is away."""
        tab = self._tab(call)
        if tab is None:
            return None
        want = tab.terms.want(call.asked, has_output=call.operation is not _EMBEDDINGS)
        return self._granted(await tab.quotas.reserve(tab, want), tab)

    def _tab(self, call: Call) -> Tab | None:
        """Where the grant of `call` is put; None where no rule applies."""
        caller, model = call.caller, call.model
        kept = self._tabs.get((caller.key_id, model.asked))
        if kept is not None:
            kept_model, tab = kept
            # A call that was read before a reload has another model, or account, than those that come after.
            if kept_model is model and tab.account == caller.account and tab.quotas.is_good(tab):
                return tab
        return self._open_tab(call, kept[1] if kept is not None else None)

    def _open_tab(self, call: Call, former: Tab | None) -> Tab | None:
        caller, model, quotas = call.caller, call.model, self._ledger.quotas
        rules = self.rules.rules_for(caller.key, model.asked)
        if quotas is None or not rules:
            return None
        terms = Terms(rules, _rates(model), model.max_output_tokens, self._ledger.now())
        tab = quotas.open_tab(terms, key=caller.key_id, account=caller.account, former=former)
        if len(self._tabs) >= MAX_REMEMBERED:
            self._tabs.clear()
        self._tabs[caller.key_id, model.asked] = model, tab
        return tab

    def _granted(self, answer: Grant | Denied | Unavailable, tab: Tab) -> Grant:
        match answer:
            case Grant():
                return answer
            case Denied():
                raise self._refusal(answer, tab)
            case Unavailable():
                raise unavailable(
                    "metering_unavailable",
                    "Quotas cannot be checked at the moment. Try again in a moment.",
                    retry_after_s=UNAVAILABLE_RETRY_S,
                )

    def _refusal(self, denied: Denied, tab: Tab) -> ClientError:
        self._stats.quota_rejected(denied.rule.scope, denied.rule.id)
        headers = (*denied.headers, *tab.quotas.headers(tab))
        return ClientError(429, denied.code, denied.message, type=denied.type, headers=headers)

    def headers(self, grant: Grant) -> Headers:
        """What is left after this admission, for the reply."""
        return grant.tab.quotas.headers(grant.tab)

    async def statement(self, caller: Caller, days: int = 1) -> dict[str, Any]:
        """The caller's own usage of the last `days` UTC days, and its quotas. See `quota/statement.py`."""
        ledger, now = self._ledger, self._ledger.now()
        lines = await self.lines(caller)
        dates = [datetime.fromtimestamp(now - DAY_S * ago, UTC).date() for ago in range(days)]
        used: list[dict[str, dict[str, int]]] | None = None
        if ledger.quotas is not None:
            names = [f"{date:%Y%m%d}" for date in dates]
            used = await ledger.usage_on(caller.account, caller.key_id, names)
        return statement(
            key=caller.key_id,
            account=caller.account,
            now=now,
            live=used is not None and ledger.store_up,
            days=[(date.isoformat(), totals) for date, totals in zip(dates, used or [{}] * days, strict=True)],
            lines=lines,
        )

    async def lines(self, caller: Caller) -> list[Line]:
        """The caller's rules and its account's, as full as they are now; while Redis is away, as far as known here."""
        now, quotas = self._ledger.now(), self._ledger.quotas
        entries = [
            (rule, models, window_at(rule.per, rule.zone, now)) for rule, models in self.rules.rules_of(caller.key)
        ]
        if quotas is None:
            return [Line(*entry, 0, 0) for entry in entries]
        pairs = [(rule, window) for rule, _, window in entries]
        figures = await quotas.look(pairs, caller.account)
        if figures is None:
            figures = quotas.known(pairs, caller.account)
        return [Line(*entry, *figure) for entry, figure in zip(entries, figures, strict=True)]


def _rates(model: ResolvedModel) -> Rates:
    price = model.price
    if price is None:
        return FREE
    return Rates(*ceil_rates(TokenPrice(price.input, price.output, price.cached_input)))
