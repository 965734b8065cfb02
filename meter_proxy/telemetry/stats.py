"""What a worker counts by itself: all that no usage record tells (refusals, what is in flight, our own overhead).

Plain integers, cheap enough for the hot path. The process that serves `/metrics` gets them as snapshots (publish.py).
"""

import secrets
from collections import Counter
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from meter_proxy.ledger.labels import OTHER
from meter_proxy.quota.charge import Unit
from meter_proxy.telemetry.exposition import Distribution
from meter_proxy.telemetry.quota_gauges import QuotaState
from meter_proxy.usage import Operation

# A chunk costs some 20 us, a request below 1 ms; a busy or swapping machine 1,000 times that.
OVERHEAD_BOUNDS_S = (1e-05, 2.5e-05, 5e-05, 1e-04, 2.5e-04, 5e-04, 1e-03, 2.5e-03, 5e-03, 0.01, 0.025, 0.1, 0.5)
SYNC_BOUNDS_S = (2.5e-04, 5e-04, 1e-03, 2.5e-03, 5e-03, 0.01, 0.025, 0.05, 0.1, 0.25)  # the store's time-out ends it


class LedgerState(Protocol):
    """What of a worker's ledger is shown; `ledger.Ledger` is it."""

    @property
    def store_up(self) -> bool:
        """Whether the store took the last message."""

    @property
    def unsynced(self) -> int:
        """Records that the store has not acknowledged."""

    @property
    def regressions(self) -> int:
        """How often the store turned out to have lost what it had acknowledged."""

    @property
    def quota_states(self) -> list[tuple[str, str, Unit, str, int, int, int, int]]:
        """The quota counters that the store told of lately, each in the order of `QuotaState`."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker has counted since it began. Counts are absolute, so one that is missed is made up for."""

    incarnation: str
    refused: list[tuple[str, str, str, str, int]] = []  # key, model, operation, code; count
    quota_rejected: list[tuple[str, str, int]] = []  # key, rule; count
    quotas: list[QuotaState] = []  # heard of lately
    bad_usage: dict[str, int] = {}  # by reason
    disconnected: list[tuple[str, str, int]] = []  # model, phase; count
    distributions: dict[str, tuple[list[int], float]] = {}  # by stage of the overhead, or "sync"; counts, sum
    inflight: dict[str, int] = {}  # by model
    upstreams_up: dict[str, bool] = {}  # of those that were tried
    store_up: bool = False
    unsynced: int = 0
    regressions: int = 0


class WorkerStats:
    """What the gateway counts as it goes. One per worker."""

    def __init__(self) -> None:
        self._incarnation = secrets.token_hex(8)
        self._label: Callable[[str, int | None], str] = lambda model, status: OTHER
        self._ledger: LedgerState | None = None
        self._refused: Counter[tuple[str, str, str, str]] = Counter()
        self._quota_rejected: Counter[tuple[str, str]] = Counter()
        self._bad_usage: Counter[str] = Counter()
        self._disconnected: Counter[tuple[str, str]] = Counter()
        self._inflight: dict[str, int] = {}  # by the name asked for; its label may change while it runs
        self._upstreams_up: dict[str, bool] = {}
        self._upstreams: Collection[str] | None = None  # None: all that are tried are shown
        self._quota_news: Callable[[], list[QuotaState]] = list
        self._distributions = {stage: Distribution(OVERHEAD_BOUNDS_S) for stage in ("request", "first_byte", "chunk")}
        self._distributions["sync"] = Distribution(SYNC_BOUNDS_S)

    def watch(self, ledger: LedgerState, label: Callable[[str, int | None], str]) -> None:
        """Show the state of this ledger from now on; `label` decides under which name a model is counted."""
        self._ledger = ledger
        self._label = label

    def configured(self, upstreams: Collection[str]) -> None:
        """Show no other upstreams from now on: one that is gone is not down."""
        self._upstreams = frozenset(upstreams)

    def watch_quotas(self, news: Callable[[], list[QuotaState]]) -> None:
        """Show also what `news` tells of quotas."""
        self._quota_news = news

    def refused(self, key: str, model: str, operation: Operation, code: int) -> None:
        """We answered a request with `code` without admitting it. Before authentication, `key` is `unknown`."""
        self._refused[key, self._label(model, None), operation.value, str(code)] += 1

    def quota_rejected(self, key: str, rule: str) -> None:
        """A rule of `key` (`account:NAME`: of an account) refused a request."""
        self._quota_rejected[key, rule] += 1

    def inflight_add(self, model: str, change: int) -> None:
        """An admitted exchange began (1) or ended (-1)."""
        inflight = self._inflight
        count = inflight.get(model, 0) + change
        if count:
            inflight[model] = count
        else:
            inflight.pop(model, None)  # callers choose names: keep none that is not in use

    def bad_usage(self, reason: str) -> None:
        """The upstream reported something odd."""
        self._bad_usage[reason] += 1

    def disconnected(self, model: str, phase: str) -> None:
        """A client left in a way that its record does not show: `after_finish`, which is a completed exchange."""
        self._disconnected[self._label(model, None), phase] += 1

    def upstream_answers(self, upstream: str, up: bool) -> bool:
        """The upstream was tried, and answered or not; tells whether that is news."""
        was_up = self._upstreams_up.get(upstream, True)
        self._upstreams_up[upstream] = up
        return was_up is not up

    def observe_overhead(self, stage: str, seconds: float) -> None:
        """Time that we added: to a request before it was sent on, to the first byte, or to a chunk."""
        self._distributions[stage].observe(seconds)

    def observe_sync(self, seconds: float) -> None:
        """The store took a batch of the books within this time."""
        self._distributions["sync"].observe(seconds)

    def snapshot(self) -> Snapshot:
        """All of it, as it is now."""
        inflight: Counter[str] = Counter()
        for model, count in self._inflight.items():
            inflight[self._label(model, None)] += count
        ledger = self._ledger
        return Snapshot(
            incarnation=self._incarnation,
            refused=[(*labels, count) for labels, count in self._refused.items()],
            quota_rejected=[(*labels, count) for labels, count in self._quota_rejected.items()],
            bad_usage=dict(self._bad_usage),
            disconnected=[(*labels, count) for labels, count in self._disconnected.items()],
            distributions={name: (list(one.counts), one.sum) for name, one in self._distributions.items()},
            inflight=dict(inflight),
            upstreams_up={
                name: up
                for name, up in self._upstreams_up.items()
                if self._upstreams is None or name in self._upstreams
            },
            store_up=ledger.store_up if ledger is not None else False,
            unsynced=ledger.unsynced if ledger is not None else 0,
            regressions=ledger.regressions if ledger is not None else 0,
            quotas=[
                *self._quota_news(),
                *([QuotaState(*state) for state in ledger.quota_states] if ledger is not None else []),
            ],
        )
