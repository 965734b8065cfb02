"""The only entrance to a configuration: a file or a URL becomes a Config, or every fault.

The order: read the file, YAML with positions, `${VAR}`, options of the command line over it, then
validate.py. Neither the process' environment nor a clock is read here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from meter_proxy.config import marks, values
from meter_proxy.config.faults import Fault, Finding, Loc, dotted
from meter_proxy.config.schema import Config
from meter_proxy.config.urls import with_default_path
from meter_proxy.config.validate import validate
from meter_proxy.errors import ConfigError

MAX_FILE_BYTES = 16 * 1024**2  # some 100,000 keys

# What somebody above knows against a configuration that is good by itself.
Further: TypeAlias = Callable[[Config], Iterable[Finding]]


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Options of `serve`, as typed; None was not given. They win over the file.

    A relative `state_dir` means the current directory here.
    """

    listen: str | None = None
    admin: str | None = None
    redis: str | None = None
    workers: int | None = None
    state_dir: str | Path | None = None

    def at_their_places(self) -> dict[Loc, tuple[str, Any]]:
        """The given ones: place in the configuration -> option, value."""
        given = {
            ("listen",): ("--listen", self.listen),
            ("admin",): ("--admin", self.admin),
            ("redis", "url"): ("--redis", self.redis),
            ("workers",): ("--workers", self.workers),
            ("state_dir",): ("--state-dir", None if self.state_dir is None else str(Path(self.state_dir).absolute())),
        }
        return {loc: (option, value) for loc, (option, value) in given.items() if value is not None}


def load_config(
    path: Path,
    env: Mapping[str, str],
    *,
    overrides: Overrides | None = None,
    allow_anonymous: bool = False,
    further: Further = lambda config: (),
) -> Config:
    """Read a configuration file. Raises ConfigError with every fault in it.

    `allow_anonymous`: a listener that others can reach is good without keys, too. `further` is asked last.
    """
    config, faults = examine(path, env, overrides=overrides, allow_anonymous=allow_anonymous, further=further)
    return _good(config, faults)


def check(path: Path, env: Mapping[str, str], *, allow_anonymous: bool = False) -> list[Fault]:
    """Every fault of a configuration file, in the order of its lines; empty when it is good."""
    return examine(path, env, allow_anonymous=allow_anonymous)[1]


def state_dir_of(path: Path, env: Mapping[str, str]) -> Path:
    """Where the books of a configuration are, for commands that only read them.

    Faults elsewhere in the file do not matter: whoever reads the books need not have the secrets in the
    environment. Raises ConfigError when the file cannot be read, or its `state_dir` is at fault.
    """
    config, faults = examine(path, env)
    faults = [fault for fault in faults if fault.path in ("", "state_dir")]
    return _good(config, faults).state_dir


def config_for_upstream(
    url: str,
    *,
    listen: str | None = None,
    admin: str | None = None,
    redis: str | None = None,
    workers: int | None = None,
    state_dir: str | Path | None = None,
    allow_anonymous: bool = False,
) -> Config:
    """The configuration of `serve --upstream URL`: one upstream, any model, no keys.

    A URL without a path means its `/v1`, which is what people leave out; one with a path is used as it
    is. Raises ConfigError that names the options at fault.
    """
    base_url = with_default_path(url)
    upstreams = {"upstream": {"base_url": base_url}}
    document = marks.Document({"upstreams": upstreams, "models": {"*": {"upstream": "upstream"}}})
    options = Overrides(listen=listen, admin=admin, redis=redis, workers=workers, state_dir=state_dir)
    places = options.at_their_places() | {("upstreams", "upstream", "base_url"): ("--upstream", base_url)}
    return _good(*_examine(document, "", Path.cwd(), {}, places, allow_anonymous=allow_anonymous))


def examine(
    path: Path,
    env: Mapping[str, str],
    *,
    overrides: Overrides | None = None,
    allow_anonymous: bool = False,
    further: Further = lambda config: (),
) -> tuple[Config | None, list[Fault]]:
    """A configuration file's Config, or None, and its faults; those that `further` finds, where there are no others."""
    try:
        document = marks.read(_text(path))
    except marks.Unreadable as exc:
        return None, [Fault(str(path), *exc.mark, "", exc.message)]
    places = (overrides or Overrides()).at_their_places()
    base_dir = path.absolute().parent  # not resolved: a mounted ConfigMap is links all over
    return _examine(document, str(path), base_dir, env, places, allow_anonymous=allow_anonymous, further=further)


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the YAML, for editors and for programs that write it."""
    schema = Config.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "meter-proxy configuration"}


def not_yet_enforced(config: Config) -> list[str]:
    """One line for each thing that is configured and checked, but not enforced in this version."""
    return [
        f"not enforced yet: tokenizer {upstream.tokenizer} of upstream {name}"
        for name, upstream in config.upstreams.items()
        if upstream.tokenizer not in ("auto", "none")
    ]


def _text(path: Path) -> str:
    """The text of a file. Raises Unreadable at its first line, or where it is not UTF-8."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise marks.Unreadable((1, 1), f"cannot read the file: {exc.strerror}") from exc
    if len(raw) > MAX_FILE_BYTES:
        raise marks.Unreadable((1, 1), f"the file is larger than {MAX_FILE_BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        line_start = raw.rfind(b"\n", 0, exc.start) + 1
        column = len(raw[line_start : exc.start].decode(errors="replace")) + 1
        mark = (raw.count(b"\n", 0, exc.start) + 1, column)
        raise marks.Unreadable(mark, f"not UTF-8: byte 0x{raw[exc.start]:02x}") from exc


def _examine(
    document: marks.Document,
    file: str,
    base_dir: Path,
    env: Mapping[str, str],
    options: Mapping[Loc, tuple[str, Any]],
    *,
    allow_anonymous: bool,
    further: Further = lambda config: (),
) -> tuple[Config | None, list[Fault]]:
    def fault(finding: Finding) -> Fault:
        message = finding.message
        if finding.other is not None:
            at = f", line {document.mark(finding.other)[0]}" if file else ""
            message += f" ({dotted(finding.other)}{at})"
        if finding.loc in options:
            return Fault("", 0, 0, options[finding.loc][0], message)
        line, column = document.mark(finding.loc, key=finding.on_key) if file else (0, 0)
        return Fault(file, line, column, dotted(finding.loc), message)

    missing: list[Finding] = []
    data = _interpolated(document.data, (), env, missing)
    for loc, (_, value) in options.items():
        _put(data, loc, value)
    broken = document.broken | {finding.loc for finding in missing}
    config, found = validate(data, broken, env=env, base_dir=base_dir, allow_anonymous=allow_anonymous)
    if config is not None and not (found or broken or document.faults):
        found = list(further(config))
    faults = {fault(finding): None for finding in missing + found}
    faults |= {Fault(file, *mark, dotted(loc), message): None for mark, loc, message in document.faults}
    return config, sorted(faults, key=lambda one: (one.line, one.column))


def _interpolated(value: Any, loc: Loc, env: Mapping[str, str], missing: list[Finding]) -> Any:
    """A copy with every `${VAR}` replaced; what cannot be is added to `missing`."""
    if isinstance(value, dict):
        return {key: _interpolated(member, (*loc, key), env, missing) for key, member in value.items()}
    if isinstance(value, list):
        return [_interpolated(item, (*loc, index), env, missing) for index, item in enumerate(value)]
    if isinstance(value, str) and "${" in value:
        try:
            return values.interpolate(value, env)
        except ValueError as exc:
            missing.append(Finding(loc, str(exc)))
    return value


def _put(data: Any, loc: Loc, value: Any) -> None:
    """Set one place, unless what is there already has the wrong shape: its own fault says so."""
    for part in loc[:-1]:
        data = data.setdefault(part, {}) if isinstance(data, dict) else None
    if isinstance(data, dict):
        data[loc[-1]] = value


def _good(config: Config | None, faults: list[Fault]) -> Config:
    if config is None or faults:
        raise ConfigError([str(fault) for fault in faults])
    return config
