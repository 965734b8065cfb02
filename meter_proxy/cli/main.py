"""The command `meter-proxy`: every subcommand by its name, and errors as one line with their exit code."""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

from meter_proxy import __version__
from meter_proxy.cli.examples import epilog
from meter_proxy.errors import CannotStart, ConfigError, MeterProxyError

COMMANDS = {
    "serve": "serve",
    "demo": "demo",
    "mock-backend": "mock_backend",
    "check-config": "check_config",
    "usage": "usage",
    "records": "records",
    "top": "top",
    "doctor": "doctor",
    "audit": "audit",
    "repair": "repair",
    "healthcheck": "healthcheck",
}
"""Each command and its module here, which is imported when it is needed: all of them take twice as long as most."""

GROUPS = {"config": "config", "keys": "keys", "import": "import_config"}
"""The same of commands with commands of their own."""

COMPLETION_VARIABLE = "_METER_PROXY_COMPLETE"  # set by what `--install-completion` writes for the shell


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"meter-proxy {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Know and limit who uses how many LLM tokens: a metering proxy for any OpenAI-compatible backend."""


def application(only: str | None = None) -> typer.Typer:
    """The command line; with `only`, what is needed to run that command, if there is one of that name."""
    app = typer.Typer(
        name="meter-proxy",
        no_args_is_help=True,
        rich_markup_mode=None,  # no boxes, no colours: help that fits 80 columns
    )
    app.callback()(options)
    is_known = only in COMMANDS or only in GROUPS
    for name, module_name in COMMANDS.items():
        if not is_known or name == only:
            module = import_module(f"meter_proxy.cli.{module_name}")
            app.command(name, epilog=epilog(module.EXAMPLES))(module.command)
    for name, module_name in GROUPS.items():
        if not is_known or name == only:
            app.add_typer(import_module(f"meter_proxy.cli.{module_name}").app, name=name)
    return app


def main() -> None:
    """Run the command line; every expected error is one clear line on stderr and its exit code.

    A reader that closes the pipe early, as `head` does, is a good end.
    """
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - None if closed (`>&-`)
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()  # here, where it can still be told that the disk is full
    except BrokenPipeError:
        code = 0
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        code = _failed(f"{where}{exc.strerror or exc}", 1)
    _drop_unwritable_output()
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Run one command to its end and return the exit code. What goes wrong with its files is raised."""
    is_completion = COMPLETION_VARIABLE in os.environ
    command = get_command(application(None if is_completion or not arguments else arguments[0]))
    if is_completion:
        command.main(arguments, prog_name="meter-proxy")  # answers the shell, and exits
    try:
        # Not app(): it prints usage errors in four lines, and a closed pipe is an error to it.
        with command.make_context("meter-proxy", arguments) as context:
            command.invoke(context)
    except typer.Exit as exc:
        return exc.exit_code
    except typer.TyperException as exc:
        message = exc.format_message()
        if message.startswith("Usage:"):  # a group without a command: this is its help
            print(message, file=sys.stderr)
            return 2
        return _failed(" ".join(message.replace("Value error, ", "").split()), 2)
    except ConfigError as exc:
        print(exc, file=sys.stderr)
        return 2
    except CannotStart as exc:
        return _failed(str(exc), 3)
    except MeterProxyError as exc:
        return _failed(str(exc), 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _failed(message: str, code: int) -> int:
    print(f"meter-proxy: {message}", file=sys.stderr)
    return code


def _drop_unwritable_output() -> None:
    """Let what stdout does not take go nowhere: the interpreter would try again at its end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
