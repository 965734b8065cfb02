"""What the front takes, and what it leaves to aiohttp."""

import pytest

from meter_proxy.gateway.inbound import ANONYMOUS, Inbound
from meter_proxy.gateway.plain import MAX_HEAD_BYTES, PlainHead, PlainHeads
from meter_proxy.usage import Operation
from tests.unit.gateway.plain_requests import CONFIG, config_of, head

LATE_2026 = 1_798_000_000.0


def read(block: bytes, now: float = LATE_2026) -> PlainHead | None:
    """As a new worker reads it, and once more with every line remembered."""
    heads = PlainHeads(Inbound(CONFIG), CONFIG)
    first = heads.read(block, now)
    assert heads.read(block, now) == first
    return first


def test_a_plain_head_is_understood() -> None:
    """Route, caller, length, and what of it goes on: not the credential, not what concerns this connection."""
    plain = read(head(b"Connection: keep-alive", b"X-Request-Id: mine", b"Cookie: a=b", length=7))
    assert plain is not None
    assert (plain.route.operation, plain.caller.key_id, plain.length) == (Operation.CHAT, "alice", 7)
    assert plain.client_request_id == "mine"
    assert plain.forwarded.has_request_id
    assert plain.forwarded.lines == (
        b"Accept: application/json\r\nUser-Agent: OpenAI/Python 2.0\r\n"
        b"X-Stainless-Lang: python\r\nX-Request-Id: mine\r\n"
    )


@pytest.mark.parametrize("path", [b"/v1/completions", b"/v1/llm/embeddings"])
def test_all_metered_paths_are_plain(path: bytes) -> None:
    """Under each prefix."""
    assert read(head(start=b"POST %b HTTP/1.1" % path)) is not None


NOT_PLAIN = {
    "CL and TE": head(b"Transfer-Encoding: chunked"),
    "two CLs": head(b"Content-Length: 2"),
    "two CLs that differ": head(b"Content-Length: 3"),
    "a list of CLs": head().replace(b"Length: 2", b"Length: 2, 2"),
    "a signed CL": head().replace(b"Length: 2", b"Length: +2"),
    "an underscored CL": head().replace(b"Length: 2", b"Length: 1_0"),
    "a negative CL": head().replace(b"Length: 2", b"Length: -2"),
    "a hex CL": head().replace(b"Length: 2", b"Length: 0x2"),
    "an empty CL": head().replace(b"Length: 2", b"Length: "),
    "a CL of digits that are not ASCII": head().replace(b"Length: 2", "Length: ²".encode()),
    "no CL": head().rpartition(b"\r\n")[0],
    "too big a CL": head(length=2_000_000),
    "an odd TE": head(b"Transfer-Encoding: \x0bchunked"),
    "TE: identity": head(b"TE: identity"),
    "a bare LF": head(b"X-A: b\nX-C: d"),
    "a bare CR": head(b"X-A: b\rX-C: d"),
    "a folded line": head(b"X-A: b", b" c"),
    "a NUL": head(b"X-A: \0"),
    "another control character": head(b"X-A: \x01"),
    "a DEL": head(b"X-A: \x7f"),
    "bytes beyond ASCII": head("X-A: é".encode()),
    "two Hosts": head(b"Host: y"),
    "no Host": head().replace(b"Host: x\r\n", b""),
    "a blank before the colon": head(b"X-A : b"),
    "no name": head(b": b"),
    "no colon": head(b"X-A"),
    "no value": head(b"X-A:"),
    "a name that is no token": head(b"X(A): b"),
    "HTTP/1.0": head(start=b"POST /v1/chat/completions HTTP/1.0"),
    "HTTP/0.9": head(start=b"POST /v1/chat/completions HTTP/0.9"),
    "HTTP/2.0": head(start=b"POST /v1/chat/completions HTTP/2.0"),
    "HTTP/1.1 with a blank behind it": head(start=b"POST /v1/chat/completions HTTP/1.1 "),
    "two blanks": head(start=b"POST  /v1/chat/completions HTTP/1.1"),
    "a tab": head(start=b"POST\t/v1/chat/completions HTTP/1.1"),
    "an absolute target": head(start=b"POST http://x/v1/chat/completions HTTP/1.1"),
    "dot segments": head(start=b"POST /v1/../v1/chat/completions HTTP/1.1"),
    "an encoded slash": head(start=b"POST /v1%2fchat/completions HTTP/1.1"),
    "encoded dots": head(start=b"POST /v1/%2e%2e/v1/chat/completions HTTP/1.1"),
    "a double slash": head(start=b"POST //v1/chat/completions HTTP/1.1"),
    "a query": head(start=b"POST /v1/chat/completions?a=b HTTP/1.1"),
    "a fragment": head(start=b"POST /v1/chat/completions#a HTTP/1.1"),
    "another method": head(start=b"PUT /v1/chat/completions HTTP/1.1"),
    "a method in lower case": head(start=b"post /v1/chat/completions HTTP/1.1"),
    "another path": head(start=b"POST /v1/files HTTP/1.1"),
    "a blank line first": b"\r\n" + head(),
    "two credentials": head(b"api-key: sk-plain"),
    "two different credentials": head(b"x-api-key: sk-other"),
    "no credential": head().replace(b"Authorization: Bearer sk-plain\r\n", b""),
    "another scheme": head().replace(b"Bearer", b"Basic"),
    "an unknown key": head().replace(b"sk-plain", b"sk-wrong"),
    "a disabled key": head().replace(b"sk-plain", b"sk-off"),
    "an expectation": head(b"Expect: 100-continue"),
    "an upgrade": head(b"Connection: upgrade", b"Upgrade: h2c"),
    "Connection: close": head(b"Connection: close"),
    "a nominating Connection": head(b"Connection: X-A"),
    "a trailer": head(b"Trailer: X-A"),
    "a browser": head(b"Origin: http://localhost"),
    "a form": head().replace(b"application/json\r\nUser", b"text/plain\r\nUser"),
    "a coded body": head(b"Content-Encoding: gzip"),
    "two types of the body": head(b"Content-Type: application/json"),
    "two user agents": head(b"user-agent: b"),
    "a header of an answer": head(b"ETag: a"),
    "two request ids": head(b"X-Request-Id: a", b"X-Request-Id: b"),
    "a proxy's credential": head(b"Proxy-Authorization: Basic x"),
    "a very long head": head(b"X-A: " + b"a" * MAX_HEAD_BYTES),
    "very many lines": head(*[b"X-A: b"] * 70),
}


@pytest.mark.parametrize("block", NOT_PLAIN.values(), ids=NOT_PLAIN.keys())
def test_whatever_is_not_plain_is_left_to_one_parser(block: bytes) -> None:
    """Every hostile or odd head; also behind a plain one, whose lines are remembered."""
    assert read(block) is None
    heads = PlainHeads(Inbound(CONFIG), CONFIG)
    assert heads.read(head(), LATE_2026) is not None
    assert heads.read(block, LATE_2026) is None


def test_a_key_that_expires_is_looked_at_each_time() -> None:
    """What is remembered of its line must not outlive it."""
    heads = PlainHeads(Inbound(CONFIG), CONFIG)
    block = head().replace(b"sk-plain", b"sk-ends")
    assert heads.read(block, LATE_2026) is not None
    assert heads.read(block, 1_798_761_600.0) is None  # 2027-01-01


def test_wrong_keys_are_not_remembered_and_right_lines_are_bounded() -> None:
    """There is no end of either."""
    heads = PlainHeads(Inbound(CONFIG), CONFIG)
    for number in range(5_000):
        heads.read(head().replace(b"sk-plain", b"sk-%d" % number), LATE_2026)
    assert len(heads._known) < 10
    for number in range(5_000):
        assert heads.read(head(b"X-A: %d" % number), LATE_2026) is not None
    assert len(heads._known) <= 4_096


def test_without_keys_everybody_is_anonymous_and_no_credential_goes_on() -> None:
    """Whatever they send."""
    config = config_of('upstreams: {one: {base_url: "http://one/v1"}}\nmodels: {"*": {upstream: one}}\n')
    plain = PlainHeads(Inbound(config), config).read(head(), LATE_2026)
    assert plain is not None
    assert plain.caller.key_id == ANONYMOUS
    assert b"sk-plain" not in plain.forwarded.lines


@pytest.mark.parametrize(
    ("beginning", "may_be"),
    [
        (b"", True),
        (b"POST /v1/cha", True),
        (b"POST /v1/chat/completions HTTP/1.1\r", True),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n", True),
        (b"GET", False),
        (b"POST /v1/chat/completions HTTP/1.1\nHost: x\n\n", False),
        (b"POST /v2", False),
        (b"\x16\x03\x01", False),
        (b"POST /v1/chat/completions HTTP/1.1\r\nA: " + b"a" * MAX_HEAD_BYTES, False),
    ],
)
def test_what_cannot_become_plain_does_not_wait(beginning: bytes, may_be: bool) -> None:
    """aiohttp shall refuse it as soon as it can."""
    assert PlainHeads(Inbound(CONFIG), CONFIG).may_begin(beginning) is may_be
