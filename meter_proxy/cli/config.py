"""`meter-proxy config schema`: what may stand in the YAML, for editors."""

import json

import typer

from meter_proxy.cli.examples import epilog
from meter_proxy.config.load import json_schema

EXAMPLES = (
    "meter-proxy config schema > meter-proxy.schema.json",
    "meter-proxy config schema | jq '.properties | keys'",
)

app = typer.Typer(help="About the configuration.", no_args_is_help=True)


@app.callback()
def _commands() -> None:
    """About the configuration."""


@app.command("schema", epilog=epilog(EXAMPLES))
def schema() -> None:
    """Print the JSON Schema of the YAML."""
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
