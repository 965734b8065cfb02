"""What we answer ourselves: errors in OpenAI's shape, and the headers that let browsers read them.

An error echoes nothing of the request and names nothing of the inside.
"""

from typing import NamedTuple

import msgspec
from aiohttp import web

from meter_proxy.errors import ClientError, UpstreamError, UpstreamTimeout

# `*` is right here: nothing is authenticated by cookies, every caller sends its key itself.
_EXPOSED = (
    "x-request-id, x-meter-request-id, x-meter-quota-warning, x-should-retry, retry-after, retry-after-ms, "
    "x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
_PREFLIGHT_MAX_AGE_S = 86_400
_ALLOWED_HEADERS = "authorization, content-type, api-key, x-api-key, x-request-id"


Headers = tuple[tuple[str, str], ...]


def cors_headers(request: web.BaseRequest) -> tuple[tuple[str, str], ...]:
    """For any answer to a browser; nothing for everybody else."""
    if "Origin" not in request.headers:
        return ()
    return (("access-control-allow-origin", "*"), ("access-control-expose-headers", _EXPOSED))


def preflight(request: web.BaseRequest) -> web.Response:
    """Answer a CORS preflight; it carries no credentials, so none are asked for."""
    asked = request.headers.get("Access-Control-Request-Headers", "")
    return web.Response(
        status=204,
        headers={
            "access-control-allow-origin": "*",
            "access-control-allow-methods": "GET, POST, OPTIONS",
            # "*" does not cover Authorization: what is asked for (SDKs send x-stainless-*) is named and allowed.
            "access-control-allow-headers": asked or _ALLOWED_HEADERS,
            "access-control-max-age": str(_PREFLIGHT_MAX_AGE_S),
            "vary": "access-control-request-headers",
        },
    )


class Answer(NamedTuple):
    """A whole answer of ours, JSON; `headers` without those of framing."""

    status: int
    headers: Headers
    body: bytes


def error_answer(
    status: int,
    code: str,
    message: str,
    *,
    type: str = "invalid_request_error",
    param: str | None = None,
    headers: Headers = (),
) -> Answer:
    """An error in OpenAI's shape."""
    body = {"error": {"message": message, "type": type, "param": param, "code": code}}
    return Answer(status, (("content-type", "application/json"), *headers), msgspec.json.encode(body))


def client_error_answer(exc: ClientError) -> Answer:
    """The refusal of a request."""
    return error_answer(exc.status, exc.code, exc.message, type=exc.type, param=exc.param, headers=exc.headers)


def upstream_error_answer(exc: UpstreamError, request_id: str) -> Answer:
    """What a caller is told of an upstream that did not answer; no details."""
    if isinstance(exc, UpstreamTimeout):
        status, code, message = 504, "upstream_timeout", "The upstream did not answer in time."
    else:
        status, code = 502, "upstream_unavailable"
        message = "The upstream cannot be reached, or broke off before it answered."
    ids = (("x-request-id", request_id), ("x-meter-request-id", request_id))
    return error_answer(status, code, message, type="server_error", headers=ids)


def response(request: web.BaseRequest, answer: Answer) -> web.Response:
    """An answer of ours as aiohttp sends it."""
    made = web.Response(status=answer.status, body=answer.body)
    for name, value in (*answer.headers, *cors_headers(request)):
        made.headers[name] = value
    return made


def error(
    request: web.BaseRequest,
    status: int,
    code: str,
    message: str,
    *,
    type: str = "invalid_request_error",
    headers: Headers = (),
) -> web.Response:
    """An error in OpenAI's shape, as aiohttp sends it."""
    return response(request, error_answer(status, code, message, type=type, headers=headers))


def client_error(request: web.BaseRequest, exc: ClientError) -> web.Response:
    """The refusal of a request, as aiohttp sends it."""
    refusal = response(request, client_error_answer(exc))
    if request.can_read_body and not request.content.is_eof():
        refusal.force_close()  # the rest of the body is not worth reading
    return refusal


def unavailable(code: str, message: str, *, retry_after_s: int) -> ClientError:
    """A refusal of new work that is our own doing: draining, or no place to write the bill."""
    return ClientError(503, code, message, type="server_error", headers=(("retry-after", str(retry_after_s)),))
