"""The command itself: its version, and its name for every command."""

from typer.testing import CliRunner

from meter_proxy import __version__
from meter_proxy.cli.main import app


def test_version_is_printed() -> None:
    """One line, for bug reports."""
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"meter-proxy {__version__}\n")


def test_every_command_of_the_contract_has_help() -> None:
    """`--help` of each ends well and says what the command does."""
    for words in (
        "serve",
        "demo",
        "mock-backend",
        "check-config",
        "usage",
        "records",
        "config schema",
        "keys create",
        "keys hash",
    ):
        result = CliRunner().invoke(app, [*words.split(), "--help"])
        assert result.exit_code == 0, words
        assert "Usage" in result.output
