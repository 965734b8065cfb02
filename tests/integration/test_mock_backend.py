"""The mock backend plays real servers well enough for real clients, and tells the truth about it."""

import asyncio
import json
import re
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from meter_proxy.errors import CannotStart
from meter_proxy.mock_backend import MockBackend, Truth, TruthFile
from tests.support.httpraw import RawClient, RawResponse
from tests.support.proc import Command, run_command
from tests.support.servers import free_port
from tests.support.waiting import until
from tests.support.wire import BrokenOff, split_events

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "mock-small", "messages": [{"role": "user", "content": "one two three"}]}
STREAM = {**ASK, "stream": True, "max_tokens": 12}
ASKED_FOR_USAGE = {**STREAM, "stream_options": {"include_usage": True}}
RUNNING = {**STREAM, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
PROMPT_TOKENS = 4


class Witnessed(MockBackend):
    """A mock that keeps the truths it told."""

    def __init__(self, **settings: Any) -> None:
        self.truths: list[Truth] = []
        super().__init__(witness=self.truths.append, **settings)

    async def truth(self) -> Truth:
        """The one truth of a test with one request."""
        await until(lambda: self.truths, "the truth")
        assert len(self.truths) == 1
        return self.truths[0]


@asynccontextmanager
async def answer(
    backend: MockBackend, body: dict[str, Any], path: str = CHAT, **headers: str
) -> AsyncIterator[tuple[RawClient, RawResponse]]:
    """Send one request to `backend`. Headers are given with `_` for `-`."""
    lines = [(name.replace("_", "-"), value) for name, value in headers.items()]
    async with await RawClient.connect(backend.url) as client:
        yield client, await client.request("POST", path, body, headers=lines)


def parsed(payload: bytes) -> list[dict[str, Any]]:
    """The JSON of all events but [DONE]."""
    events = [event.removeprefix(b"data: ").strip() for event in split_events(payload)]
    return [json.loads(event) for event in events if event != b"[DONE]"]


def usages(payload: bytes) -> list[Any]:
    """The `usage` members of a stream in order, absent ones left out."""
    return [event["usage"] for event in parsed(payload) if "usage" in event]


def wire_usage(output_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": output_tokens,
        "total_tokens": PROMPT_TOKENS + output_tokens,
    }


async def test_openai_stream_has_role_text_finish_usage_and_done() -> None:
    """The order of a real stream; `usage: null` before, the usage in an event without choices."""
    async with Witnessed() as backend, answer(backend, ASKED_FOR_USAGE, x_request_id="abc") as (_, response):
        payload = await response.read()
        events = parsed(payload)
        assert payload.endswith(b"data: [DONE]\n\n")
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert events[-2]["choices"][0]["finish_reason"] == "length"
        assert usages(payload) == [None] * (len(events) - 1) + [wire_usage(12)]
        assert events[-1]["choices"] == []
        assert await backend.truth() == Truth(
            id=response.headers["x-request-id"],
            client_request_id="abc",
            model="mock-small",
            stream=True,
            operation="chat",
            prompt_tokens=PROMPT_TOKENS,
            generated_tokens=12,
            sent_events=len(events) + 1,
            content_events=len(events) - 3,
            finished=True,
            cancelled=False,
        )


@pytest.mark.parametrize(
    ("dialect", "body", "expected"),
    [
        ("openai", STREAM, []),
        ("vllm", STREAM, []),
        ("vllm", ASKED_FOR_USAGE, [12]),
        ("ollama", ASKED_FOR_USAGE, [12]),
        ("no-usage", ASKED_FOR_USAGE, []),
        ("mistral", STREAM, [12]),
        ("llamacpp", ASKED_FOR_USAGE, [12]),
    ],
)
async def test_each_dialect_puts_usage_where_it_does(dialect: str, body: dict[str, Any], expected: list[int]) -> None:
    """If asked, always, or never."""
    async with MockBackend(dialect=dialect) as backend, answer(backend, body) as (_, response):
        assert usages(await response.read()) == [wire_usage(tokens) for tokens in expected]


async def test_deepseek_has_its_usage_beside_the_finish() -> None:
    """In the event with the finish reason, asked for or not."""
    async with MockBackend(dialect="deepseek") as backend, answer(backend, STREAM) as (_, response):
        last = parsed(await response.read())[-1]
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["usage"] == wire_usage(12)


async def test_vllm_counts_while_it_runs() -> None:
    """continuous_usage_stats: every event tells the tokens so far, growing to the final usage."""
    async with MockBackend(dialect="vllm") as backend, answer(backend, RUNNING) as (_, response):
        counts = [usage["completion_tokens"] for usage in usages(await response.read())]
        assert counts[0] == 0
        assert counts == sorted(counts)
        assert counts[-3:] == [12, 12, 12]  # the last text, its finish, the final usage
        assert len(counts) < 12 + 3  # an event may hold several tokens


async def test_llamacpp_counts_in_timings() -> None:
    """timings_per_token: `timings.predicted_n` grows with the text; two choices, two usage events."""
    two = {**ASKED_FOR_USAGE, "timings_per_token": True, "n": 2}
    async with MockBackend(dialect="llamacpp") as backend, answer(backend, two) as (_, response):
        payload = await response.read()
        for choice in (0, 1):
            told = [e for e in parsed(payload) if "timings" in e and e["choices"][0]["index"] == choice]
            assert told[-1]["timings"] == {"cache_n": 0, "prompt_n": PROMPT_TOKENS, "predicted_n": 12}
        assert usages(payload) == [wire_usage(12), wire_usage(12)]


async def test_several_choices_of_several_prompts_are_counted_together() -> None:
    """n x prompts choices; every prompt is read once."""
    body = {**ASKED_FOR_USAGE, "prompt": ["a b c", "d"], "n": 2}
    async with Witnessed() as backend, answer(backend, body, "/v1/completions") as (_, response):
        payload = await response.read()
        assert usages(payload)[-1] == {"prompt_tokens": 6, "completion_tokens": 48, "total_tokens": 54}
        assert {event["choices"][0]["index"] for event in parsed(payload)[:-1]} == {0, 1, 2, 3}
        assert (await backend.truth()).generated_tokens == 48


async def test_mistral_refuses_stream_options() -> None:
    """422, nothing generated."""
    async with Witnessed(dialect="mistral") as backend, answer(backend, ASKED_FOR_USAGE) as (_, response):
        assert response.status == 422
        assert (await response.json())["error"]["param"] == "stream_options"
        truth = await backend.truth()
        assert (truth.generated_tokens, truth.finished, truth.cancelled) == (0, False, False)


async def test_gzip_dialect_flushes_after_each_event() -> None:
    """Each HTTP chunk decodes to whole events at once."""
    async with MockBackend(dialect="gzip") as backend, answer(backend, STREAM) as (_, response):
        assert response.headers["content-encoding"] == "gzip"
        decoder = zlib.decompressobj(wbits=31)
        first = await response.next_piece()
        assert first is not None
        assert decoder.decompress(first).endswith(b"\n\n")
        plain = decoder.decompress((await response.read())[len(first) :])
        assert plain.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("dialect", "path"), [("vllm", "/version"), ("llamacpp", "/props"), ("sglang", "/get_model_info")]
)
async def test_identity_endpoints_are_only_the_dialect_s_own(dialect: str, path: str) -> None:
    """A proxy that asks who this is gets an answer only from the right one."""
    for name, status in ((dialect, 200), ("openai", 404)):
        async with MockBackend(dialect=name) as backend, await RawClient.connect(backend.url) as client:
            assert (await client.request("GET", path)).status == status


@pytest.mark.parametrize("how", ["fin", "rst", "half"])
async def test_hang_up_stops_the_generation(how: str) -> None:
    """What was generated is what was written: with running usage, the last count on the wire is the truth."""
    endless = {**RUNNING, "max_tokens": 100_000}
    async with Witnessed(dialect="vllm", rate=2000) as backend:
        async with answer(backend, endless) as (client, response):
            for _ in range(5):
                await response.next_event()
            if how == "fin":
                client.close_fin()
            elif how == "rst":
                client.close_rst()
            else:
                client.half_close()
                with pytest.raises(BrokenOff):  # the mock closes without the end of the body
                    await response.read()
            truth = await backend.truth()
        assert truth.cancelled
        assert not truth.finished
        assert 5 <= truth.sent_events <= 1000
        if how == "half":
            counts = [usage["completion_tokens"] for usage in usages(bytes(response.received))]
            assert counts[-1] == truth.generated_tokens


@pytest.mark.parametrize("rate", [0, 2000])
async def test_running_usage_is_the_truth_wherever_the_hang_up_falls(rate: int) -> None:
    """At any event and any pace, nothing is generated that was not written."""
    endless = {**RUNNING, "max_tokens": 100_000}
    for hang_up_after in range(1, 20):
        async with Witnessed(dialect="vllm", rate=rate) as backend, answer(backend, endless) as (client, response):
            for _ in range(hang_up_after):
                await response.next_event()
            client.half_close()
            with pytest.raises(BrokenOff):
                await response.read()
            last = usages(bytes(response.received))[-1]
            assert last["completion_tokens"] == (await backend.truth()).generated_tokens


async def test_hang_up_stops_a_plain_answer() -> None:
    """A plain call that is hung up generates no further, and no answer is written."""
    async with Witnessed(rate=200) as backend, await RawClient.connect(backend.url) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        body = json.dumps({**ASK, "max_tokens": 100_000})
        await client.send(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        await asyncio.sleep(0.1)
        client.half_close()
        truth = await backend.truth()
        assert truth.cancelled
        assert 1 <= truth.generated_tokens < 1000
        assert await client.ended()


@pytest.mark.alone
async def test_pace_is_per_stream() -> None:
    """Two streams at once each have the whole rate: 80 tokens at 100 per second take 0.8 s, not 1.6."""
    async with MockBackend(rate=100) as backend:
        started_at = asyncio.get_running_loop().time()

        async def one() -> None:
            async with answer(backend, {**STREAM, "max_tokens": 80}) as (_, response):
                await response.read()

        await asyncio.gather(one(), one())
        assert 0.79 <= asyncio.get_running_loop().time() - started_at < 1.5


@pytest.mark.parametrize("kind", ["error", "reset", "close", "stall"])
async def test_faults_come_after_so_many_events(kind: str) -> None:
    """The text before the fault was sent and is in the truth; a broken answer is not a cancelled one."""
    async with Witnessed(tokens_per_event=1) as backend:
        async with answer(backend, STREAM, x_mock_fault=f"{kind}@2") as (client, response):
            if kind == "error":
                last = parsed(await response.read())[-1]
                assert last["error"]["type"] == "server_error"
            elif kind == "stall":
                for _ in range(3):
                    await response.next_event()
                client.close_fin()
            else:
                with pytest.raises(BrokenOff) as broken:
                    await response.read()
                assert broken.value.was_reset == (kind == "reset")
            truth = await backend.truth()
        assert (truth.generated_tokens, truth.content_events, truth.finished) == (2, 2, False)
        assert truth.cancelled == (kind == "stall")


async def test_status_and_slow_first_byte_come_when_asked() -> None:
    """x-mock-status gives that error; x-mock-first-byte-ms delays even the head."""
    async with MockBackend() as backend:
        started_at = asyncio.get_running_loop().time()
        async with answer(backend, STREAM, x_mock_status="503", x_mock_first_byte_ms="100") as (_, response):
            assert response.status == 503
            assert asyncio.get_running_loop().time() - started_at >= 0.1


async def test_a_mistyped_wish_is_refused() -> None:
    """400 in OpenAI's shape."""
    async with MockBackend() as backend, answer(backend, STREAM, x_mock_fault="explode@1") as (_, response):
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_openai_sdk_chats_with_it() -> None:
    """Plain, streamed, completions, tools, embeddings (base64 inside) and models, with the official client."""
    async with MockBackend() as backend, openai.AsyncOpenAI(base_url=backend.url, api_key="x") as sdk:
        plain = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], max_tokens=9)
        assert plain.usage is not None
        assert plain.usage.completion_tokens == 9
        assert plain.choices[0].message.content

        stream = await sdk.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True, max_tokens=9
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == plain.choices[0].message.content

        called = await sdk.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "hi"}],
            tools=[{"type": "function", "function": {"name": "look_up", "parameters": {}}}],
        )
        assert called.choices[0].message.tool_calls is not None
        call = called.choices[0].message.tool_calls[0]
        assert call.type == "function"
        assert call.function.name == "look_up"
        assert json.loads(call.function.arguments)

        completion = await sdk.completions.create(model="m", prompt=["a", "b"], max_tokens=3)
        assert [choice.index for choice in completion.choices] == [0, 1]
        vectors = await sdk.embeddings.create(model="m", input=["a b", "c"], dimensions=4)
        assert [len(item.embedding) for item in vectors.data] == [4, 4]
        assert vectors.usage.prompt_tokens == 5
        assert [model.id async for model in sdk.models.list()] == ["mock-small", "mock-large"]


async def test_openai_sdk_sees_reasoning() -> None:
    """Half of the tokens are reasoning, and the usage says so."""
    async with MockBackend() as backend, openai.AsyncOpenAI(base_url=backend.url, api_key="x") as sdk:
        thought = await sdk.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], reasoning_effort="low", max_completion_tokens=10
        )
        assert thought.usage is not None
        assert thought.usage.completion_tokens_details is not None
        assert thought.usage.completion_tokens_details.reasoning_tokens == 5


async def test_a_part_of_the_input_may_be_cached() -> None:
    """As many tokens as wished for, but no more than the input has; nothing is said where none are."""
    for wish, told in (("3", {"cached_tokens": 3}), ("99", {"cached_tokens": PROMPT_TOKENS}), ("0", None)):
        async with MockBackend() as backend, answer(backend, ASK, x_mock_cached_tokens=wish) as (_, response):
            assert (await response.json())["usage"].get("prompt_tokens_details") == told


async def test_port_in_use_cannot_start() -> None:
    """One clear error, and stop() after it is harmless."""
    async with MockBackend() as first:
        second = MockBackend(port=int(first.url.split(":")[2].removesuffix("/v1")))
        with pytest.raises(CannotStart, match="cannot listen on"):
            await second.start()
        await second.stop()


def test_truth_file_that_cannot_be_opened_cannot_start(tmp_path: Path) -> None:
    """The path and the reason are in the message."""
    with pytest.raises(CannotStart, match=re.escape(f"{tmp_path}: Is a directory")):
        TruthFile(tmp_path)


async def test_command_serves_and_writes_the_truth(tmp_path: Path) -> None:
    """`meter-proxy mock-backend --truth FILE`: one line per request, appended; SIGTERM ends it with 0."""
    truth_path = tmp_path / "truth.jsonl"
    for turn in (1, 2):
        backend = Command(["mock-backend", "--listen", "127.0.0.1:0", "--truth", truth_path, "--rate", "0"])
        try:
            url = (await backend.printed(re.compile(r"^mock-backend: serving (http://127\.0\.0\.1:\d+/v1)$", re.M)))[1]
            async with await RawClient.connect(url) as client:
                await (await client.request("POST", CHAT, STREAM)).read()
        finally:
            await backend.close()
        assert backend.exit_code == 0
        lines = truth_path.read_text().splitlines()
        assert len(lines) == turn
        assert json.loads(lines[-1])["generated_tokens"] == 12


async def test_command_says_what_is_wrong() -> None:
    """A wrong option is exit 2; a port in use exit 3 with one line."""
    for arguments in (["--listen", "8000"], ["--listen", "127.0.0.1:http"], ["--dialect", "esperanto"]):
        code, _, stderr = await run_command("mock-backend", *arguments)
        assert code == 2
        assert arguments[0] in stderr
    port = free_port()
    async with MockBackend(port=port):
        code, _, stderr = await run_command("mock-backend", "--listen", f"127.0.0.1:{port}")
    said = f"meter-proxy: cannot listen on 127.0.0.1:{port}: Address already in use; choose another with --listen\n"
    assert (code, stderr) == (3, said)
