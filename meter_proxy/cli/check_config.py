"""`meter-proxy check-config FILE`: every fault at once, before anybody is served by it."""

import json
import os
import sys
import time
from collections.abc import Sized
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from meter_proxy.cli.tables import counted
from meter_proxy.config.load import examine, not_yet_enforced
from meter_proxy.config.schema import Config
from meter_proxy.ledger.units import held_units

EXAMPLES = (
    "meter-proxy check-config meter-proxy.yaml",
    "meter-proxy check-config meter-proxy.yaml --format json | jq .faults",
)


class Format(StrEnum):
    """How the result is printed."""

    TEXT = "text"
    JSON = "json"


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", readable=False, help="The configuration to check.")],
    format: Annotated[Format, typer.Option(help="How to print the result.")] = Format.TEXT,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="As for serve: a public listener without keys is meant.")
    ] = False,
) -> None:
    """Print every fault of a configuration.

    Each is a line `file:line:col: path: message`. Exit 0 when there is none, else 2. The books in its state_dir,
    where they are there, are asked, too.
    """
    config, faults = examine(
        file,
        os.environ,
        allow_anonymous=allow_anonymous,
        further=lambda config: held_units(config, time.time()),
    )
    if format is Format.JSON:
        print(
            json.dumps({"ok": not faults, "faults": [asdict(fault) for fault in faults]}, ensure_ascii=False, indent=2)
        )
    elif config is not None and not faults:
        print(f"{file}: good: {_found(config)}")
    else:
        print(*faults, sep="\n")
    if faults or config is None:
        raise typer.Exit(2)
    for line in not_yet_enforced(config):
        print(f"meter-proxy: note: {line}", file=sys.stderr)


def _found(config: Config) -> str:
    sections: dict[str, Sized] = {
        "upstream": config.upstreams,
        "model": config.models,
        "plan": config.plans,
        "key": config.keys,
        "account": config.accounts,
    }
    return ", ".join(counted(len(section), name) for name, section in sections.items())
