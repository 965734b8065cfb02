"""What may be configured, section by section, in the words of the code.

Attribute names carry units; the YAML's names are the aliases. Every section is frozen, refuses keys
it does not know, and takes its values as people write them (fields.py). What one section cannot know
about another is in checks.py. A description here is what an editor shows, through `config schema`.
"""

import hashlib
import os
from decimal import Decimal
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, SecretStr, WithJsonSchema, model_validator

from meter_proxy.config import urls, values
from meter_proxy.config.fields import (
    Address,
    BaseUrl,
    Count,
    Credential,
    Directory,
    Id,
    Instant,
    KeyDigest,
    Listener,
    ModelName,
    Money,
    OneOf,
    OneOrMore,
    OrWord,
    PathPrefix,
    Seconds,
    SecretFile,
    Share,
    Size,
    StoreUrl,
    Switch,
    Tokenizer,
    Zone,
)
from meter_proxy.usage import NANO_USD

__all__ = [
    "Account", "Address", "Config", "Key", "Limits", "Model", "OnDisconnect", "Per", "Plan", "Price", "Quota",
    "RedisConfig", "Section", "Timeouts", "Unit", "Upstream", "WhenDown",
]  # fmt: skip

Unit: TypeAlias = Literal["requests", "tokens", "input_tokens", "output_tokens", "cost_usd", "concurrent"]
Per: TypeAlias = Literal["second", "minute", "hour", "day", "week", "month", "total"]
WhenDown: TypeAlias = Literal["closed", "bounded", "open"]

UNITS: tuple[Unit, ...] = ("requests", "tokens", "input_tokens", "output_tokens", "cost_usd", "concurrent")
MAX_WORKERS = 256  # far above any machine's use; a typo must not fork a machine to death


class Section(BaseModel):
    """A mapping of the YAML. Nothing written for a key, or `null`, means that it is left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        if value is None:
            return {}
        if isinstance(value, dict):
            return {key: member for key, member in value.items() if member is not None}
        if isinstance(value, cls):
            return value
        if isinstance(value, (list, tuple)):
            raise ValueError("must be a mapping, not a list")
        required = [field.alias or name for name, field in cls.model_fields.items() if field.is_required()]
        raise ValueError(f"must be a mapping{' with ' if required else ''}{' and '.join(required)}")


class Limits(Section):
    """Bounds on what clients may send, and on how long anything may wait."""

    max_body_bytes: Size = Field("20M", validate_default=True, alias="max_body", description="Largest request body.")
    max_event_bytes: Size = Field(
        "1M", validate_default=True, alias="max_event", description="Largest event of a stream that is metered whole."
    )
    header_timeout_s: Seconds = Field(
        "10s", validate_default=True, alias="header_timeout", description="For the head of a request to arrive."
    )
    client_stall_s: Seconds = Field(
        "30s", validate_default=True, alias="client_stall", description="For a client that has ceased to read."
    )
    drain_timeout_s: Seconds = Field(
        "60s", validate_default=True, alias="drain_timeout", description="For open streams to end at shutdown."
    )


class RedisConfig(Section):
    """The store that all workers and machines share."""

    url: StoreUrl = Field("embedded", repr=False, description="embedded, or the URL of a Redis >= 7.0 or Valkey.")
    when_down: Annotated[WhenDown, OneOf()] = Field("bounded", description="What limited keys may do while it is away.")
    bounded_tokens: Count = Field(
        "20k", validate_default=True, description="Allowance per key and worker while it is away."
    )
    usage_retention_s: Seconds = Field(
        "400d", validate_default=True, alias="usage_retention", description="How long daily usage is kept."
    )

    @property
    def shown_url(self) -> str:
        """The URL as it may be printed: no user, no password, no parameters."""
        return urls.shown_store_url(self.url)


class JournalConfig(Section):
    """The journal of settled exchanges in `state_dir`: what stands in it is billed."""

    fsync: Annotated[Literal["interval", "always", "off"], OneOf()] = Field(
        "interval", description="When it is brought to the disk itself; only a power loss makes a difference."
    )
    fsync_interval_s: Seconds = Field("10ms", validate_default=True, alias="fsync_interval")
    segment_bytes: Size = Field("16M", validate_default=True, alias="segment", description="Of one file.")
    keep_for_s: Seconds = Field("400d", validate_default=True, alias="keep_for", description="Age of the oldest file.")
    keep_bytes: Size | None = Field(None, alias="keep_size", description="All files of a worker. Default: no bound.")
    archive: Directory | None = Field(
        None, description="Where records go, compressed, before their file is removed. Default: nowhere."
    )


class Timeouts(Section):
    """How long an upstream may take."""

    connect_s: Seconds = Field("5s", validate_default=True, alias="connect")
    first_byte_s: Seconds = Field("300s", validate_default=True, alias="first_byte")
    idle_s: Seconds = Field("120s", validate_default=True, alias="idle", description="Between two reads of an answer.")
    total_s: Seconds = Field("6h", validate_default=True, alias="total")


class OnDisconnect(BaseModel):
    """What becomes of the upstream's answer when its client has hung up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cancel", "drain", "drain_for"] = "cancel"
    drain_for_s: float | None = None


def _on_disconnect(value: Any) -> OnDisconnect:
    match value:
        case OnDisconnect():
            return value
        case "cancel" | "drain":
            return OnDisconnect(kind=value)
        case {"drain_for": time, **rest} if not rest:
            return OnDisconnect(kind="drain_for", drain_for_s=values.duration_s(time))
    raise ValueError("must be cancel, drain, or {drain_for: 5s}")


_ON_DISCONNECT = {
    "anyOf": [
        {"enum": ["cancel", "drain"]},
        {"type": "object", "properties": {"drain_for": {"type": "string"}}, "additionalProperties": False},
        {"type": "string", "pattern": r"\$\{"},
    ]
}


class Upstream(Section):
    """A backend that speaks OpenAI's API."""

    base_url: BaseUrl = Field(description="Used as it is: /chat/completions and the like are appended.")
    written_api_key: Credential = Field(None, alias="api_key", description="Sent as Authorization: Bearer.")
    read_api_key: SecretFile = Field(None, alias="api_key_file", description="The file that holds api_key.")
    running_usage: Annotated[Literal["auto", "vllm", "sglang", "llamacpp", "off"], OneOf()] = Field(
        "auto", description="How to ask for running token counts; auto asks the server what it is."
    )
    tokenizer: Tokenizer = Field(
        "auto", description="Who counts text when the upstream did not report; or a tokenizer.json."
    )
    on_disconnect: Annotated[OnDisconnect, PlainValidator(_on_disconnect), WithJsonSchema(_ON_DISCONNECT)] = Field(
        "cancel", validate_default=True, description="When the client hangs up."
    )
    bill_prompt: Annotated[Literal["on_first_token", "always", "never"], OneOf()] = Field(
        "on_first_token",
        description="Input of what ended before its first token: always bills it; the others, which are one, do not.",
    )
    timeouts: Timeouts = Field(default_factory=Timeouts)

    @property
    def api_key(self) -> SecretStr | None:
        """The operator's credential for this upstream, wherever it was written."""
        return self.written_api_key or self.read_api_key

    @model_validator(mode="after")
    def _one_api_key(self) -> Self:
        if self.written_api_key is not None and self.read_api_key is not None:
            raise ValueError("has both api_key and api_key_file; take one")
        return self


class Price(Section):
    """US dollars per million tokens, exact."""

    input: Money
    output: Money
    cached_input: Money | None = Field(None, description="Default: the price of input.")


class Model(Section):
    """A name (or pattern) that callers may ask for, and where it goes."""

    upstreams: Annotated[tuple[Id, ...], OneOrMore()] = Field(
        alias="upstream", min_length=1, description="One upstream, or several to be tried in order."
    )
    name: ModelName | None = Field(None, description="The name sent upstream. Default: the name asked for.")
    price: Price | None = None
    max_output_tokens: Count | None = Field(None, description="The most that one answer can hold.")


class Quota(Section):
    """One rule: so much of one unit, per window. `requests: 20, per: minute`."""

    name: Id | None = Field(None, description="Default: UNIT-PER. The same name at a key replaces the plan's rule.")
    requests: Count | None = None
    tokens: Count | None = Field(None, description="Input and output.")
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cost_usd: Money | None = None
    concurrent: Count | None = None
    per: Annotated[Per, OneOf()] | None = Field(None, description="Required, but for concurrent.")
    models: tuple[ModelName, ...] | None = Field(None, min_length=1, description="Names and patterns. Default: all.")
    timezone: Zone = Field("UTC", description="Where a day, week or month begins (IANA).")
    reserve: Annotated[Literal["slice", "hard"], OneOf()] = "slice"
    warn_at: Share | None = Field(None, description="From which share on answers carry a warning.")
    when_exhausted: Annotated[Literal["stop", "error", "finish"], OneOf()] = "stop"
    when_down: Annotated[WhenDown, OneOf()] | None = Field(None, description="Default: that of redis.")

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        units = [unit for unit in UNITS if getattr(self, unit) is not None]
        if len(units) != 1:
            found = f"not {' and '.join(units)}" if units else "it has none"
            raise ValueError(f"a rule has exactly one of {', '.join(UNITS)}; {found}")
        if self.concurrent is None and self.per is None:
            raise ValueError("a rule says per which time: add `per: second|minute|hour|day|week|month|total`")
        if self.concurrent is not None and self.per is not None:
            raise ValueError("a concurrent rule counts what is open now; take out `per`")
        if self.cost_usd is not None and self.limit < 1:
            raise ValueError("a cost of 0 can never be met; the smallest is 0.000000001")
        return self

    @property
    def unit(self) -> Unit:
        """What is counted."""
        return next(unit for unit in UNITS if getattr(self, unit) is not None)

    @property
    def limit(self) -> int:
        """How much, as an integer: nano-dollars for `cost_usd`, else the unit itself."""
        amount: int | Decimal = getattr(self, self.unit)
        return int(amount * NANO_USD) if isinstance(amount, Decimal) else amount

    @property
    def rule_id(self) -> str:
        """The name under which the counter is kept. Never depends on the position or the limit.

        The name, else `UNIT-PER` (`tokens-day`, `concurrent`); with `models`, 6 hex digits more: SHA-256
        over the sorted patterns, one a line.
        """
        if self.name is not None:
            return self.name
        parts: list[str] = [self.unit, self.per] if self.per else [self.unit]
        if self.models is not None:
            parts.append(hashlib.sha256("\n".join(sorted(set(self.models))).encode()).hexdigest()[:6])
        return "-".join(parts)


class Plan(Section):
    """A template of rules; its counters are per key."""

    quotas: tuple[Quota, ...] = ()


class Account(Section):
    """Rules that several keys share, counters included."""

    quotas: tuple[Quota, ...] = ()


class Key(Section):
    """A caller. `id` is its public name; the secret is known by its SHA-256 only."""

    model_config = ConfigDict(json_schema_extra={"required": ["id", "secret"]})  # as in Config

    id: Id
    secret_sha256: Annotated[tuple[KeyDigest, ...], OneOrMore()] = Field(
        (), alias="secret", max_length=2, repr=False, description="Two while one is rotated for the other."
    )
    plan: Id | None = None
    models: tuple[ModelName, ...] | None = Field(None, min_length=1, description="Names and patterns. Default: all.")
    account: Id | None = Field(None, description="Default: the key's own id.")
    expires_at: Instant | None = None
    disabled: Switch = False
    rules: Annotated[tuple[Quota, ...] | None, OrWord("unlimited")] = Field(
        (), alias="quotas", description="Added to the plan's; or unlimited, for a key without any."
    )

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """The key's own rules, without the plan's."""
        return self.rules or ()

    @property
    def unlimited(self) -> bool:
        """Whether the operator said that this key has no rule, rather than forgot to give it one."""
        return self.rules is None

    def replaces(self, rule: Quota) -> bool:
        """Whether a rule of the key's plan gives way to one of its own, by its name."""
        return rule.name is not None and any(own.name == rule.name for own in self.quotas)

    @property
    def account_id(self) -> str:
        """Whose quota and usage it is."""
        return self.account or self.id


class Config(Section):
    """The whole configuration of a proxy."""

    # That these are there is looked at by checks.py: their absence shall not hide the faults of everything else.
    model_config = ConfigDict(json_schema_extra={"required": ["upstreams", "models"]})

    listen: Listener = Field("127.0.0.1:8080", validate_default=True, description="Where clients connect.")
    admin: Listener = Field("127.0.0.1:9090", validate_default=True, description="Metrics, health, usage.")
    admin_token: Credential = Field(None, description="Required when admin is not on loopback.")
    workers: Count = Field(
        default_factory=lambda: min(4, os.cpu_count() or 1),
        le=MAX_WORKERS,
        description="Default: one per CPU, at most 4.",
    )
    state_dir: Directory = Field("state", validate_default=True, description="Relative to this file's directory.")
    path_prefixes: tuple[PathPrefix, ...] = Field(
        ("/v1",), min_length=1, description="Where the operations are served."
    )
    usage_page: Switch = Field(False, description="The page /usage, where holders of a key see what they used.")
    limits: Limits = Field(default_factory=Limits)
    redis: RedisConfig = Field(default_factory=RedisConfig)
    journal: JournalConfig = Field(default_factory=JournalConfig)
    upstreams: dict[Id, Upstream] = {}
    models: dict[ModelName, Model] = Field({}, description='What callers may ask for; "*" passes any name.')
    plans: dict[Id, Plan] = {}
    keys: tuple[Key, ...] = ()
    accounts: dict[Id, Account] = {}

    @property
    def needs_store(self) -> bool:
        """Whether some rule lets nothing pass while Redis is away."""
        rules = [rule for key in self.keys for rule in self.rules_of(key)]
        rules += [rule for account in self.accounts.values() for rule in account.quotas]
        return any((rule.when_down or self.redis.when_down) == "closed" for rule in rules)

    def rules_of(self, key: Key) -> tuple[Quota, ...]:
        """The rules of a key in force: its plan's, less those replaced by name, then its own."""
        plan = self.plans.get(key.plan) if key.plan is not None else None
        inherited = () if plan is None else plan.quotas
        return (*(rule for rule in inherited if not key.replaces(rule)), *key.quotas)
