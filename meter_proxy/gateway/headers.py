"""Which headers go on, in both directions.

Never forwarded: hop-by-hop headers (RFC 9110 §7.6.1), credentials, and what belongs to the connection
between the client and us. Browsers' own headers stay here as well: CORS is answered by us, and some
backends (Ollama) refuse an Origin that they do not know.
"""

from collections.abc import Iterable

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


def request_head(
    path: str,
    host: str,
    client_headers: Iterable[tuple[str, str]],
    *,
    api_key: str | None,
    length: int,
    request_id: str,
) -> bytes:
    """The head of our request to the upstream, with the operator's credential instead of the client's."""
    client_headers = list(client_headers)
    nominated = _nominated(client_headers)
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}"]
    named_by_client = False
    for name, value in client_headers:
        lower = name.lower()
        if lower in _REQUEST_DROP or lower in nominated or lower.startswith("sec-"):
            continue
        named_by_client = named_by_client or lower == "x-request-id"
        lines.append(f"{name}: {value}")
    if not named_by_client:
        lines.append(f"X-Request-Id: {request_id}")
    lines.append(f"X-Meter-Request-Id: {request_id}")
    lines.append("Content-Type: application/json")
    lines.append("Accept-Encoding: identity")  # a coded stream could be metered, but nothing taken out of it
    if api_key:
        lines.append(f"Authorization: Bearer {api_key}")
    lines.append(f"Content-Length: {length}\r\n\r\n")
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")


def reply_headers(head: ResponseHead, request_id: str, *, secret: str | None) -> list[tuple[str, str]]:
    """The upstream's headers as the client gets them, and our request id beside it."""
    nominated = _nominated(head.headers)
    out = [
        (name, masked(value, secret))
        for name, value in head.headers
        if not ((lower := name.lower()) in _RESPONSE_DROP or lower in nominated or lower.startswith("access-control-"))
    ]
    out.append(("x-request-id", masked(head.get("x-request-id"), secret) or request_id))
    out.append(("x-meter-request-id", request_id))
    if head.get("content-type").lower().startswith("text/event-stream") and not head.get("x-accel-buffering"):
        out.append(("x-accel-buffering", "no"))  # nginx in front of us would hold the stream back
    return out


def _nominated(headers: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Header names that a Connection header declares hop-by-hop."""
    values = [value for name, value in headers if name.lower() == "connection"]
    return (
        frozenset(option.strip().lower() for value in values for option in value.split(",")) if values else frozenset()
    )
