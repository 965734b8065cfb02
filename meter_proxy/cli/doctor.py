"""`meter-proxy doctor`: what will hurt, said before it does, each with what to do."""

import asyncio
import json
import os
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from meter_proxy.cli import front, machine, servers
from meter_proxy.cli.findings import Finding, Level, note
from meter_proxy.config.load import config_for_upstream, load_config
from meter_proxy.config.schema import Config
from meter_proxy.errors import ConfigError

EXAMPLES = (
    "meter-proxy doctor meter-proxy.yaml",
    "meter-proxy doctor --upstream http://127.0.0.1:8000",
    "meter-proxy doctor meter-proxy.yaml --format json | jq '.findings[].advice'",
    "meter-proxy doctor meter-proxy.yaml --url https://llm.example.com/v1",
)
KEY_VARIABLE = "METER_PROXY_KEY"
WORDS = {Level.GOOD: ("good", "green"), Level.NOTE: ("note", "yellow"), Level.BAD: ("BAD ", "bold red")}


class Format(StrEnum):
    """How the findings are printed."""

    TEXT = "text"
    JSON = "json"


def command(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", readable=False, help="The configuration of serve.")
    ] = None,
    upstream: Annotated[
        str | None, typer.Option(metavar="URL", help="Instead of CONFIG: one backend, as for serve.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"The public base URL: is a stream held back on its way? Two small calls, key from {KEY_VARIABLE}.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The model of these calls.")] = None,
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.TEXT,
) -> None:
    """Find out what will hurt, and say what to do about it. Exit 1 if something will.

    Looked at: the upstreams, Redis, the clocks, open files, the disk under state_dir, and with --url what stands in
    front of the proxy. Also while serve runs.
    """
    findings = asyncio.run(_examined(_settings(config, upstream), url, model))
    if format is Format.JSON:
        document = {"ok": not _hurts(findings), "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        _print(findings)
    if _hurts(findings):
        raise typer.Exit(1)


def _settings(config: Path | None, upstream: str | None) -> Config:
    if config is not None and upstream is None:
        return load_config(config, os.environ, allow_anonymous=True)
    if upstream is not None and config is None:
        return config_for_upstream(upstream)
    raise ConfigError(["meter-proxy: name either a CONFIG or an --upstream, for example: doctor meter-proxy.yaml"])


async def _examined(config: Config, url: str | None, model: str | None) -> list[Finding]:
    findings = [*await servers.upstreams(config), *await servers.store(config)]
    findings += [machine.open_files(), machine.disk(config.state_dir, config.workers)]
    if url is not None:
        findings.append(await front.in_front(config, url, os.environ.get(KEY_VARIABLE, ""), model))
    else:
        findings.append(note(front.ABOUT, "not looked at", "name the public base URL: --url https://HOST/v1"))
    return findings


def _hurts(findings: list[Finding]) -> bool:
    return any(finding.level is Level.BAD for finding in findings)


def _print(findings: list[Finding]) -> None:
    console = Console(highlight=False)
    for finding in findings:
        word, style = WORDS[finding.level]
        line = Text.assemble((word, style), f"  {finding.about}: {finding.message}")
        console.print(line, soft_wrap=True)
        if finding.advice:
            console.print(Text(f"      -> {finding.advice}"), soft_wrap=True)
