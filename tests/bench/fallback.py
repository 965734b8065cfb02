"""The mock upstream and the load generator in Python, for machines without a C compiler.

    python -m tests.bench.fallback mock PORT
    python -m tests.bench.fallback load --port PORT --model MODEL ...

Same options, same behaviour and same output as native/mock.c and native/load.c, which say what they mean. Slower: at
full speed one measures this program. What they count must agree: tests/bench/test_generator.py compares them.
"""

import argparse
import asyncio
import json
import random
import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.rig import cpu_s

INPUT_TOKENS, PLAIN_OUTPUT_TOKENS = 42, 21
MAX_PENDING, MAX_ERRORS = 64, 1000
DRAIN_S, FINISH_EVERY_S = 20.0, 0.2
MARK = re.compile(rb"~T([0-9a-f]{16})")


# -- The mock ---------------------------------------------------------------------------------------------------------


class Mock:
    """What was generated, and the streams that are on."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(
            ("requests", "streams", "plain", "input_tokens", "output_tokens", "hang_ups", "hung_up_events"), 0
        )
        self.streams: set[MockConnection] = set()

    def answered(self, kind: str, output_tokens: int) -> None:
        """An answer was written to its end."""
        self.counts[kind] += 1
        self.counts["input_tokens"] += INPUT_TOKENS
        self.counts["output_tokens"] += output_tokens

    def finish_streams(self) -> None:
        """All open streams end now."""
        for connection in list(self.streams):
            connection.end_stream()


class MockConnection(asyncio.Protocol):
    """One client. A half-close is a hang-up."""

    def __init__(self, mock: Mock) -> None:
        self._mock = mock
        self._received = bytearray()
        self._is_writable = True
        self._turn: asyncio.TimerHandle | asyncio.Handle | None = None
        self._keeps_alive = self._asked_for_usage = False
        self._model, self._sent, self._events, self._joined, self._pause_s = "", 0, 0, 1, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._mock.streams:
            self._leave_stream()
            self._mock.counts["hang_ups"] += 1
            self._mock.counts["hung_up_events"] += self._sent

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        if self in self._mock.streams and self._turn is None:
            self._wait_for_turn()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while self not in self._mock.streams and self._answer_one():
            pass

    def _answer_one(self) -> bool:
        """Answer the first request, if it is whole."""
        head, end, rest = bytes(self._received).partition(b"\r\n\r\n")
        fields = head.lower()
        length = re.search(rb"\r\ncontent-length: *(\d+)", fields)
        if not end:
            return False
        if b"\r\ntransfer-encoding: chunked" in fields:
            last = re.search(rb"(^|\r\n)0\r\n\r\n", rest)
            if not last:
                return False
            body_length = last.end()
        else:
            body_length = int(length[1]) if length else 0
        if len(rest) < body_length:
            return False
        del self._received[: len(head) + 4 + body_length]
        self._keeps_alive = b"\r\nconnection: close" not in fields
        self._answer(head, rest[:body_length])
        return True

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET /-/finish "):
            self._mock.finish_streams()
            self._send_json(b"200 OK", b"{}")
        elif head.startswith(b"GET /-/counts "):
            self._send_json(b"200 OK", json.dumps(self._mock.counts).encode())
        elif head.startswith(b"GET "):
            self._send_json(b"404 Not Found", b'{"error":{"message":"not here"}}')
        else:
            self._mock.counts["requests"] += 1
            model = re.search(rb'"model" *: *"([^"]*)"', body)
            self._model = model[1].decode() if model else ""
            if re.search(rb'"stream" *: *true', body):
                self._asked_for_usage = re.search(rb'"include_usage" *: *true', body) is not None
                self._asked_for_running_usage = re.search(rb'"continuous_usage_stats" *: *true', body) is not None
                self._start_stream()
            else:
                self._mock.answered("plain", PLAIN_OUTPUT_TOKENS)
                self._send_json(b"200 OK", self._plain_answer())

    def _plain_answer(self) -> bytes:
        message = {"role": "assistant", "content": "The quick brown fox jumps over the lazy dog. " * 2, "refusal": None}
        answer = {
            **self._head_members("chat.completion"),
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": _usage(PLAIN_OUTPUT_TOKENS),
        }
        return json.dumps(answer, separators=(",", ":")).encode()

    def _send_json(self, status: bytes, body: bytes) -> None:
        close = b"" if self._keeps_alive else b"connection: close\r\n"
        head = b"HTTP/1.1 %b\r\nserver: mock\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n"
        self._transport.write(head % (status, len(body), close) + body)
        if not self._keeps_alive:
            self._transport.close()

    def _start_stream(self) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        self._events, self._pause_s = self._shape("n", 100), self._shape("d", 0) / 1000
        self._joined, self._sent = self._shape("j", 1), 0
        self._mock.streams.add(self)
        self._step()

    def _shape(self, letter: str, otherwise: int) -> int:
        found = re.search(rf"-{letter}(\d+)", self._model)
        return int(found[1]) if found else otherwise

    def _step(self) -> None:
        self._turn = None
        if self._sent == self._events:
            self.end_stream()
            return
        some = min(self._joined, self._events - self._sent)
        events = []
        for _ in range(some):
            self._sent += 1
            delta = {"content": f" ~T{time.monotonic_ns():016x}"}
            events.append(self._choice_event(delta, self._sent))
        self._transport.write(b"".join(events))
        if self._is_writable and not self._transport.is_closing():
            self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        loop = asyncio.get_running_loop()
        if self._pause_s:
            self._turn = loop.call_later(self._pause_s * random.uniform(0.5, 1.5), self._step)
        else:
            self._turn = loop.call_soon(self._step)

    def end_stream(self) -> None:
        """Finish, usage, [DONE], and the end of the body."""
        self._leave_stream()
        self._transport.write(self._choice_event({}, self._sent, finish_reason="stop"))
        if self._asked_for_usage:
            self._transport.write(self._event([], usage=_usage(self._sent)))
        self._transport.write(_chunk(b"data: [DONE]\n\n"))
        self._transport.write(b"0\r\n\r\n")
        self._mock.answered("streams", self._sent)
        if not self._keeps_alive:
            self._transport.close()
        elif self._received:
            self.data_received(b"")

    def _leave_stream(self) -> None:
        self._mock.streams.discard(self)
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _choice_event(self, delta: dict[str, str], output_tokens: int, finish_reason: str | None = None) -> bytes:
        running = {"usage": _usage(output_tokens)} if self._asked_for_running_usage else {}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._event([choice], **running)

    def _event(self, choices: list[dict[str, Any]], **members: Any) -> bytes:
        event = {**self._head_members("chat.completion.chunk"), "choices": choices, **members}
        return _chunk(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")

    def _head_members(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-7Qk2mZr0vXxJ", "object": kind, "created": 1700000000, "model": self._model}


def _usage(output_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": output_tokens,
        "total_tokens": INPUT_TOKENS + output_tokens,
    }


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve_mock(port: int) -> None:
    """Until it is killed."""
    mock = Mock()
    server = await asyncio.get_running_loop().create_server(
        lambda: MockConnection(mock), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


# -- The load generator -----------------------------------------------------------------------------------------------


class Load:
    """One run; `Client`s report to it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.set = options
        self.phase = "warm-up"  # then "window", then "drain"
        self.pending = 0
        self.request = self._request()
        self.times: dict[str, list[float]] = {"first_event_us": [], "event_us": [], "answer_us": []}
        self.window = dict.fromkeys(("requests", "events", "bytes", "hang_ups", "late"), 0)
        self.total = dict.fromkeys(
            ("requests", "dones", "finished_events", "errors", "not_200", "last_not_200", "without_done", "hang_ups"), 0
        )
        self.total["connections"] = 0
        self.clients = [Client(self) for _ in range(options.connections)]

    def _request(self) -> bytes:
        set_ = self.set
        body = b"" if set_.get else self._body().encode()
        close = "close" if set_.reconnect else "keep-alive"
        head = (
            f"{'GET' if set_.get else 'POST'} {set_.path} HTTP/1.1\r\nHost: 127.0.0.1:{set_.port}\r\n"
            f"Accept-Encoding: identity\r\nConnection: {close}\r\nAccept: application/json\r\n"
            "User-Agent: OpenAI/Python 2.8.0\r\nX-Stainless-Lang: python\r\nX-Stainless-Package-Version: 2.8.0\r\n"
            f"X-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nAuthorization: Bearer {set_.key}\r\n"
        )
        if not set_.get:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + body

    def _body(self) -> str:
        content: Any = "tell me a long story " * max(0, (self.set.body_bytes - 150) // 21)
        if self.set.body_bytes > 100_000:
            url = "data:image/png;base64," + "ABCD" * (self.set.body_bytes // 4)
            content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
        messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": content}]
        body: dict[str, Any] = {
            "model": self.set.model,
            "messages": messages,
            "temperature": 0.7,
            "max_tokens": 4096,
        }
        if self.set.stream:
            body["stream"] = True
            if not self.set.ask_no_usage:
                body["stream_options"] = {"include_usage": True}
        return json.dumps(body, separators=(",", ":"))

    @property
    def replaces(self) -> bool:
        """Whether a client asks again when its answer has ended."""
        return self.phase != "drain" and not self.set.rate and not self.set.hold

    def note(self, name: str, seconds: float) -> None:
        if self.phase == "window":
            self.times[name].append(seconds * 1e6)

    def count(self, name: str, amount: int = 1) -> None:
        if self.phase == "window":
            self.window[name] += amount

    async def run(self) -> dict[str, Any]:
        """Warm up, measure, drain: the figures."""
        rss_before = self._rss_kib()
        asking = asyncio.create_task(self._ask_at_a_rate() if self.set.rate else self._start_all())
        if self.set.hold:
            await self._until(lambda: asking.done() and not self.pending, self.set.ramp_limit)
        await asyncio.sleep(self.set.warm_up)
        own_before, cpu_before, opened_at = time.process_time(), cpu_s(self.set.pids), time.monotonic()
        self.phase = "window"
        await asyncio.sleep(self.set.seconds)
        self.phase = "drain"
        window_s, cpu_after = time.monotonic() - opened_at, cpu_s(self.set.pids)
        figures = {
            "window_s": window_s,
            **self.window,
            "cpu_s": cpu_after - cpu_before,
            "load_cpu_s": time.process_time() - own_before,
            "rss_before_kib": rss_before,
            "rss_kib": self._rss_kib(),
            "open": sum(client.is_busy and client.events > 0 for client in self.clients),
            **{name: _quantiles(times) for name, times in self.times.items()},
        }
        asking.cancel()
        await self._drain()
        unfinished = sum(client.is_busy for client in self.clients)
        return {**figures, "total": {**self.total, "unfinished": unfinished}}

    def _rss_kib(self) -> int:
        lines = [line for pid in self.set.pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    async def _start_all(self) -> None:
        for client in self.clients:
            while self.pending >= MAX_PENDING:
                await asyncio.sleep(0.001)
            client.ask(time.monotonic())
        await asyncio.sleep(0)

    async def _ask_at_a_rate(self) -> None:
        due_at, turn = time.monotonic(), 0
        while True:
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
            while all(client.is_busy for client in self.clients):
                self.count("late")
                await asyncio.sleep(0.0002)
            while True:
                turn = (turn + 1) % len(self.clients)
                if not self.clients[turn].is_busy:
                    break
            self.clients[turn].ask(due_at)
            due_at += 1 / self.set.rate

    async def _drain(self) -> None:
        until = time.monotonic() + DRAIN_S
        while any(client.is_busy for client in self.clients) and time.monotonic() < until:
            if self.set.mock_port:
                _, writer = await asyncio.open_connection("127.0.0.1", self.set.mock_port)
                writer.write(b"GET /-/finish HTTP/1.1\r\nHost: mock\r\nConnection: close\r\n\r\n")
                await asyncio.sleep(FINISH_EVERY_S)
                writer.close()
            else:
                await asyncio.sleep(FINISH_EVERY_S)

    async def _until(self, condition: Callable[[], bool], within_s: float) -> None:
        until = time.monotonic() + within_s
        while not condition() and time.monotonic() < until:
            await asyncio.sleep(0.01)


class Client(asyncio.Protocol):
    """One connection at a time, one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[object] | None = None
        self.is_busy = False
        self.events = 0

    def ask(self, due_at: float) -> None:
        """Send the request, on a new connection if there is none."""
        self._asked_at, self.is_busy, self.events, self._is_done = due_at, True, 0, False
        self._head, self._rest, self._text, self._left = b"", b"", b"", 0
        self._load.pending += 1
        if self._transport is not None:
            self._transport.write(self._load.request)
        else:
            self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        source = None
        if self._load.set.sources > 1:
            source = (f"127.0.0.{1 + self._load.total['connections'] % self._load.set.sources}", 0)
        self._load.total["connections"] += 1
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self, "127.0.0.1", self._load.set.port, local_addr=source
            )
        except OSError:
            self._fail()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        if not self.is_busy:
            return
        now = time.monotonic()
        self._load.count("bytes", len(data))
        if not self._head:
            self._rest += data
            head, end, rest = self._rest.partition(b"\r\n\r\n")
            if not end:
                return
            self._read_head(head.lower())
            data, self._rest = rest, b""
        if self._read_body(data, now):
            self._complete(now)

    def _read_head(self, head: bytes) -> None:
        self._head = head
        self._status = int(head[9:12])
        self._is_chunked = b"\r\ntransfer-encoding: chunked" in head
        self._closes = b"\r\nconnection: close" in head
        length = re.search(rb"\r\ncontent-length: *(\d+)", head)
        self._left = -1 if self._is_chunked or not length else int(length[1])

    def _read_body(self, data: bytes, now: float) -> bool:
        """Whether the body has ended. Chunks may be cut anywhere. False, too, when we hung up."""
        if not self._is_chunked:
            if self._read_text(data, now):
                return False
            if self._left >= 0:
                self._left -= len(data)
            return self._left == 0
        data = self._rest + data
        at = 0
        while (line_end := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:line_end].split(b";")[0], 16)
            end = line_end + 2 + size + 2
            if len(data) < end:
                break
            if self._read_text(data[line_end + 2 : end - 2], now):
                return False
            at = end
            if size == 0:  # nothing here sends trailers
                return True
        self._rest = data[at:]
        return False

    def _read_text(self, data: bytes, now: float) -> bool:
        """Count the marks; they may be cut, too. Whether we hung up at one."""
        text = self._text + data
        end = 0
        for mark in MARK.finditer(text):
            end = mark.end()
            if self._on_event(now, int(mark[1], 16) / 1e9):
                return True
        self._is_done = self._is_done or b"[DONE]" in text[end:]
        self._text = text[max(end, len(text) - 17) :]
        return False

    def _on_event(self, now: float, made_at: float) -> bool:
        """Whether it was the last before the hang-up."""
        load = self._load
        self.events += 1
        if self.events == 1:
            load.pending -= 1
            load.note("first_event_us", now - self._asked_at)
        load.count("events")
        load.note("event_us", now - made_at)
        if load.phase == "drain" or self.events != load.set.hang_up_after:
            return False
        load.total["hang_ups"] += 1
        load.count("hang_ups")
        self._close()
        self._end(now)
        return True

    def _complete(self, now: float) -> None:
        load = self._load
        if not self.events:
            load.pending -= 1
        if self._status != 200:
            load.total["not_200"] += 1
            load.total["last_not_200"] = self._status
            _give_up_if(load.total["not_200"] > MAX_ERRORS, f"too many answers with status {self._status}")
        else:
            load.total["requests"] += 1
            load.total["dones"] += self._is_done
            load.total["finished_events"] += self.events
            load.total["without_done"] += load.set.stream and not self._is_done
            load.count("requests")
            load.note("answer_us", now - self._asked_at)
        if self._closes or load.set.reconnect:
            self._close()
        self._end(now)

    def connection_lost(self, exc: Exception | None) -> None:
        was_ours, self._transport = self._transport is not None, None
        if was_ours and self.is_busy:
            if self._head and not self._is_chunked and self._left < 0:
                self._complete(time.monotonic())
            else:
                self._fail()

    def _fail(self) -> None:
        if not self.events:
            self._load.pending -= 1
        self._load.total["errors"] += 1
        _give_up_if(self._load.total["errors"] > MAX_ERRORS, "too many errors")
        self._end(time.monotonic())

    def _close(self) -> None:
        """Our doing: `connection_lost` is then no news, and the next connection is another protocol's matter."""
        if self._transport is not None:
            self._transport.set_protocol(asyncio.Protocol())
            self._transport.close()
            self._transport = None

    def _end(self, now: float) -> None:
        self.is_busy = False
        if self._load.replaces:
            self.ask(now)


def _give_up_if(is_hopeless: bool, why: str) -> None:
    if is_hopeless:
        print(f"load: {why}", file=sys.stderr)
        sys.stderr.flush()
        raise SystemExit(1)


def _quantiles(times: list[float]) -> dict[str, float] | None:
    if not times:
        return None
    times.sort()
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    quantiles = {name: times[int(part * len(times))] for name, part in at.items()}
    return {"count": len(times), **quantiles, "max": times[-1]}


def _load_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fallback load")
    for name, default in (("port", 0), ("mock-port", 0), ("connections", 16), ("hang-up-after", 0), ("sources", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, seconds in (("seconds", 3.0), ("warm-up", 0.5), ("rate", 0.0), ("ramp-limit", 20.0)):
        parser.add_argument(f"--{name}", type=float, default=seconds)
    for name, text in (("path", "/v1/chat/completions"), ("model", "m"), ("key", "none")):
        parser.add_argument(f"--{name}", default=text)
    for name in ("stream", "ask-no-usage", "get", "reconnect", "hold"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--body-bytes", type=int, default=500)
    parser.add_argument("--pids", type=lambda text: [int(pid) for pid in text.split(",")], default=[])
    return parser.parse_args(arguments)


def main() -> int:
    program, *arguments = sys.argv[1:] or [""]
    if program == "mock" and len(arguments) == 1:
        asyncio.run(serve_mock(int(arguments[0])))
        return 0
    if program == "load":
        print(json.dumps(asyncio.run(_run(_load_options(arguments)))))
        return 0
    print(__doc__)
    return 2


async def _run(options: argparse.Namespace) -> dict[str, Any]:
    return await Load(options).run()


if __name__ == "__main__":
    sys.exit(main())
