"""The tee: upstream bytes -> meter -> slot -> client.

Nothing else happens there: no task switch, no queue, no log line, no metric look-up. What was generated is counted
before it is forwarded: a killed process must not have given tokens away.

A worker with many paced streams finds little of this in the processor's caches when a chunk arrives. What a chunk costs
is then how many different functions and objects it meets, more than what they do (`python -m tests.bench.cold`): so
`_pass` does all that a plain read needs, and attributes stand in slots.
"""

from time import perf_counter

from meter_proxy.gateway.client import Client
from meter_proxy.gateway.wall import Allowance, events_in
from meter_proxy.ledger.slots import Slot
from meter_proxy.metering.meter import CodedMeter, Meter


class Tee:
    """What passes in one exchange, up to the wall. `Relay` says when, and hears what comes of it."""

    __slots__ = (
        "_allowance",
        "_client",
        "_drains_within_quota",
        "_held",
        "_input_told",
        "_is_coded",
        "_last_read",
        "_spent",
        "_to",
        "cut_by_quota",
        "first_token_at",
        "is_at_wall",
        "meter",
        "slot",
    )

    def __init__(self, slot: Slot, allowance: Allowance | None) -> None:
        self.slot = slot
        self.meter: Meter | None = None
        self.first_token_at: float | None = None
        self.is_at_wall = False  # all that is granted is delivered; `_held` is what came after
        self.cut_by_quota = False
        self._client: Client | None = None
        self._to: Client | None = None  # `_client` while it gets what comes; else that is only counted
        self._allowance = allowance
        self._spent = 0  # output tokens so far: as the upstream counts them, else one per content event
        self._held: list[bytes] = []
        self._last_read: tuple[bytes, bytes | None] | None = None  # held back: see _pass
        self._is_coded = False  # its events cannot be told apart where a read is cut
        self._input_told = False
        self._drains_within_quota = False
        if allowance is not None:
            allowance.on_change = self._on_allowance

    def _measure_with(self, meter: Meter) -> None:
        self.meter = meter
        self._is_coded = isinstance(meter, CodedMeter)

    def _pass(self, payload: bytes, framed: bytes | None) -> None:
        """Meter one read, note in the slot what it was, and only then hand it on."""
        meter = self.meter
        assert meter is not None
        out = meter.feed(payload)
        slot = self.slot
        if self.first_token_at is None or meter.finished or meter.failed:
            self._note_news(meter)
        elif not meter.has_usage:
            self._spent = slot.words[slot.counter] = meter.content_events
        elif meter.told_at == meter.content_events and not meter.done:
            words = slot.words
            words[slot.counter] = meter.content_events
            self._spent = meter.told_output
            words[slot.output] = meter.told_output + 1
        else:
            self._note(meter)
        client = self._to
        if client is None:
            return
        if meter.reads_at_end:
            # The last read of a plain answer waits until its usage is in the slot: a client that has a whole
            # answer has a whole bill. Which read is the last is known when another comes, or the end.
            before, self._last_read = self._last_read, (payload, framed)
            if before is not None:
                client.write(*before)
        elif out is payload:
            client.write(payload, framed)
        elif out:
            client.write(out, None)

    def _pass_within(self, allowance: Allowance, payload: bytes, framed: bytes | None) -> None:
        """Forward up to the event that uses up the last granted token."""
        if self.is_at_wall:
            self._held.append(payload)
            return
        if self._to is None:
            self._count_within(allowance, payload)
            return
        spent, meter = self._spent, self.meter
        assert meter is not None
        # A token takes a byte at least. Where the first content told no running usage none will, and each event is
        # one: those that end here have their `data:` here, but for the one that began before.
        room = allowance.granted - spent
        if (
            room > len(payload)
            or self._is_coded
            or (spent > 0 and not meter.has_usage and room > payload.count(b"data:") + 1)
        ):
            self._pass(payload, framed)
            if self._spent >= allowance.top_up_at and self._is_used_up(allowance):
                self._stop_at_wall(b"")
            return
        is_ours = self.cork()
        try:
            self._pass_one_by_one(allowance, payload, framed)
        finally:
            if is_ours:
                self.uncork()

    def _pass_one_by_one(self, allowance: Allowance, payload: bytes, framed: bytes | None) -> None:
        """Forward event by event; once the first content has told what events are worth, the rest as above."""
        meter, size, is_told = self.meter, len(payload), self._spent > 0
        assert meter is not None
        for start, end in events_in(payload):
            stop = end
            if not is_told and self._spent > 0:
                is_told = True
                if not meter.has_usage and allowance.granted - self._spent > payload.count(b"data:", start) + 1:
                    stop = size
            whole = stop - start == size
            self._pass(payload if whole else payload[start:stop], framed if whole else None)
            if self._spent >= allowance.top_up_at and self._is_used_up(allowance):
                self._stop_at_wall(payload[stop:])
                return
            if stop == size:
                return

    def _is_used_up(self, allowance: Allowance) -> bool:
        """See to more, where the answer needs more; whether nothing of what is granted is left."""
        meter = self.meter
        if meter is None or meter.finished or meter.done or meter.failed or meter.reads_at_end:
            return False  # it has come to its end by itself
        allowance.top_up(self._spent)
        return self._spent >= allowance.granted

    def _count_within(self, allowance: Allowance, payload: bytes) -> None:
        """Nobody gets it any more; but nobody may generate more than the quota either."""
        self._pass(payload, None)
        if not self._drains_within_quota or self._spent < allowance.top_up_at:
            return
        if self._is_used_up(allowance) and allowance.exhausted is not None:
            self._end_drain()

    def _stop_at_wall(self, rest: bytes) -> None:
        """All that is granted is delivered. Wait for more, if more may come."""
        self._held = [rest] if rest else []
        self._pause_upstream()
        self.is_at_wall = True
        if self._allowance is not None and self._allowance.exhausted is not None:
            self._cut()

    def _on_allowance(self) -> None:
        """More was granted, or there will be no more."""
        allowance = self._allowance
        if allowance is None or not self.is_at_wall or self._client is None or self.cut_by_quota:
            return
        if self._spent < allowance.granted:
            self.is_at_wall = False
            held, self._held = self._held, []
            for payload in held:
                self._pass_within(allowance, payload, None)
            if not self.is_at_wall:
                self._left_wall()
        elif allowance.exhausted is not None:
            self._cut()
        else:  # what was granted was not enough for the last event
            allowance.top_up(self._spent)
            if self._spent < allowance.granted or allowance.exhausted is not None:
                self._on_allowance()

    def _cut(self) -> None:
        self.cut_by_quota = True
        self._notify()

    def stop_delivery(self) -> None:
        """Nobody gets any more of the answer: what is held, and what still comes, is only counted."""
        self._to = None
        self.is_at_wall = False
        held, self._held = self._held, []  # what came after the wall is generated, and billed
        for payload in held:
            self._pass(payload, None)

    def _hand_out_rest(self) -> None:
        """The answer is over: what the meter, or we for its sake, held back."""
        meter, client = self.meter, self._to
        if meter is None:
            return
        # Half of a JSON document is not one that cannot be read: it has no end to be read at.
        rest = meter.finish() if self._is_whole() or not meter.reads_at_end else b""
        self._note(meter)
        if client is not None:
            if self._last_read is not None:
                client.write(*self._last_read)
            if rest:
                client.write(rest, None)

    def _note_news(self, meter: Meter) -> None:
        """Store in the slot what a read has brought."""
        if self.first_token_at is None and meter.content_events:
            self.first_token_at = perf_counter()
            self.slot.first_token(self.first_token_at)
        if meter.has_usage or meter.finished or meter.failed:
            self._note(meter)
        else:
            slot = self.slot
            self._spent = slot.words[slot.counter] = meter.content_events

    def _note(self, meter: Meter) -> None:
        """Store everything that the meter knows in the slot."""
        reading = meter.usage_so_far()
        self._spent = reading.usage.output_tokens or 0
        if not self._input_told and self._allowance is not None and reading.usage.input_tokens is not None:
            self._input_told = True
            self._allowance.input_is(reading.usage.input_tokens)
        self.slot.note(
            reading,
            content_events=meter.content_events,
            finished=meter.finished,
            done=meter.done,
            failed=meter.failed,
        )

    # Who hears what comes of it.

    def cork(self) -> bool:
        """What is written now may go out as one, at `uncork`; False where that is so already."""
        raise NotImplementedError

    def uncork(self) -> None:
        """Send what was gathered."""
        raise NotImplementedError

    def _is_whole(self) -> bool:
        """Whether the upstream's answer has ended."""
        raise NotImplementedError

    def _notify(self) -> None:
        """Something happened that the exchange waits for."""
        raise NotImplementedError

    def _pause_upstream(self) -> None:
        """Let nothing more come for now."""
        raise NotImplementedError

    def _left_wall(self) -> None:
        """There is room again: what was paused for its want goes on."""
        raise NotImplementedError

    def _end_drain(self) -> None:
        """What still comes need not be waited for."""
        raise NotImplementedError
