"""`meter-proxy import litellm` and `import one-api`: our YAML from theirs, and a list of what has no equivalent."""

import contextlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
import yaml

from meter_proxy.cli import from_litellm, from_one_api
from meter_proxy.cli.draft import Draft, as_yaml
from meter_proxy.cli.examples import epilog
from meter_proxy.config.load import check
from meter_proxy.errors import CannotStart, ConfigError

MAX_FILE_BYTES = 16 * 1024**2
LITELLM_EXAMPLES = (
    "meter-proxy import litellm config.yaml > meter-proxy.yaml",
    "meter-proxy import litellm config.yaml --output meter-proxy.yaml",
)
ONE_API_EXAMPLES = (
    "meter-proxy import one-api one-api.db --output meter-proxy.yaml",
    "meter-proxy import one-api export.json | less",
)

OutputOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", readable=False, help="Where to write; refused if it exists."),
]

app = typer.Typer(help="Move here from another proxy.", no_args_is_help=True)


@app.command("litellm", epilog=epilog(LITELLM_EXAMPLES))
def litellm(
    file: Annotated[Path, typer.Argument(metavar="FILE", readable=False, help="LiteLLM's config.yaml.")],
    output: OutputOption = None,
) -> None:
    """Write our YAML from LiteLLM's config.yaml.

    What has no equivalent is listed on stderr. Virtual keys are in LiteLLM's database, not in the file.
    """
    try:
        with file.open("rb") as source:
            document = yaml.safe_load(source.read(MAX_FILE_BYTES))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as exc:
        reason = " ".join(str(exc).split())
        raise ConfigError([f"{file}: not YAML: {reason}"]) from exc
    if not isinstance(document, dict):
        raise ConfigError([f"{file}: no LiteLLM configuration: it is not a mapping"])
    _write(from_litellm.translate(document), file, output)


@app.command("one-api", epilog=epilog(ONE_API_EXAMPLES))
def one_api(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", readable=False, help="one-api.db, or its tables as one JSON object.")
    ],
    output: OutputOption = None,
) -> None:
    """Write our YAML from one-api's database.

    Channels become upstreams, tokens keys, users accounts, and what is left of their quota a rule. What has no
    equivalent is listed on stderr. JSON is {"channels": [...], "tokens": [...], "users": [...], "options": [...]}.
    """
    _write(from_one_api.translate(from_one_api.read(file)), file, output)


def _write(draft: Draft, source: Path, output: Path | None) -> None:
    """Print or write the YAML, then the notes. What `check-config` would refuse in it is said, exit 1."""
    text = f"# Written by `meter-proxy import` from {source.name}. Check it: meter-proxy check-config FILE\n"
    text += as_yaml(draft.document())
    if output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        try:
            with open(output, "x", opener=_private, encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise CannotStart(f"{output} exists, and is not overwritten: name another --output") from None
        print(f"meter-proxy: wrote {output}", file=sys.stderr)
    for line in draft.notes:
        print(f"meter-proxy: note: {line}", file=sys.stderr)
    faults = _faults(text)
    for fault in faults:
        print(f"meter-proxy: to be mended by hand: {fault}", file=sys.stderr)
    if faults:
        raise typer.Exit(1)


def _private(path: str, flags: int) -> int:
    """Credentials of upstreams may be in it: for its owner only."""
    return os.open(path, flags, 0o600)


def _faults(text: str) -> list[str]:
    """What `check-config` says once every variable is set; places without the temporary file's name."""
    variables = {*re.findall(r"\$\{(\w+)", text), *re.findall(r"env: (\w+)", text)}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meter-proxy-")))
        path = directory / "meter-proxy.yaml"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        found = check(path, dict.fromkeys(variables, "1234"), allow_anonymous=True)
        return [f"{fault.line}:{fault.column}: {fault.path}: {fault.message}" for fault in found]
