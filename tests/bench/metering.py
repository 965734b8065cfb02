"""What an exchange costs in the meter: `python -m tests.bench.metering`. Pure CPU, no sockets.

Of all rounds the best, which other programs on the machine disturb least, and the median.
"""

import gc
import json
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

from meter_proxy.metering.injection import NOTHING_HIDDEN, Hidden, RunningUsage, rewrite_body
from meter_proxy.metering.meter import Meter, meter_for
from meter_proxy.metering.request import Asked, parse_body
from meter_proxy.metering.stream import StreamMeter
from meter_proxy.usage import Operation

CHUNKS = 10_000
ROUNDS = 25  # short ones: of many some are not disturbed
CALLS_MS = 8  # of one round
HIDING = Hidden(usage_event=True, running_usage=True)
USAGE = {
    "prompt_tokens": 42,
    "completion_tokens": 21,
    "total_tokens": 63,
    "prompt_tokens_details": {"cached_tokens": 0},
}


class Seconds(NamedTuple):
    """What one call takes."""

    best: float
    median: float


# Requests.

MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."},
    {"role": "user", "content": "Why is the sky blue, and why are sunsets red?"},
]
PLAIN_CALL = {"model": "gpt-4o-mini", "messages": MESSAGES, "max_tokens": 128}
STREAM_CALL = {**PLAIN_CALL, "stream": True}


def compact(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def spaced(body: object) -> bytes:
    return json.dumps(body).encode()


def indented(body: object) -> bytes:
    return json.dumps(body, indent=2).encode()


def with_image(image_bytes: int) -> dict[str, object]:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgoA" * (image_bytes // 12)}}
    return {**STREAM_CALL, "messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]}


def with_text(text_bytes: int) -> dict[str, object]:
    return {**STREAM_CALL, "messages": [{"role": "user", "content": 'the "quick" fox\n' * (text_bytes // 16)}]}


def requests() -> dict[str, Callable[[], object]]:
    """What happens to a body."""

    def parse(body: bytes) -> Callable[[], object]:
        return lambda: parse_body(body, Operation.CHAT)

    def rewrite(body: bytes, upstream_model: str | None = None) -> Callable[[], object]:
        asked = parse_body(body, Operation.CHAT)

        def call() -> object:
            off = RunningUsage.OFF
            return rewrite_body(body, asked, upstream_model=upstream_model, include_usage=asked.stream, running=off)

        return call

    return {
        "parse_body, compact": parse(compact(STREAM_CALL)),
        "parse_body, spaced as json.dumps does": parse(spaced(STREAM_CALL)),
        "parse_body, indented": parse(indented(STREAM_CALL)),
        "parse_body, with stream_options": parse(spaced({**STREAM_CALL, "stream_options": {"include_usage": True}})),
        "parse_body, 100 KB of image": parse(compact(with_image(100_000))),
        "parse_body, 1 MB of image": parse(compact(with_image(1_000_000))),
        "parse_body, 1 MB of image, spaced": parse(spaced(with_image(1_000_000))),
        "parse_body, 100 KB of text": parse(compact(with_text(100_000))),
        "parse_body, 1 MB of text": parse(compact(with_text(1_000_000))),
        "rewrite_body, plain call": rewrite(compact(PLAIN_CALL)),
        "rewrite_body, stream": rewrite(compact(STREAM_CALL)),
        "rewrite_body, stream, options merged": rewrite(compact({**STREAM_CALL, "stream_options": {"x": 1}})),
        "rewrite_body, stream, model renamed": rewrite(compact(STREAM_CALL), "gpt-4o-mini-2024-07-18"),
    }


# Whole answers.

MESSAGE = {"role": "assistant", "content": "Shorter waves scatter more.", "refusal": None}
BODY = compact(
    {
        "id": "chatcmpl-7Qk2mZr0vXxJ",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": MESSAGE, "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE,
    }
)


def streamed(number: int) -> list[bytes]:
    """The five events of a short stream, which has an id and a time of its own."""
    frame: dict[str, object] = {
        "id": f"chatcmpl-{number:012}",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000 + number,
        "model": "gpt-4o-mini",
    }

    def said(delta: object, finish_reason: str | None = None) -> dict[str, object]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**frame, "choices": [choice], "usage": None}

    events = [
        said({"role": "assistant", "content": ""}),
        said({"content": "Shorter"}),
        said({}, "stop"),
        {**frame, "choices": [], "usage": USAGE},
    ]
    return [*(b"data: %b\n\n" % compact(each) for each in events), b"data: [DONE]\n\n"]


def answer_meter(content_type: str, hidden: Hidden = NOTHING_HIDDEN) -> Meter:
    return meter_for(
        Operation.CHAT,
        status=200,
        content_type=content_type,
        content_encoding="",
        asked=ASKED_BODY if content_type == "application/json" else ASKED_STREAM,
        hidden=hidden,
        max_event_bytes=1_048_576,
    )


ASKED_BODY = parse_body(compact(PLAIN_CALL), Operation.CHAT)
ASKED_STREAM = parse_body(compact(STREAM_CALL), Operation.CHAT)


def answers() -> dict[str, Callable[[], object]]:
    """What happens to a whole answer."""
    streams = [streamed(number) for number in range(1000)]
    numbers = iter(range(10**9))

    def body() -> None:
        meter = answer_meter("application/json")
        meter.feed(BODY)
        meter.finish()
        assert meter.usage_so_far().usage.output_tokens == 21

    def stream(more: int = 0, hidden: Hidden = NOTHING_HIDDEN, in_one_read: bool = False) -> Callable[[], object]:
        def call() -> None:
            events = streams[next(numbers) % 1000]
            events = events[:1] + events[1:2] * (1 + more) + events[2:]
            meter = answer_meter("text/event-stream", hidden)
            for read in [b"".join(events)] if in_one_read else events:
                meter.feed(read)
            meter.finish()
            assert meter.usage_so_far().usage.output_tokens == 21 and meter.content_events == 1 + more

        return call

    return {
        "meter_for, JSON": lambda: answer_meter("application/json"),
        "meter_for, stream": lambda: answer_meter("text/event-stream"),
        "a JSON answer: meter_for, feed, finish, usage": body,
        "a stream of 5 events, from meter_for to usage": stream(),
        "the same, its usage hidden": stream(hidden=HIDING),
        "the same in one read": stream(in_one_read=True),
        "a stream of 8 events": stream(more=3),
        "a stream of 24 events": stream(more=19),
    }


# Events.


def event(content: str, usage: str = "", extra: str = "") -> bytes:
    """A content event of about 200 bytes."""
    return (
        'data: {"id":"chatcmpl-7Qk2mZr0vXxJ","object":"chat.completion.chunk","created":1700000000,"model":'
        '"qwen2.5-72b-instruct","choices":[{"index":0,"delta":{"content":"' + content + '"},"logprobs":null,'
        '"finish_reason":null}]' + usage + extra + "}\n\n"
    ).encode()


def plain(number: int) -> bytes:
    return event(f"tok{number % 100}")


def escaped(number: int) -> bytes:
    return event(f'\\n\\"t{number % 10}\\"')


def obfuscated(number: int) -> bytes:
    return event(f"tok{number % 100}", extra=f',"obfuscation":"{"x" * (number % 9)}"')


def running(number: int) -> bytes:
    return event("tok", f',"usage":{{"prompt_tokens":9,"completion_tokens":{number},"total_tokens":{number + 9}}}')


def with_logprobs(number: int) -> bytes:
    return event("tok", f',"logprobs_no":{number}')


def seconds_per_chunk(
    make: Callable[[int], bytes], hidden: Hidden, in_one_read: int = 1, noting: bool = False
) -> Seconds:
    """The time that one chunk takes in feed(), and in usage_so_far() after each read if `noting`."""
    chunks = [make(number) for number in range(1, CHUNKS + 1)]
    reads = [b"".join(chunks[at : at + in_one_read]) for at in range(0, CHUNKS, in_one_read)]
    times = []
    for _ in range(ROUNDS):
        meter = StreamMeter(Operation.CHAT, asked=Asked(model="m"), hidden=hidden, max_event_bytes=1_048_576)
        feed = meter.feed
        start = time.process_time()
        if noting:
            for read in reads:
                feed(read)
                meter.usage_so_far()
        else:
            for read in reads:
                feed(read)
        times.append((time.process_time() - start) / CHUNKS)
        assert meter.content_events == CHUNKS
    return Seconds(min(times), statistics.median(times))


def seconds_per_call(call: Callable[[], object]) -> Seconds:
    """The time that one call takes."""
    start = time.process_time()
    for _ in range(10):
        call()
    calls = max(10, int(CALLS_MS / 1000 / ((time.process_time() - start) / 10)))
    times = []
    for _ in range(ROUNDS):
        gc.collect()
        start = time.process_time()
        for _ in range(calls):
            call()
        times.append((time.process_time() - start) / calls)
    return Seconds(min(times), statistics.median(times))


def main() -> None:
    """Print the table."""
    print(f"{'microseconds':52}{'best':>9}{'median':>9}")
    for name, call in (requests() | answers()).items():
        _print(name, seconds_per_call(call))
    for name, make, hidden, in_one_read, noting in (
        ("plain content", plain, NOTHING_HIDDEN, 1, False),
        ("plain content, usage to be hidden", plain, HIDING, 1, False),
        ("50 plain events in one read", plain, NOTHING_HIDDEN, 50, False),
        ("50 plain events in one read, hiding", plain, HIDING, 50, False),
        ("escapes in the text", escaped, NOTHING_HIDDEN, 1, False),
        ("with OpenAI's obfuscation", obfuscated, NOTHING_HIDDEN, 1, False),
        ("no two alike: every event parsed", with_logprobs, NOTHING_HIDDEN, 1, False),
        ("running usage", running, NOTHING_HIDDEN, 1, False),
        ("running usage, cut out", running, HIDING, 1, False),
        ("50 of running usage in one read, cut out", running, HIDING, 50, False),
        ("running usage, cut out, and noted after each read", running, HIDING, 1, True),
    ):
        _print(f"per event: {name}", seconds_per_chunk(make, hidden, in_one_read, noting))


def _print(name: str, seconds: Seconds) -> None:
    print(f"{name:52}{seconds.best * 1e6:9.2f}{seconds.median * 1e6:9.2f}")


if __name__ == "__main__":
    main()
