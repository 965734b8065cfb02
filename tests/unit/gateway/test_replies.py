"""What we answer ourselves: OpenAI's shape, readable for browsers, and nothing of the inside."""

import json

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from meter_proxy.errors import ClientError, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from meter_proxy.gateway.replies import (
    client_error,
    cors_headers,
    preflight,
    response,
    unavailable,
    upstream_error_answer,
)

PLAIN = make_mocked_request("POST", "/v1/chat/completions")
BROWSER = make_mocked_request("POST", "/v1/chat/completions", headers={"Origin": "http://localhost:5173"})


def body_of(response: web.Response) -> dict[str, dict[str, object]]:
    """The error object, parsed."""
    assert isinstance(response.body, bytes)
    document: dict[str, dict[str, object]] = json.loads(response.body)
    return document


@pytest.mark.parametrize(
    ("exc", "status", "code"),
    [
        (UpstreamUnavailable("upstream secret-name cannot be reached"), 502, "upstream_unavailable"),
        (UpstreamTimeout("upstream secret-name sent no answer within 300 s"), 504, "upstream_timeout"),
    ],
)
def test_an_upstreams_failure_names_nothing_of_the_inside(exc: UpstreamError, status: int, code: str) -> None:
    """The client learns what happened, the operator's log to whom."""
    made = response(PLAIN, upstream_error_answer(exc, "req_1"))
    error = body_of(made)["error"]
    assert (made.status, error["type"], error["code"], error["param"]) == (status, "server_error", code, None)
    assert "secret-name" not in str(error["message"])
    assert made.headers["x-request-id"] == made.headers["x-meter-request-id"] == "req_1"


def test_a_refusal_carries_its_param_and_headers() -> None:
    """As the ClientError says."""
    exc = ClientError(400, "invalid_type", "no", param="stream", headers=(("x-should-retry", "false"),))
    made = client_error(PLAIN, exc)
    assert body_of(made) == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "stream", "code": "invalid_type"}
    }
    assert made.headers["x-should-retry"] == "false"


def test_browsers_may_read_errors_and_nobody_else_sees_cors() -> None:
    """`*`, because no cookie authenticates anybody."""
    refused = client_error(BROWSER, unavailable("draining", "Later.", retry_after_s=1))
    assert (refused.status, refused.headers["access-control-allow-origin"], refused.headers["retry-after"]) == (
        503,
        "*",
        "1",
    )
    assert "x-meter-request-id" in refused.headers["access-control-expose-headers"]
    assert cors_headers(PLAIN) == ()


def test_preflight_allows_what_is_asked_for_by_name() -> None:
    """`*` would not cover Authorization."""
    asked = make_mocked_request("OPTIONS", "/", headers={"Access-Control-Request-Headers": "x-stainless-os"})
    assert preflight(asked).headers["access-control-allow-headers"] == "x-stainless-os"
    assert "authorization" in preflight(make_mocked_request("OPTIONS", "/")).headers["access-control-allow-headers"]
