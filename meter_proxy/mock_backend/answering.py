"""One answer as it is generated: at its pace, with the faults asked for, until done or hung up.

The order at each step is: wait, look whether the client is still there, generate, write. Nothing else
runs between the look and the write, so what the truth counts is exactly what was handed to the socket.
"""

import asyncio
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Iterator

from aiohttp import web

from meter_proxy.mock_backend import wire
from meter_proxy.mock_backend.asked import Asked, FaultKind
from meter_proxy.mock_backend.dialects import Dialect, FinalUsage, RunningCount
from meter_proxy.mock_backend.plan import Kind, Step
from meter_proxy.mock_backend.truth import Truth


class HungUp(Exception):
    """The client closed or half-closed its connection: nothing more is generated."""


class Answering:
    """Generates one answer and keeps its truth. `rate` is in tokens per second, 0 for no limit."""

    def __init__(
        self, request: web.Request, asked: Asked, steps: Iterator[Step], truth: Truth, dialect: Dialect, rate: float
    ) -> None:
        self._request = request
        self._asked = asked
        self._steps = steps
        self._truth = truth
        self._dialect = dialect
        self._rate = rate
        self._tokens: Counter[int] = Counter()  # per choice
        self._reasoning_tokens: Counter[int] = Counter()
        self._response: web.StreamResponse
        self._gzip = zlib.compressobj(wbits=31) if dialect.compresses else None
        self._started_at = asyncio.get_running_loop().time()

    async def whole(self) -> web.StreamResponse:
        """A plain answer: everything is generated first, then written at once. Raises HungUp, ConnectionError."""
        steps = []
        for step in self._steps:
            await self._generate(step)
            steps.append(step)
        counts = None if self._dialect.final_usage is FinalUsage.NEVER else self._usage(range(self._asked.choices))
        body = wire.whole_answer(self._asked, self._truth.id, steps, counts)
        response = web.StreamResponse(headers={"X-Request-Id": self._truth.id, "Content-Type": "application/json"})
        if self._gzip is not None:
            body = self._gzip.compress(body) + self._gzip.flush()
            response.headers["Content-Encoding"] = "gzip"
        response.content_length = len(body)
        await response.prepare(self._request)
        await response.write(body)
        await response.write_eof()
        self._truth.finished = True
        return response

    async def stream(self) -> web.StreamResponse:
        """A stream, event by event, up to its end or the fault asked for. Raises HungUp, ConnectionError."""
        self._response = response = web.StreamResponse(
            headers={"X-Request-Id": self._truth.id, "Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        if self._gzip is not None:
            response.headers["Content-Encoding"] = "gzip"
        await response.prepare(self._request)
        if self._asked.operation == "chat":
            for choice in range(self._asked.choices):
                await self._send(self._chunk(wire.role_choice(choice), self._running(choice)))
        for step in self._steps:
            if self._fault_is_due():
                return await self._break()
            await self._generate(step)
            self._truth.content_events += 1
            await self._send(self._chunk(wire.step_choice(self._asked, step), self._running(step.choice)))
        if self._fault_is_due():
            return await self._break()
        await self._finish()
        if self._gzip is not None:
            await response.write(self._gzip.flush())
        await response.write_eof()
        return response

    async def _generate(self, step: Step) -> None:
        """Wait for the step's time, then count it as generated. Raises HungUp instead if nobody wants it."""
        loop = asyncio.get_running_loop()
        due_at = self._started_at
        if self._rate:
            due_at += (self._truth.generated_tokens + step.tokens) / self._rate
        await asyncio.sleep(max(0.0, due_at - loop.time()))  # at least once around the loop: it may bring a FIN
        if self._request.transport is None or self._request.transport.is_closing():
            raise HungUp
        self._truth.generated_tokens += step.tokens
        self._tokens[step.choice] += step.tokens
        if step.kind is Kind.REASONING:
            self._reasoning_tokens[step.choice] += step.tokens

    async def _finish(self) -> None:
        """The finish of each choice, the usage where the dialect has it, and [DONE]."""
        asked, dialect = self._asked, self._dialect
        for choice in range(asked.choices):
            is_last = choice == asked.choices - 1
            members = self._running(choice)
            if dialect.final_usage is FinalUsage.WITH_FINISH and is_last:
                members = {"usage": self._usage(range(asked.choices))}
            await self._send(self._chunk(wire.finish_choice(asked, choice), members))
        self._truth.finished = True
        if dialect.final_usage is FinalUsage.IF_ASKED and asked.include_usage:
            each = [[choice] for choice in range(asked.choices)]
            for choices in each if dialect.usage_per_choice else [list(range(asked.choices))]:
                await self._send(wire.chunk(asked, self._truth.id, [], {"usage": self._usage(choices)}))
        await self._send(wire.DONE)

    def _chunk(self, choice: dict[str, object], members: dict[str, object]) -> bytes:
        return wire.chunk(self._asked, self._truth.id, [choice], members)

    def _running(self, choice: int) -> dict[str, object]:
        """The members that tell the count so far of one choice, as this dialect does if asked."""
        asked, dialect = self._asked, self._dialect
        if dialect.running_count is RunningCount.USAGE and asked.continuous_usage_stats:
            return {"usage": wire.usage(self._prompt_tokens(choice), self._tokens[choice])}
        if dialect.running_count is RunningCount.TIMINGS and asked.timings_per_token and self._tokens[choice]:
            return {"timings": wire.timings(self._prompt_tokens(choice), self._tokens[choice])}
        if dialect.null_usage and asked.include_usage:
            return {"usage": None}
        return {}

    def _usage(self, choices: range | list[int]) -> dict[str, object]:
        """The usage of these choices; a prompt with several choices was read once."""
        prompts = {choice // self._asked.choices_per_prompt for choice in choices}
        prompt_tokens = sum(self._asked.prompt_tokens[prompt] for prompt in prompts)
        output_tokens = sum(self._tokens[choice] for choice in choices)
        reasoning_tokens = sum(self._reasoning_tokens[choice] for choice in choices)
        return wire.usage(prompt_tokens, output_tokens, reasoning_tokens, min(self._asked.cached_tokens, prompt_tokens))

    def _prompt_tokens(self, choice: int) -> int:
        return self._asked.prompt_tokens[choice // self._asked.choices_per_prompt]

    async def _send(self, event: bytes) -> None:
        """Write one event, in an HTTP chunk of its own. Raises ConnectionError when the client is gone."""
        if self._gzip is not None:
            event = self._gzip.compress(event) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
        self._truth.sent_events += 1
        await self._response.write(event)

    def _fault_is_due(self) -> bool:
        fault = self._asked.fault
        return fault is not None and fault.after_events == self._truth.content_events

    async def _break(self) -> web.StreamResponse:
        """Do the harm asked for. aiohttp gets the response back and finds its connection as the fault left it."""
        assert self._asked.fault is not None
        transport = self._request.transport
        if transport is None:
            raise HungUp
        match self._asked.fault.kind:
            case FaultKind.STALL:
                await asyncio.Event().wait()  # until the client hangs up, which cancels this handler
            case FaultKind.ERROR:
                await self._send(wire.event(wire.error("The mock was asked to fail here.", "server_error", code=500)))
                await self._response.write_eof()
            case FaultKind.RESET:
                linger = struct.pack("ii", 1, 0)  # closing then sends RST, and drops what is not sent yet
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                transport.abort()
            case FaultKind.CLOSE:
                transport.close()
        return self._response
