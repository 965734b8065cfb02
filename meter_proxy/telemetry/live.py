"""What is going on now: the exchanges in flight, and how much came in and went out in the last seconds.

Exchanges are read from the workers' tables of slots, which they keep anyway (`ledger/slots.py`): it costs them nothing,
and nobody but who asks. What was counted so far is what would be billed if the exchange ended now.

Rates count a request and its input at its admission, and spread its output evenly over the time in which it came: of
one that lasts a minute, a sixth of what it has sent belongs to the last ten seconds.
"""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from meter_proxy.ledger.admission import Admission, read_admission
from meter_proxy.ledger.journal import SettledRecord, instant
from meter_proxy.ledger.slots import Progress, read_some
from meter_proxy.tasks import slices, sort
from meter_proxy.usage import Outcome

WINDOW_S = 10
SLICE = 128  # slots before the loop gets its turn: at most 2 ms


class LiveExchange(NamedTuple):
    """An exchange in flight. Instants are Unix seconds, by the clock that admissions follow."""

    admission: Admission
    admitted_at: float
    first_token_at: float | None
    input_tokens: int
    output_tokens: int

    def shown(self, now: float) -> dict[str, str | int | bool]:
        """As `/api/live` shows it."""
        admission = self.admission
        return {
            "id": admission.id,
            "key": admission.key,
            "account": admission.account,
            "model": admission.model,
            "operation": admission.operation.value,
            "stream": admission.stream,
            "started": admission.time,
            "duration_ms": max(0, round((now - self.admitted_at) * 1000)),
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }


async def in_flight(directories: Iterable[Path]) -> list[LiveExchange]:
    """All exchanges of the workers with these directories, oldest first."""
    found: list[LiveExchange] = []
    for directory in directories:
        place, is_more = 0, True
        while is_more:
            some, is_more = read_some(directory, place, SLICE)
            found += [exchange for exchange in map(_exchange, some) if exchange is not None]
            place += SLICE
            await asyncio.sleep(0)
    order = await sort((exchange.admitted_at, number) for number, exchange in enumerate(found))
    return [found[number] for _, number in order]


def _exchange(progress: Progress) -> LiveExchange | None:
    try:
        admission = read_admission(progress.text)
        admitted_at = instant(admission.time)
    except ValueError:
        return None  # its slot went to another one while it was read
    bill = admission.bill(progress.reading, Outcome.CRASHED, reached_upstream=progress.reached_upstream)
    return LiveExchange(
        admission,
        admitted_at,
        None if progress.ttft_us is None else admitted_at + progress.ttft_us / 1e6,
        bill.usage.input_tokens or 0,
        bill.usage.output_tokens or 0,
    )


class Flow:
    """Requests and tokens by the second, as far back as `WINDOW_S`."""

    def __init__(self) -> None:
        self._seconds: dict[int, list[float]] = {}  # Unix second -> requests, input and output tokens in it

    def settled(self, record: SettledRecord, now: float) -> None:
        """Count an exchange that was settled just now. Records tell how long it took: clocks need not agree."""
        began_at = now - record.duration_ms / 1000
        tokens_from = began_at + (record.ttft_ms or 0.0) / 1000
        self._add(began_at, min(tokens_from, now), now, record.input_tokens, record.output_tokens)

    def _add(self, began_at: float, tokens_from: float, now: float, input_tokens: int, output_tokens: int) -> None:
        oldest = int(now) - WINDOW_S
        if began_at >= oldest:  # else nobody asks for that second any more
            second = self._second(int(began_at))
            second[0] += 1
            second[1] += input_tokens
        length_s = now - tokens_from
        for number in range(max(int(tokens_from), oldest), int(now) + 1):
            share = (min(number + 1, now) - max(number, tokens_from)) / length_s if length_s > 0 else 1.0
            self._second(number)[2] += output_tokens * share

    def _second(self, number: int) -> list[float]:
        second = self._seconds.get(number)
        if second is None:
            for old in [old for old in self._seconds if old < number - 2 * WINDOW_S]:
                del self._seconds[old]
            second = self._seconds[number] = [0.0, 0.0, 0.0]
        return second

    async def rates(self, exchanges: Iterable[LiveExchange], now: float) -> dict[str, float]:
        """Per second, over the last `WINDOW_S`, with what `exchanges` in flight have had so far."""
        flow = Flow()
        flow._seconds = {number: list(amounts) for number, amounts in self._seconds.items()}
        async for part in slices(exchanges, SLICE):
            for one in part:
                began_at = min(one.admitted_at, now)
                tokens_from = min(one.first_token_at or began_at, now)
                flow._add(began_at, tokens_from, now, one.input_tokens, one.output_tokens)
        last = int(now)
        seconds = [flow._seconds.get(number, (0.0, 0.0, 0.0)) for number in range(last - WINDOW_S + 1, last + 1)]
        length_s = WINDOW_S - 1 + now - last  # the present second is not over
        requests, inputs, outputs = (round(sum(column) / length_s, 3) for column in zip(*seconds, strict=True))
        return {"requests_per_s": requests, "input_tokens_per_s": inputs, "output_tokens_per_s": outputs}
