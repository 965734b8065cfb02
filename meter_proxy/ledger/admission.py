"""What is known of an exchange when it is admitted, by value: enough to write its record whatever happens then."""

from typing import Any

import msgspec

from meter_proxy.ledger.slots import TEXT_BYTES
from meter_proxy.metering.billing import NOTHING, Bill, bill
from meter_proxy.metering.pricing import TokenPrice, cost_nano_usd
from meter_proxy.metering.tally import Reading
from meter_proxy.quota.charge import Charge
from meter_proxy.usage import Operation, Outcome, UsageRecord

MAX_NAME_CHARS = 200  # in a slot; a longer model name is cut there, and only there


class Admission(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The part of a record that no answer changes, and what its bill needs."""

    id: str
    time: str
    key: str
    account: str
    model: str
    upstream_model: str
    upstream: str
    operation: Operation
    stream: bool
    input_text_bytes: int
    prompt_always: bool = False
    price: TokenPrice | None = None
    client_request_id: str | None = None
    charges: tuple[Charge, ...] = ()  # the quota counters that it belongs to

    def bill(self, reading: Reading, outcome: Outcome, *, reached_upstream: bool) -> Bill:
        """What is billed if this exchange ends so; nothing where no byte of it reached an upstream."""
        if not reached_upstream:
            return NOTHING
        return bill(reading, outcome, input_text_bytes=self.input_text_bytes, prompt_always=self.prompt_always)

    def record(
        self,
        billed: Bill,
        *,
        outcome: Outcome,
        status: int | None,
        response_model: str | None,
        ttft_ms: float | None,
        duration_ms: float,
    ) -> UsageRecord:
        """The record of this exchange, billed so and ended so."""
        usage = billed.usage
        return UsageRecord(  # in the order of its fields: naming 22 of them takes 1.5 us
            self.id,
            self.time,
            self.key,
            self.account,
            self.model,
            self.upstream_model,
            response_model,
            self.upstream,
            self.operation,
            self.stream,
            usage.input_tokens or 0,
            usage.cached_input_tokens,
            usage.output_tokens or 0,
            usage.reasoning_tokens,
            cost_nano_usd(usage, self.price) if self.price is not None else 0,
            billed.input_basis,
            billed.basis,
            outcome,
            status,
            ttft_ms,
            duration_ms,
            self.client_request_id,
        )

    def slot_text(self) -> bytes:
        """This as JSON that fits into a slot; names that callers made too long are cut."""
        text = _encode(self)
        if len(text) <= TEXT_BYTES:
            return text
        shorter: dict[str, Any] = {"client_request_id": None}
        for name in ("model", "upstream_model"):
            shorter[name] = getattr(self, name).encode("ascii", "replace").decode()[:MAX_NAME_CHARS]
        return _encode(msgspec.structs.replace(self, **shorter))


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Admission).decode


def read_admission(text: bytes) -> Admission:
    """What `slot_text` wrote. Raises `ValueError` for anything else."""
    return _decode(text)
