"""The command `meter-proxy`: every subcommand by its name, and errors as one line with their exit code."""

import sys
from typing import Annotated

import typer

from meter_proxy import __version__
from meter_proxy.cli import check_config, config, demo, keys, mock_backend, records, serve, usage
from meter_proxy.errors import CannotStart, ConfigError, MeterProxyError

app = typer.Typer(
    name="meter-proxy",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"meter-proxy {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Know and limit who uses how many LLM tokens: a metering proxy for any OpenAI-compatible backend."""


app.command("serve")(serve.command)
app.command("demo")(demo.command)
app.command("mock-backend")(mock_backend.command)
app.command("check-config")(check_config.command)
app.command("usage")(usage.command)
app.command("records")(records.command)
app.add_typer(config.app, name="config")
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Run the command line; every expected error is one clear line on stderr and its exit code."""
    try:
        app()
    except ConfigError as exc:
        print(exc, file=sys.stderr)
        sys.exit(2)
    except CannotStart as exc:
        print(f"meter-proxy: {exc}", file=sys.stderr)
        sys.exit(3)
    except MeterProxyError as exc:
        print(f"meter-proxy: {exc}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
