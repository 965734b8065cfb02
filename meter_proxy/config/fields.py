"""The types of single fields: how a value is read, and what an editor may accept for it.

Each pairs a reader (values.py, urls.py, secrets.py) with the JSON Schema of what people write. Readers
that need the environment or the directory of the YAML file get both from the validation context
(`{"env": ..., "base_dir": ...}`); without one, nothing is set and paths mean the current directory.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import (
    BeforeValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

from meter_proxy.config import secrets, urls, values
from meter_proxy.config.faults import did_you_mean

TOKENIZERS = ("auto", "upstream", "o200k_base", "cl100k_base", "none")

_VARIABLE = {"type": "string", "pattern": r"\$\{"}
_TEXT = {"type": "string", "minLength": 1}


class Address(NamedTuple):
    """Where to listen. `str()` is HOST:PORT, IPv6 in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return urls.is_loopback(self.host)


def _written(*forms: dict[str, Any]) -> WithJsonSchema:
    """What people write for a field; a variable may stand for any text."""
    return WithJsonSchema({"anyOf": [*forms, _VARIABLE]})


def _human(unit: str) -> dict[str, Any]:
    return {"type": "string", "pattern": rf"^[0-9][0-9_]*(\.[0-9]+)?\s*{unit}$"}


def _at_least(minimum: int, unit: str) -> dict[str, Any]:
    return {**_human(unit), "type": ["number", "string"], "minimum": minimum}


class OneOf:
    """One of the words of a Literal; another word is answered with a suggestion."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(values.one_of(*get_args(source)), handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), _VARIABLE]}


class OneOrMore:
    """A list, or a single value that stands for a list of one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda value: value if isinstance(value, (list, tuple)) else [value], handler(source)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        several = handler(schema)
        return {"anyOf": [several["items"], several]}


class OrWord:
    """A list, or a word that stands for None."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def _read(self, value: Any) -> Any:
        if value == self.word:
            return None
        if not isinstance(value, (list, tuple)):
            suggestion = did_you_mean(value, [self.word]) if isinstance(value, str) else ""
            raise ValueError(f"must be a list, or {self.word}{suggestion}")
        return value

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"const": self.word}, handler(schema)]}


def _env(info: ValidationInfo) -> Mapping[str, str]:
    env: Mapping[str, str] = (info.context or {}).get("env", {})
    return env


def _base_dir(info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("base_dir", "."))


def _address(value: Any) -> Address:
    return value if isinstance(value, Address) else Address(*urls.host_port(value))


def _directory(value: Any, info: ValidationInfo) -> Path:
    return (_base_dir(info) / values.text(str(value) if isinstance(value, Path) else value)).absolute()


def _key_digest(value: Any, info: ValidationInfo) -> bytes:
    return secrets.key_digest(value, _env(info), _base_dir(info))


def _secret_file(value: Any, info: ValidationInfo) -> SecretStr | None:
    if value is None or isinstance(value, SecretStr):
        return value
    return secrets.from_file(values.text(value), _base_dir(info)) if value else None


def _tokenizer(value: Any, info: ValidationInfo) -> str:
    name = values.text(value)
    if "/" not in name and not name.endswith(".json"):
        return values.one_of(*TOKENIZERS, "FILE.json")(name)
    path = (_base_dir(info) / name).absolute()
    try:
        is_file = path.is_file()
    except OSError as exc:
        raise ValueError(f"cannot read {name}: {exc.strerror}") from None
    if not is_file:
        raise ValueError(f"there is no file {name}")
    return str(path)


Text = Annotated[str, BeforeValidator(values.text), _written(_TEXT)]
Id = Annotated[
    str, BeforeValidator(values.identifier), _written({"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"})
]
ModelName = Annotated[
    str, BeforeValidator(values.model_name), _written({**_TEXT, "maxLength": values.MAX_MODEL_NAME_CHARS})
]
Switch = Annotated[bool, BeforeValidator(values.switch), _written({"type": "boolean"})]
Count = Annotated[int, BeforeValidator(values.count), _written(_at_least(1, "[kM]?"))]
Size = Annotated[int, BeforeValidator(values.size_bytes), _written(_at_least(1, "[KMG]?"))]
Seconds = Annotated[float, BeforeValidator(values.duration_s), _written(_human("(ms|s|m|h|d)"))]
Money = Annotated[Decimal, BeforeValidator(values.money_usd), _written(_at_least(0, "[kM]?"))]
Share = Annotated[float, BeforeValidator(values.fraction), _written(_at_least(0, "%?"))]
Instant = Annotated[datetime, BeforeValidator(values.instant), _written({"type": "string"})]
Zone = Annotated[str, BeforeValidator(values.zone), _written(_TEXT)]

Listener = Annotated[Address, PlainValidator(_address), _written({"type": "string", "pattern": "^.+:[0-9]+$"})]
PathPrefix = Annotated[str, BeforeValidator(urls.path_prefix), _written({"type": "string", "pattern": "^/.*[^/]$"})]
BaseUrl = Annotated[str, BeforeValidator(urls.base_url), _written({"type": "string", "pattern": "^https?://[^?#]+$"})]
StoreUrl = Annotated[
    str,
    BeforeValidator(urls.store_url),
    _written({"const": "embedded"}, {"type": "string", "pattern": r"^(rediss?|unix|rediss?\+(sentinel|cluster))://"}),
]
Directory = Annotated[Path, BeforeValidator(_directory), _written(_TEXT)]
Tokenizer = Annotated[str, BeforeValidator(_tokenizer), _written({"enum": list(TOKENIZERS)}, _TEXT)]

Credential = Annotated[SecretStr | None, BeforeValidator(secrets.credential), _written({"type": "string"})]
SecretFile = Annotated[SecretStr | None, BeforeValidator(_secret_file), _written({"type": "string"})]
KeyDigest = Annotated[
    bytes,
    BeforeValidator(_key_digest),
    _written(
        {"type": "string", "pattern": "^sha256:[0-9A-Fa-f]{64}$"},
        *(
            {"type": "object", "properties": {form: _TEXT}, "required": [form], "additionalProperties": False}
            for form in ("env", "file")
        ),
    ),
]
