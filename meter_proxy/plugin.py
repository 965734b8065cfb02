"""The meter on anybody's aiohttp `Application`.

    app = web.Application()
    meter_proxy.setup(app, "meter-proxy.yaml")

installs the metered operations under the configuration's `path_prefixes`, in this one process. The
application's own routes and middlewares stay as they are, and hang-ups are noticed whatever its
`handler_cancellation` is. Everything lives in one typed key (`METER_PROXY`) and one `cleanup_ctx`.
Our own server is built on just this.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

from aiohttp import web

from meter_proxy import __version__
from meter_proxy.admin.page import Page
from meter_proxy.admin.readiness import note_of_outage
from meter_proxy.config.faults import dotted
from meter_proxy.config.load import load_config
from meter_proxy.config.reload import refuse_fixed_changes
from meter_proxy.config.rulebook import RuleBook
from meter_proxy.config.schema import Config
from meter_proxy.errors import ConfigError
from meter_proxy.gateway.gateway import Gateway
from meter_proxy.gateway.inbound import Inbound
from meter_proxy.gateway.replies import preflight
from meter_proxy.gateway.reports import Reports
from meter_proxy.gateway.routes import (
    BILLING_SUBSCRIPTION,
    BILLING_USAGE,
    METERED,
    MODELS,
    ORGANIZATION_COSTS,
    ORGANIZATION_USAGE,
    USAGE,
    Route,
)
from meter_proxy.gateway.upstream import UpstreamPool
from meter_proxy.ledger import Ledger
from meter_proxy.ledger.days import ReportStore
from meter_proxy.ledger.units import held_units
from meter_proxy.tasks import spawn
from meter_proxy.telemetry.exposition import CONTENT_TYPE
from meter_proxy.telemetry.feed import RecordFeed
from meter_proxy.telemetry.metrics import Metrics
from meter_proxy.telemetry.publish import published
from meter_proxy.telemetry.quota_rules import WatchedRules
from meter_proxy.telemetry.quota_watch import QuotaWatch
from meter_proxy.telemetry.stats import WorkerStats
from meter_proxy.telemetry.timed_store import TimedStore

EMBEDDED = "embedded"


class MeterProxy:
    """One installation. `gateway` exists while the application runs, `metrics` where no parent keeps them."""

    def __init__(self, config: Config, *, index: int = 0, workers: int = 1, store_url: str | None = None) -> None:
        self.config = config
        self.index = index  # of this worker among `workers` on one state directory
        self.workers = workers
        self.store_url = store_url  # None: as configured, and the embedded store is ours to start
        self.stats = WorkerStats()
        self.metrics: Metrics | None = None
        self.gateway: Gateway
        self.reports: Reports
        self.note_of_outage = note_of_outage(config)  # for /readyz while Redis is away
        self._quota_watch: QuotaWatch | None = None

    async def measured(self, app: web.Application) -> AsyncIterator[None]:
        """A `cleanup_ctx` around `running`: follow our own books for Prometheus, as the parent of `serve` does."""
        self.metrics = Metrics(version=__version__, servers={})
        self.metrics.configured(self.config, time.time())
        self.config.state_dir.mkdir(parents=True, exist_ok=True)
        feed = RecordFeed(self.config.state_dir, self.metrics, workers=1)
        following = spawn(feed.run(), name="follow the records")
        yield
        following.cancel()

    async def running(self, app: web.Application) -> AsyncIterator[None]:
        """The application's `cleanup_ctx`: open the books, serve, settle, close the books."""
        from meter_proxy.ledger.embedded import EmbeddedStore
        from meter_proxy.ledger.store import check_store, open_store

        config = self.config
        embedded: EmbeddedStore | None = None
        url = self.store_url or config.redis.url
        if url == EMBEDDED:
            embedded = EmbeddedStore(config.state_dir / "store")
            await asyncio.to_thread(embedded.start)
            url = embedded.url
        try:
            if self.store_url is None:
                await check_store(url)
            ledger = Ledger(
                config.state_dir / f"w{self.index}",
                TimedStore(open_store(url), self.stats.observe_sync),
                workers=self.workers,
                configured_models=config.models,
                usage_retention_s=int(config.redis.usage_retention_s),
                journal=config.journal,
                bounded_tokens=config.redis.bounded_tokens,
            )
            await ledger.start()
            try:
                async with (
                    published(self.stats, ledger),
                    self._quotas_watched(ledger, url),
                    _reading(url) as store,
                ):
                    self.gateway = Gateway(config, ledger, self.stats)
                    self.reports = Reports(self.gateway, store)
                    yield
                    await self.gateway.drain(0.0)
            finally:
                await ledger.stop()
        finally:
            if embedded is not None:
                await asyncio.to_thread(embedded.stop)

    @contextlib.asynccontextmanager
    async def _quotas_watched(self, ledger: Ledger, store_url: str) -> AsyncIterator[None]:
        """Within this block, the first worker reads for all how full the quotas are."""
        if self.index != 0:
            yield
            return
        from meter_proxy.ledger.store import open_store

        store = open_store(store_url)  # its own: it waits for nobody, and nobody for it
        self._quota_watch = watch = QuotaWatch(store, WatchedRules(self.config), ledger.now)
        self.stats.watch_quotas(lambda: watch.news)

        async def run() -> None:
            try:
                await watch.run()
            finally:
                await store.close()

        watching = spawn(run(), name="watch the quotas")
        try:
            yield
        finally:
            watching.cancel()  # not waited for: the books come first

    def reload(self, config: Config) -> None:
        """Serve by `config` from now on: no stream is dropped, no counter reset. Call it while the application runs.

        Raises ConfigError, and changes nothing, where `config` differs in what a start decides: see `config/reload.py`.
        """
        self.prepare(config)()

    def prepare(self, config: Config) -> Callable[[], None]:
        """`reload` in two steps: this one may raise, and changes nothing; what it returns goes over to `config`."""
        refuse_fixed_changes(self.config, config)
        # What `Gateway.reconfigure` will make, and may fail to: TLS contexts need their files.
        Inbound(config)
        RuleBook(config)
        for name, upstream in config.upstreams.items():
            UpstreamPool(name, upstream)
        return partial(self._serve_by, config)

    def _serve_by(self, config: Config) -> None:
        self.config = config
        self.note_of_outage = note_of_outage(config)
        self.gateway.reconfigure(config)
        self.stats.configured(config.upstreams)
        if self._quota_watch is not None:
            self._quota_watch.configure(WatchedRules(config))
        if self.metrics is not None:
            self.metrics.configured(config, time.time())

    async def drain(self, app: web.Application | None = None) -> None:
        """The application's `on_shutdown`: let what is in flight end, within `limits.drain_timeout`."""
        await self.gateway.drain(self.config.limits.drain_timeout_s)


@contextlib.asynccontextmanager
async def _reading(store_url: str) -> AsyncIterator[ReportStore]:
    """The store once more, for reports: the books wait for nobody's."""
    from meter_proxy.ledger.store import open_store

    store = open_store(store_url)
    try:
        yield store
    finally:
        await store.close()


METER_PROXY: web.AppKey[MeterProxy] = web.AppKey("meter_proxy", MeterProxy)


def setup(app: web.Application, config: Config | str | Path) -> MeterProxy:
    """Install the metered operations on `app`; `config` is a `Config` or the path of a YAML file.

    Raises ConfigError with every fault in the file. One process per `state_dir`.
    """
    if not isinstance(config, Config):
        config = load_config(Path(config), os.environ)
    if found := held_units(config, time.time()):
        raise ConfigError([f"{dotted(finding.loc)}: {finding.message}" for finding in found])
    installed = MeterProxy(config)
    app.cleanup_ctx.append(installed.measured)
    install(app, installed)
    return installed


async def metrics(request: web.Request) -> web.Response:
    """A handler for your own application: `app.router.add_get("/metrics", meter_proxy.metrics)`."""
    measured = request.app[METER_PROXY].metrics
    if measured is None:
        raise web.HTTPNotFound
    return web.Response(text=measured.render(), headers={"Content-Type": CONTENT_TYPE})


def install(app: web.Application, installed: MeterProxy) -> None:
    """Add the routes and the life cycle of `installed` to `app`."""
    app[METER_PROXY] = installed
    for prefix in installed.config.path_prefixes:
        for route in METERED:
            app.router.add_post(prefix + route.path, partial(_post, route), expect_handler=partial(_expect, route))
            app.router.add_options(prefix + route.path, _preflight)
        for path in (prefix + MODELS, prefix + MODELS + "/{model:.+}"):
            app.router.add_get(path, _models)
            app.router.add_options(path, _preflight)
        app.router.add_get(prefix + USAGE, _usage)
        app.router.add_options(prefix + USAGE, _preflight)
        app.router.add_get(prefix + ORGANIZATION_USAGE, _organization_usage)
        app.router.add_get(prefix + ORGANIZATION_COSTS, _organization_costs)
        add_billing(app, prefix)
    if installed.config.usage_page:
        Page("usage.html", api_prefix=installed.config.path_prefixes[0]).add_to(app.router, USAGE)
    app.on_shutdown.append(installed.drain)
    app.cleanup_ctx.append(installed.running)


def add_billing(app: web.Application, prefix: str) -> None:
    """Add one-api's routes below `prefix`."""
    for path, handler in ((BILLING_SUBSCRIPTION, _billing_subscription), (BILLING_USAGE, _billing_usage)):
        app.router.add_get(prefix + path, handler)
        app.router.add_options(prefix + path, _preflight)


async def _post(route: Route, request: web.Request) -> web.StreamResponse:
    return await request.app[METER_PROXY].gateway.post(request, route)


async def _expect(route: Route, request: web.Request) -> web.StreamResponse | None:
    return await request.app[METER_PROXY].gateway.expect(request, route)


async def _models(request: web.Request) -> web.StreamResponse:
    return await request.app[METER_PROXY].gateway.models(request)


async def _usage(request: web.Request) -> web.StreamResponse:
    return await request.app[METER_PROXY].gateway.usage(request)


async def _organization_usage(request: web.Request) -> web.StreamResponse:
    return await request.app[METER_PROXY].reports.organization_usage(request)


async def _organization_costs(request: web.Request) -> web.StreamResponse:
    return await request.app[METER_PROXY].reports.organization_costs(request)


async def _billing_subscription(request: web.Request) -> web.StreamResponse:
    return await request.app[METER_PROXY].reports.subscription(request)


async def _billing_usage(request: web.Request) -> web.StreamResponse:
    return await request.app[METER_PROXY].reports.billing_usage(request)


async def _preflight(request: web.Request) -> web.StreamResponse:
    return preflight(request)
