"""What a chunk costs in the meter: `python -m tests.bench.metering`. Pure CPU, no sockets."""

import statistics
import time
from collections.abc import Callable

from meter_proxy.metering.injection import NOTHING_HIDDEN, Hidden
from meter_proxy.metering.request import Asked
from meter_proxy.metering.stream import StreamMeter
from meter_proxy.usage import Operation

CHUNKS = 20_000
ROUNDS = 7
HIDING = Hidden(usage_event=True, running_usage=True)


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


def seconds_per_chunk(make: Callable[[int], bytes], hidden: Hidden, in_one_read: int = 1) -> float:
    """The median over rounds of the time that one chunk takes in feed(), in seconds."""
    chunks = [make(number) for number in range(1, CHUNKS + 1)]
    reads = [b"".join(chunks[at : at + in_one_read]) for at in range(0, CHUNKS, in_one_read)]
    times = []
    for _ in range(ROUNDS):
        meter = StreamMeter(Operation.CHAT, asked=Asked(model="m"), hidden=hidden, max_event_bytes=1_048_576)
        feed = meter.feed
        start = time.perf_counter()
        for read in reads:
            feed(read)
        times.append((time.perf_counter() - start) / CHUNKS)
        assert meter.content_events == CHUNKS
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    for name, make, hidden, in_one_read in (
        ("plain content", plain, NOTHING_HIDDEN, 1),
        ("plain content, usage to be hidden", plain, HIDING, 1),
        ("50 plain events in one read", plain, NOTHING_HIDDEN, 50),
        ("50 plain events in one read, hiding", plain, HIDING, 50),
        ("escapes in the text", escaped, NOTHING_HIDDEN, 1),
        ("with OpenAI's obfuscation", obfuscated, NOTHING_HIDDEN, 1),
        ("no two alike: every event parsed", with_logprobs, NOTHING_HIDDEN, 1),
        ("running usage", running, NOTHING_HIDDEN, 1),
        ("running usage, cut out", running, HIDING, 1),
    ):
        print(f"{name:40} {seconds_per_chunk(make, hidden, in_one_read) * 1e6:6.2f} us per event")


if __name__ == "__main__":
    main()
