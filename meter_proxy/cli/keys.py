"""`meter-proxy keys create` and `keys hash`: secrets for callers, and their digests for the YAML."""

import json
import secrets as random_source
import sys
from enum import StrEnum
from typing import Annotated

import typer

from meter_proxy.cli.examples import epilog
from meter_proxy.config import values
from meter_proxy.config.secrets import digest

SECRET_BYTES = 32  # as much chance as the digest holds

CREATE_EXAMPLES = (
    "meter-proxy keys create --id alice",
    "meter-proxy keys create --id ci --prefix sk-ci-",
    "meter-proxy keys create --id bob --format json | jq -r .secret",
)
HASH_EXAMPLES = (
    "meter-proxy keys hash < secret.txt",
    "printenv ALICE_KEY | meter-proxy keys hash --format json",
)


class Format(StrEnum):
    """How the result is printed."""

    TEXT = "text"
    JSON = "json"


app = typer.Typer(help="Make keys for callers.", no_args_is_help=True)


@app.command("create", epilog=epilog(CREATE_EXAMPLES))
def create(
    id: Annotated[str, typer.Option("--id", metavar="ID", help="The key's public name, in bills and metrics.")],
    prefix: Annotated[str, typer.Option(metavar="TEXT", help="What the secret begins with.")] = "sk-mp-",
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.TEXT,
) -> None:
    """Print a new secret, once, and the entry for `keys:` in the YAML. The secret is kept nowhere."""
    try:
        values.identifier(id)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--id") from None
    if not prefix.isascii() or not prefix.isprintable() or " " in prefix:
        raise typer.BadParameter("must be printable ASCII without blanks", param_hint="--prefix")
    secret = prefix + random_source.token_urlsafe(SECRET_BYTES)
    if format is Format.JSON:
        entry = {"id": id, "secret": digest(secret.encode()), "quotas": "unlimited"}
        print(json.dumps({"secret": secret, "entry": entry}, indent=2))
        return
    print(f"Secret, for the caller; it is shown only now:\n\n  {secret}\n")
    print("Entry under `keys:` in the configuration:\n")
    print(f"  - id: {json.dumps(id)}")
    print(f"    secret: {digest(secret.encode())}")
    print("    quotas: unlimited    # or a plan, or rules")


@app.command("hash", epilog=epilog(HASH_EXAMPLES))
def hash_secret(format: Annotated[Format, typer.Option(help="How to print.")] = Format.TEXT) -> None:
    """Print the digest of the secret on stdin, as the YAML takes it. One line end after it is not part of it."""
    secret = sys.stdin.buffer.read()
    secret = secret.removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        print("meter-proxy: no secret on stdin", file=sys.stderr)
        raise typer.Exit(2)
    print(json.dumps({"secret": digest(secret)}) if format is Format.JSON else digest(secret))
