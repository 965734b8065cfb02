"""`meter-proxy healthcheck`: is a running proxy well? For containers, which have no curl."""

import json
from enum import StrEnum
from typing import Annotated

import msgspec
import typer

from meter_proxy.cli.admin_client import DEFAULT_ADMIN_URL, AdminClient, AdminError, AdminUrlArgument

EXAMPLES = (
    "meter-proxy healthcheck",
    "meter-proxy healthcheck http://127.0.0.1:9090 --live",
    "meter-proxy healthcheck --timeout 1 --format json",
)


class Format(StrEnum):
    """How the result is printed."""

    TEXT = "text"
    JSON = "json"


def command(
    admin_url: AdminUrlArgument = DEFAULT_ADMIN_URL,
    live: Annotated[bool, typer.Option("--live", help="Only whether it is alive, not whether it serves.")] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="For the answer.")] = 2.0,
    format: Annotated[Format, typer.Option(help="How to print the result.")] = Format.TEXT,
) -> None:
    """Ask a running proxy whether it is ready. Exit 0 if it is, else 1, with the reasons.

    It needs no token.
    """
    path = "/healthz" if live else "/readyz"
    client = AdminClient(admin_url, timeout_s=timeout)
    try:
        status, body = client.get(path)
        words = _words(body)
        good = status == 200 and bool(words)  # any web server answers 200 to something
        found = words or f"{client.url}{path} answered {status}, as no meter-proxy does"
    except AdminError as exc:
        good, found = False, str(exc)
    if format is Format.JSON:
        print(json.dumps({"ok": good, "message": found}, ensure_ascii=False))
    else:
        print(found)
    if not good:
        raise typer.Exit(1)


def _words(body: bytes) -> str:
    """What the proxy says, and its reasons. Empty for an answer of another server."""
    try:
        document = msgspec.json.decode(body)
        said = document["status"] if "status" in document else "ready" if document["ready"] else "not ready"
        reasons = "; ".join(document.get("reasons", ()))
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return f"{said}: {reasons}" if reasons else str(said)
