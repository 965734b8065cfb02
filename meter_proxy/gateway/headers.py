"""Which headers go on, in both directions.

Never forwarded: hop-by-hop headers (RFC 9110 §7.6.1), credentials, and what belongs to the connection
between the client and us. Browsers' own headers stay here as well: CORS is answered by us, and some
backends (Ollama) refuse an Origin that they do not know.
"""

from collections.abc import Iterable
from typing import NamedTuple

from meter_proxy.gateway.http1 import ResponseHead
from meter_proxy.gateway.redaction import masked

HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
CREDENTIALS = frozenset({"authorization", "api-key", "x-api-key", "cookie", "proxy-authorization", "x-goog-api-key"})
# llama.cpp goes on generating after a hang-up for a conversation that carries this id, so that it can be resumed.
OUTLIVES_HANG_UP = frozenset({"x-conversation-id"})
# The operator's account at the upstream is chosen by the operator.
OPERATORS_CHOICE = frozenset({"openai-organization", "openai-project"})
ENDS_HERE = frozenset(
    {
        "host", "content-length", "accept-encoding", "expect", "origin", "referer", "x-meter-request-id",
        # Said by us: we have read the body as JSON in UTF-8, and nobody behind us shall read it as anything else.
        "content-type", "content-encoding",
    }
)  # fmt: skip
_REQUEST_DROP = HOP_BY_HOP | CREDENTIALS | OUTLIVES_HANG_UP | OPERATORS_CHOICE | ENDS_HERE

_RESPONSE_DROP = HOP_BY_HOP | {
    "content-length",
    "set-cookie",
    "alt-svc",
    "x-request-id",
    "x-meter-request-id",
    "server",
    "date",
}


class Forwarded(NamedTuple):
    """A client's headers as they go on to any upstream."""

    lines: bytes  # each with its CRLF
    has_request_id: bool  # the client has named its request


def goes_on(lower_name: str) -> bool:
    """Whether a request header of this name (lower case) goes on, if no Connection header nominates it."""
    return lower_name not in _REQUEST_DROP and not lower_name.startswith("sec-")


def forwarded(client_headers: Iterable[tuple[str, str]]) -> Forwarded:
    """Of a client's headers what goes on."""
    client_headers = list(client_headers)
    nominated = _nominated(client_headers)
    lines: list[str] = []
    has_request_id = False
    for name, value in client_headers:
        lower = name.lower()
        if not goes_on(lower) or lower in nominated:
            continue
        has_request_id = has_request_id or lower == "x-request-id"
        lines.append(f"{name}: {value}\r\n")
    return Forwarded("".join(lines).encode("utf-8", "surrogateescape"), has_request_id)


def request_start(path: str, host: str, *, api_key: str | None) -> bytes:
    """How every request to `path` at one upstream begins, with the operator's credential."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        "Accept-Encoding: identity",  # a coded stream could be metered, but nothing taken out of it
    ]
    if api_key:
        lines.append(f"Authorization: Bearer {api_key}")
    return "".join(f"{line}\r\n" for line in lines).encode("utf-8", "surrogateescape")


def request_head(start: bytes, client: Forwarded, *, length: int, request_id: str) -> bytes:
    """The head of our request to the upstream: `start` is from `request_start`."""
    own_id = request_id.encode()
    if client.has_request_id:
        return b"%b%bX-Meter-Request-Id: %b\r\nContent-Length: %d\r\n\r\n" % (start, client.lines, own_id, length)
    return b"%b%bX-Request-Id: %b\r\nX-Meter-Request-Id: %b\r\nContent-Length: %d\r\n\r\n" % (
        start,
        client.lines,
        own_id,
        own_id,
        length,
    )


class ReplyFields(NamedTuple):
    """An upstream's response headers as clients get them, and what is still to be added."""

    fields: tuple[tuple[str, str], ...]
    lines: bytes  # the same, each with its CRLF
    request_id: str  # the upstream's; "": it gave none, and ours stands for it


def reply_fields(head: ResponseHead, *, secret: str | None) -> ReplyFields:
    """What goes on of a response's headers. Always the same for one head and secret, and remembered by the head."""
    if isinstance(head.reply, ReplyFields):
        return head.reply
    nominated = _nominated(head.headers)
    fields = [
        (name, masked(value, secret))
        for name, value in head.headers
        if not ((lower := name.lower()) in _RESPONSE_DROP or lower in nominated or lower.startswith("access-control-"))
    ]
    if head.get("content-type").lower().startswith("text/event-stream") and not head.get("x-accel-buffering"):
        fields.append(("x-accel-buffering", "no"))  # nginx in front of us would hold the stream back
    reply = ReplyFields(tuple(fields), header_lines(fields), masked(head.get("x-request-id"), secret))
    head.reply = reply
    return reply


def header_lines(fields: Iterable[tuple[str, str]]) -> bytes:
    """Headers as they stand in a head, each with its CRLF."""
    return "".join([f"{name}: {value}\r\n" for name, value in fields]).encode("utf-8", "surrogateescape")


def _nominated(headers: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Header names that a Connection header declares hop-by-hop."""
    values = [value for name, value in headers if name.lower() == "connection"]
    return (
        frozenset(option.strip().lower() for value in values for option in value.split(",")) if values else frozenset()
    )
