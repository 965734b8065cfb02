"""The nouns that everybody shares: Usage, Basis, Outcome, Operation, UsageRecord.

No behaviour lives here beyond what the words mean. Wire words (`prompt_tokens`, ...) stay in
`metering/dialects/`; everything above that border speaks of input and output tokens.
"""

from enum import StrEnum

import msgspec


class Operation(StrEnum):
    """What was asked of the model, in OpenTelemetry's GenAI words."""

    CHAT = "chat"
    TEXT_COMPLETION = "text_completion"
    EMBEDDINGS = "embeddings"


class Basis(StrEnum):
    """How we know a token count. One per record for the output, one for the input."""

    REPORTED = "reported"  # the upstream's final usage
    RUNNING = "running"  # the last running count of a stream that did not reach its final usage
    TOKENIZED = "tokenized"  # the text, tokenized
    COUNTED = "counted"  # output only: one per content event
    ESTIMATED = "estimated"  # input only: bytes of text / 4
    NONE = "none"  # nothing to bill


class Outcome(StrEnum):
    """How an exchange ended. Exactly one per exchange."""

    COMPLETED = "completed"
    CLIENT_DISCONNECTED = "client_disconnected"
    QUOTA_CUT = "quota_cut"
    DENIED = "denied"  # refused by us: in requests_total only, never in a record
    UPSTREAM_FAILED = "upstream_failed"  # 5xx, reset, error in the stream
    UPSTREAM_TIMEOUT = "upstream_timeout"
    CLIENT_ERROR = "client_error"  # upstream 4xx
    CRASHED = "crashed"
    DRAINED = "drained"  # cut at shutdown, after the drain time


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts of one exchange; None means "not reported", 0 is a value.

    `output_tokens` includes reasoning; `input_tokens` includes cached ones.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None


NO_USAGE = Usage()

NANO_USD = 1_000_000_000  # in a dollar: money is counted in whole nano-dollars


class UsageRecord(msgspec.Struct, frozen=True, gc=False):
    """One admitted exchange, as it is billed. Field order is the order on the wire.

    `time` is the admission, RFC 3339 UTC with milliseconds. The three billed figures are always
    integers. Never prompts, answers or secrets.
    """

    id: str
    time: str
    key: str
    account: str
    model: str  # asked
    upstream_model: str  # sent
    response_model: str | None  # answered
    upstream: str
    operation: Operation
    stream: bool
    input_tokens: int
    cached_input_tokens: int | None
    output_tokens: int
    reasoning_tokens: int | None
    cost_nano_usd: int
    input_basis: Basis
    basis: Basis
    outcome: Outcome
    status: int | None  # None: no head was sent to the client
    ttft_ms: float | None  # None: no token came
    duration_ms: float
    client_request_id: str | None
