"""meter-proxy: know and limit who uses how many LLM tokens, in front of any OpenAI-compatible backend.

The map. Imports point downwards only (a contract in pyproject.toml keeps it so):

    cli/            the command line: one file a command
    workers.py      the parent process: forks workers, replaces them, serves the admin port
    mock_backend/   a fake upstream that keeps its own truth, for demo and tests
    app.py          composition root of one worker
    plugin.py       the same meter on somebody else's aiohttp Application
    gateway/        HTTP in, HTTP out: exchange.py is the story of one request
    admin/          metrics, health, and reports over HTTP: api.py, described by openapi.py
    telemetry/      every Prometheus metric, in one place; logs
    ledger/         the books: records on disk, totals and quotas in Redis
    config/         the YAML: schema, loading with file:line:column, lookups
    metering/       bytes -> Usage; no I/O, no clock, no asyncio
    quota/          Usage + rules -> decisions; no I/O, `now` is an argument
    tasks.py        background tasks that nobody can lose
    usage.py        Usage, Basis, Outcome, UsageRecord: the nouns everybody shares
    errors.py       the exception tree

Where would I look for ...? a new endpoint: `metering/dialects/` and one line in `gateway/routes.py`;
"why 429": `quota/decision.py`; "what is billed when": `metering/billing.py`; "the client hung up":
`gateway/relay.py`; "Redis is down": `ledger/sync.py`; a new metric: `telemetry/metrics.py`; a report:
`admin/api.py`, on the public listener `gateway/reports.py`.

Public names: `setup`, `metrics`, `Config`, `load_config` (imported on first use: `import meter_proxy` stays light).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meter_proxy.config.load import load_config
    from meter_proxy.config.schema import Config
    from meter_proxy.plugin import METER_PROXY, MeterProxy, metrics, setup

__version__ = "0.1.0"
__all__ = ["METER_PROXY", "Config", "MeterProxy", "load_config", "metrics", "setup"]

_HOME = {
    "METER_PROXY": "meter_proxy.plugin",
    "Config": "meter_proxy.config.schema",
    "MeterProxy": "meter_proxy.plugin",
    "load_config": "meter_proxy.config.load",
    "metrics": "meter_proxy.plugin",
    "setup": "meter_proxy.plugin",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
