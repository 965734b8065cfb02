"""Which headers go on, in both directions."""

import pytest

from meter_proxy.gateway.headers import forwarded, reply_fields, request_head, request_start
from meter_proxy.gateway.http1 import ResponseHead, parse_head


def sent(*headers: tuple[str, str], api_key: str | None = None) -> list[str]:
    """The header lines of our request for a client that sent `headers`."""
    start = request_start("/v1/chat/completions", "up:1", api_key=api_key)
    head = request_head(start, forwarded(headers), length=2, request_id="req_1")
    assert head.endswith(b"\r\n\r\n")
    first, *lines = head.decode("utf-8", "surrogateescape").removesuffix("\r\n\r\n").split("\r\n")
    assert first == "POST /v1/chat/completions HTTP/1.1"
    return lines


OURS = [
    "Host: up:1",
    "Content-Type: application/json",
    "Accept-Encoding: identity",
    "X-Request-Id: req_1",
    "X-Meter-Request-Id: req_1",
    "Content-Length: 2",
]


def test_we_say_what_we_know() -> None:
    """Host, length, type and ids are ours; nothing else is made up."""
    assert sent() == OURS


@pytest.mark.parametrize(
    "header",
    [
        ("Authorization", "Bearer sk-client"),
        ("api-key", "sk-client"),
        ("X-API-Key", "sk-client"),
        ("Cookie", "a=b"),
        ("Host", "evil"),
        ("Content-Length", "999"),
        ("Transfer-Encoding", "chunked"),
        ("Content-Encoding", "gzip"),
        ("Content-Type", "application/json; charset=utf-7"),
        ("Accept-Encoding", "gzip"),
        ("Expect", "100-continue"),
        ("Upgrade", "h2c"),
        ("Origin", "http://x"),
        ("Sec-Fetch-Mode", "cors"),
        ("X-Conversation-Id", "c1"),
        ("X-Meter-Request-Id", "forged"),
        ("OpenAI-Organization", "org-of-the-client"),
    ],
)
def test_what_ends_here_does_not_go_on(header: tuple[str, str]) -> None:
    """Credentials, hop-by-hop headers, and whatever could make another reader read our body otherwise."""
    assert sent(header) == OURS
    assert sent(header, header) == OURS


def test_what_a_connection_header_nominates_does_not_go_on() -> None:
    """RFC 9110 §7.6.1, in any case, from any of several Connection headers."""
    lines = sent(("Connection", "X-One, keep-alive"), ("connection", "x-two"), ("X-One", "1"), ("X-Two", "2"))
    assert lines == OURS


def test_everything_else_goes_on_as_it_came() -> None:
    """Order, spelling, repetition, and bytes that are no UTF-8."""
    assert forwarded([("X-A", "1"), ("x-a", "é\udcff")]).lines == b"X-A: 1\r\nx-a: \xc3\xa9\xff\r\n"


def test_the_clients_request_id_is_kept() -> None:
    """Ours stands beside it."""
    lines = sent(("X-Request-Id", "mine"))
    assert "X-Request-Id: mine" in lines
    assert "X-Request-Id: req_1" not in lines
    assert "X-Meter-Request-Id: req_1" in lines


def test_the_operators_credential_replaces_the_clients() -> None:
    """One Authorization header, the operator's."""
    lines = sent(("Authorization", "Bearer sk-client"), api_key="sk-operator")
    assert [line for line in lines if line.lower().startswith("authorization")] == ["Authorization: Bearer sk-operator"]


def reply(*lines: bytes, secret: str | None = None) -> list[tuple[str, str]]:
    """The client's headers for an upstream that answered with `lines`."""
    head: ResponseHead = parse_head(b"\r\n".join([b"HTTP/1.1 200 OK", *lines]))
    made = reply_fields(head, secret=secret)
    assert made.lines == "".join(f"{name}: {value}\r\n" for name, value in made.fields).encode()
    assert reply_fields(head, secret=secret) is made  # remembered
    return [*made.fields, *([("x-request-id", made.request_id)] if made.request_id else [])]


IDS: list[tuple[str, str]] = []


@pytest.mark.parametrize(
    "line",
    [
        b"Connection: close",
        b"Keep-Alive: timeout=5",
        b"Transfer-Encoding: chunked",
        b"Content-Length: 5",
        b"Set-Cookie: a=b",
        b"Server: uvicorn",
        b"Date: Thu, 01 Jan 1970 00:00:00 GMT",
        b"Alt-Svc: h3=1",
        b"Access-Control-Allow-Origin: http://only-here",
        b"X-Meter-Request-Id: forged",
    ],
)
def test_the_upstreams_own_affairs_stay_with_it(line: bytes) -> None:
    """Framing is ours, CORS is ours, cookies are nobody's."""
    assert reply(line) == IDS


def test_nominated_reply_headers_stay_too() -> None:
    """The same rule in the other direction."""
    assert reply(b"Connection: X-Hop", b"X-Hop: 1") == IDS


def test_the_upstreams_request_id_comes_first() -> None:
    """As `x-request-id`; ours always as `x-meter-request-id`."""
    assert reply(b"X-Request-Id: up-1") == [("x-request-id", "up-1")]


def test_streams_are_not_held_back_by_nginx_in_front_of_us() -> None:
    """Unless the upstream has said something about it."""
    assert ("x-accel-buffering", "no") in reply(b"Content-Type: text/event-stream; charset=utf-8")
    assert ("x-accel-buffering", "no") not in reply(b"Content-Type: text/event-stream", b"X-Accel-Buffering: yes")


def test_the_operators_credential_is_masked_in_every_header() -> None:
    """Also in the id that we print twice."""
    headers = reply(b"WWW-Authenticate: Bearer key=sk-op", b"X-Request-Id: sk-op-1", secret="sk-op")
    assert headers == [
        ("WWW-Authenticate", "Bearer key=*****"),
        ("x-request-id", "*****-1"),
    ]
