"""The operator's credential never reaches a client, wherever the bytes were cut."""

import json
import random

import pytest

from meter_proxy.gateway.redaction import RedactedError, WithheldError, masked
from meter_proxy.metering.tally import NOTHING

SECRET = "sk-sk-operator"  # begins with its own beginning: a naive search for a start goes wrong
MASK = "*" * len(SECRET)


def passed(raw: bytes, cuts: list[int]) -> bytes:
    """What the client gets for `raw` cut at `cuts`."""
    meter, out, start = RedactedError(SECRET), b"", 0
    for end in [*cuts, len(raw)]:
        out += meter.feed(raw[start:end])
        start = end
    return out + meter.finish() + meter.finish()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("no secret here", "no secret here"),
        (f"key {SECRET}.", f"key {MASK}."),
        (SECRET * 2, MASK * 2),
        (f"sk-{SECRET} and sk-sk-op", f"sk-{MASK} and sk-sk-op"),
        (SECRET[:-1], SECRET[:-1]),
    ],
)
def test_masked_and_of_the_same_length_however_it_is_cut(text: str, shown: str) -> None:
    """Whole, byte by byte, and at random cuts; a Content-Length stays right."""
    raw = text.encode()
    rng = random.Random(1)
    ways = [[], list(range(1, len(raw)))]
    ways += [sorted(rng.sample(range(1, len(raw)), min(3, len(raw) - 1))) for _ in range(50) if len(raw) > 1]
    for cuts in ways:
        assert passed(raw, cuts) == shown.encode()


def test_nothing_is_copied_when_nothing_is_found() -> None:
    """The same object goes on, as with every meter."""
    data = b"an ordinary error"
    assert RedactedError(SECRET).feed(data) is data


def test_nothing_is_billed() -> None:
    """An error costs nothing, whatever stands in it."""
    meter = RedactedError(SECRET)
    meter.feed(b'{"usage":{"prompt_tokens":9,"completion_tokens":9}}')
    meter.finish()
    assert meter.usage_so_far() == NOTHING


def test_a_compressed_error_is_withheld() -> None:
    """What cannot be read cannot be cleared; the client gets an error in OpenAI's shape, once."""
    meter = WithheldError()
    assert meter.feed(b"\x1f\x8b...") == b""
    assert set(json.loads(meter.finish())["error"]) == {"message", "type", "param", "code"}
    assert meter.finish() == b""
    assert meter.usage_so_far() == NOTHING


def test_text_without_a_credential_to_hide_stays() -> None:
    """No credential is no reason to mask the empty string everywhere."""
    assert masked("text", None) == "text"
    assert masked("a sk b", "sk") == "a ** b"
