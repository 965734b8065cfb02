"""`meter-proxy serve`: run the proxy."""

import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from meter_proxy.config.load import Overrides, config_for_upstream, load_config, not_yet_enforced
from meter_proxy.config.reload import ConfigSource
from meter_proxy.config.schema import Config
from meter_proxy.errors import ConfigError
from meter_proxy.ledger.units import held_units
from meter_proxy.telemetry import logs

EXAMPLES = (
    "meter-proxy serve meter-proxy.yaml",
    "meter-proxy serve --upstream http://127.0.0.1:8000",
    "meter-proxy serve meter-proxy.yaml --workers 4 --log-format json",
    "meter-proxy serve --upstream http://127.0.0.1:11434 --listen 127.0.0.1:9000",
)


class LogLevel(StrEnum):
    """The least that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Reload(StrEnum):
    """Whether a changed configuration is served by itself."""

    AUTO = "auto"
    MANUAL = "manual"


class LogFormat(StrEnum):
    """How log lines look; auto: text on a terminal, else JSON."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


def command(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", readable=False, help="The YAML file.")] = None,
    upstream: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Instead of CONFIG: one backend without a key; every caller is `anonymous`."),
    ] = None,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="For clients; port 0 is a free one.")] = None,
    admin: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="For metrics, health and usage.")] = None,
    redis: Annotated[str | None, typer.Option(metavar="URL", help="The store; `embedded` is a private one.")] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Processes that serve clients.")] = None,
    state_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", readable=False, help="Where the books are kept.")
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Without keys, let callers of other machines in, too.")
    ] = False,
    reload: Annotated[
        Reload, typer.Option(help="auto: when CONFIG or a secret's file changes; manual: only when told to.")
    ] = Reload.AUTO,
    log_level: Annotated[LogLevel, typer.Option(help="The least that is logged.")] = LogLevel.INFO,
    log_format: Annotated[LogFormat, typer.Option(help="How log lines look; auto: text on a terminal, else JSON.")] = (
        LogFormat.AUTO
    ),
) -> None:
    """Run the proxy. SIGTERM and Ctrl-C let open streams end first; SIGHUP reads CONFIG again."""
    options = Overrides(listen=listen, admin=admin, redis=redis, workers=workers, state_dir=state_dir)
    source = None
    if config is not None and upstream is None:
        source = ConfigSource(
            config, lambda: _settings(config, None, options, allow_anonymous=allow_anonymous), os.environ
        )
        settings = source.load()
    else:
        settings = _settings(config, upstream, options, allow_anonymous=allow_anonymous)
    logs.set_up(level=log_level, format=log_format)
    for line in not_yet_enforced(settings):
        print(f"meter-proxy: note: {line}", file=sys.stderr)

    # Not before the configuration is known to be good: they take a while to import.
    from meter_proxy.app import serve_worker
    from meter_proxy.workers import serve

    serve(
        settings,
        serve_worker,
        say=lambda line: print(line, flush=True),
        source=source,
        watch=reload is Reload.AUTO,
    )


def _settings(config: Path | None, upstream: str | None, options: Overrides, *, allow_anonymous: bool) -> Config:
    if config is not None and upstream is None:
        return load_config(
            config,
            os.environ,
            overrides=options,
            allow_anonymous=allow_anonymous,
            further=lambda settings: held_units(settings, time.time()),
        )
    if upstream is not None and config is None:
        return config_for_upstream(
            upstream,
            listen=options.listen,
            admin=options.admin,
            redis=options.redis,
            workers=options.workers,
            state_dir=options.state_dir,
            allow_anonymous=allow_anonymous,
        )
    found = "neither a CONFIG nor an --upstream" if config is None else "both a CONFIG and an --upstream"
    example = "meter-proxy serve --upstream http://127.0.0.1:8000"
    raise ConfigError([f"meter-proxy: there is {found}; give one of them, for example: {example}"])
