"""What we answer ourselves: errors in OpenAI's shape, and the headers that let browsers read them.

An error echoes nothing of the request and names nothing of the inside.
"""

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


def error(
    request: web.BaseRequest,
    status: int,
    code: str,
    message: str,
    *,
    type: str = "invalid_request_error",
    param: str | None = None,
    headers: tuple[tuple[str, str], ...] = (),
    request_id: str | None = None,
) -> web.Response:
    body = {"error": {"message": message, "type": type, "param": param, "code": code}}
    response = web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")
    for name, value in (*headers, *cors_headers(request)):
        response.headers[name] = value
    if request_id is not None:
        response.headers["x-request-id"] = response.headers["x-meter-request-id"] = request_id
    return response


def client_error(request: web.BaseRequest, exc: ClientError) -> web.Response:
    response = error(request, exc.status, exc.code, exc.message, type=exc.type, param=exc.param, headers=exc.headers)
    if request.can_read_body and not request.content.is_eof():
        response.force_close()  # the rest of the body is not worth reading
    return response


def upstream_error(request: web.BaseRequest, exc: UpstreamError, request_id: str) -> web.Response:
    if isinstance(exc, UpstreamTimeout):
        status, code, message = 504, "upstream_timeout", "The upstream did not answer in time."
    else:
        status, code = 502, "upstream_unavailable"
        message = "The upstream cannot be reached, or broke off before it answered."
    return error(
        request,
        status,
        code,
        message,
        type="server_error",
        request_id=request_id,
    )


def unavailable(code: str, message: str, *, retry_after_s: int) -> ClientError:
    """A refusal of new work that is our own doing: draining, or no place to write the bill."""
    return ClientError(503, code, message, type="server_error", headers=(("retry-after", str(retry_after_s)),))
