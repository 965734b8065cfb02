"""`meter-proxy audit`: are the books in Redis those of the journals?"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress

from meter_proxy.cli.tables import ConfigArgument, StateDirOption, counted, print_table, state_directory
from meter_proxy.config.load import load_config
from meter_proxy.config.schema import Config
from meter_proxy.errors import CannotStart
from meter_proxy.ledger.audit import Difference, Result, audit
from meter_proxy.ledger.embedded import EmbeddedStore
from meter_proxy.ledger.journal import DirectoryLock
from meter_proxy.ledger.store import open_store

EMBEDDED = "embedded"
RETENTION_S = 400 * 86_400
TRIES = 4  # beside a running serve, what was just settled is on its way
PAUSE_S = 0.5
COLUMNS = ("hash", "field", "journals", "redis", "difference")

EXAMPLES = (
    "meter-proxy audit meter-proxy.yaml",
    "meter-proxy audit --state-dir state --redis redis://127.0.0.1:6379",
    "meter-proxy audit meter-proxy.yaml --format json | jq .differences",
)


class Format(StrEnum):
    """How the differences are printed."""

    TABLE = "table"
    JSON = "json"


def command(
    config: ConfigArgument = None,
    state_dir: StateDirOption = None,
    redis: Annotated[
        str | None, typer.Option(metavar="URL", help="The store, where no CONFIG names it; `embedded` is the default.")
    ] = None,
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.TABLE,
) -> None:
    """Recompute the journals and compare them with Redis. Exit 1 if anything differs.

    Also while serve runs: what differs at first is looked at again until it has had time to arrive.
    """
    directory = state_directory(config, state_dir)
    settings = load_config(config, os.environ) if config is not None else None
    url = redis or (settings.redis.url if settings is not None else EMBEDDED)
    with _store_at(url, directory) as address:
        result = asyncio.run(_audit(directory, address, settings))
    if format is Format.JSON:
        print(msgspec.json.format(msgspec.json.encode(_document(result))).decode())
    else:
        _print(result)
    if result.differences:
        raise typer.Exit(1)


@contextlib.contextmanager
def _store_at(url: str, state_dir: Path) -> Iterator[str]:
    """The address of the store; the embedded one is started for as long as it takes, if serve does not run."""
    if url != EMBEDDED:
        yield url
        return
    store = EmbeddedStore(state_dir / "store")
    try:
        lock = DirectoryLock(state_dir)
    except CannotStart:
        yield store.running_url  # of the serve that runs
        return
    try:
        store.start()
        try:
            yield store.url
        finally:
            store.stop()
    finally:
        lock.release()


async def _audit(directory: Path, url: str, config: Config | None) -> Result:
    accounts = {key.id: key.account_id for key in config.keys} if config is not None else {}
    retention_s = int(config.redis.usage_retention_s) if config is not None else RETENTION_S
    store = open_store(url)
    console = Console(stderr=True)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("comparing", total=None)
            for attempt in range(1, TRIES + 1):
                result = await audit(
                    directory,
                    store,
                    now=time.time(),
                    retention_s=retention_s,
                    accounts=accounts,
                    progress=lambda done, total: bar.update(task, completed=done, total=total),
                )
                if not result.differences or attempt == TRIES:
                    return result
                await asyncio.sleep(PAUSE_S)
    finally:
        await store.close()
    raise AssertionError  # unreachable: for the type checker


def _print(result: Result) -> None:
    if result.differences:
        rows = [(*difference, difference.found - difference.expected) for difference in result.differences]
        print_table(COLUMNS, frozenset(COLUMNS[2:]), rows)
    found = counted(len(result.differences), "difference") if result.differences else "no difference"
    compared = counted(result.hashes, "day or counter", "days and counters")
    print(f"{counted(result.records, 'record')}, {compared} compared: {found}")


def _document(result: Result) -> dict[str, object]:
    def shown(difference: Difference) -> dict[str, object]:
        return {**difference._asdict(), "difference": difference.found - difference.expected}

    return {
        "records": result.records,
        "compared": result.hashes,
        "differences": [shown(difference) for difference in result.differences],
    }
