"""Who may ask the admin listener."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from meter_proxy.admin.guard import guard


async def passed(request: web.Request) -> web.StreamResponse:
    """What is behind the guard."""
    return web.Response(text="passed")


async def status(method: str, path: str, headers: dict[str, str], admin_token: str | None = None) -> int:
    """The status of the answer to a request."""
    request = make_mocked_request(method, path, headers={"Host": "127.0.0.1:9090", **headers})
    return (await guard(admin_token)(request, passed)).status


TOKEN = "s\u00e9cret token"
RIGHT = f"Bearer {TOKEN}"


@pytest.mark.parametrize("path", ["/metrics", "/api/records", "/api/usage", "/api/live", "/-/reload", "/nothing"])
@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer wrong", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        (RIGHT + "x", 401),
        (RIGHT, 200),
        (RIGHT.replace("Bearer", "bearer"), 200),
    ],
)
async def test_with_a_token_everybody_must_send_it(path: str, authorization: str | None, expected: int) -> None:
    """Whatever they ask for; the scheme in any case, the token exactly."""
    headers = {} if authorization is None else {"Authorization": authorization}
    assert await status("GET", path, headers, TOKEN) == expected


@pytest.mark.parametrize("path", ["/", "/static/main.js"])
async def test_the_page_itself_holds_nothing_and_is_open(path: str) -> None:
    """A browser cannot send a token for it; but it comes by a name, from a page of ours, as everything else."""
    assert await status("GET", path, {}, TOKEN) == 200
    assert await status("GET", path, {"Host": "evil.example"}) == 403
    assert await status("GET", path, {"Origin": "http://evil.example"}, TOKEN) == 403


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_is_open_to_everybody(path: str) -> None:
    """Probes have no token, and come under any name."""
    assert await status("GET", path, {"Host": "proxy.internal", "Origin": "http://evil.example"}, TOKEN) == 200
    assert await status("GET", path, {"Host": "proxy.internal"}) == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:9090", 200),
        ("localhost", 200),
        ("localhost:9090", 200),
        ("proxy.localhost:9090", 200),
        ("[::1]:9090", 200),
        ("10.1.2.3", 200),
        ("evil.example", 403),
        ("evil.example:9090", 403),
        ("127.0.0.1.evil.example", 403),
        ("notlocalhost", 403),
        ("", 403),
    ],
)
async def test_without_a_token_a_name_that_dns_can_make_up_is_refused(host: str, expected: int) -> None:
    """A web page whose own name was rebound to 127.0.0.1 sends that name."""
    assert await status("GET", "/api/records", {"Host": host}) == expected


async def test_with_a_token_any_name_is_good() -> None:
    """The page does not know the token."""
    assert await status("GET", "/metrics", {"Host": "proxy.internal", "Authorization": RIGHT}, TOKEN) == 200


@pytest.mark.parametrize(
    ("method", "origin", "expected"),
    [
        ("GET", "http://evil.example", 403),
        ("GET", "null", 403),
        ("GET", "http://127.0.0.1:8080", 403),
        ("GET", "http://127.0.0.1:9090", 200),
        ("POST", "http://evil.example", 403),
        ("POST", "http://127.0.0.1:9090", 403),
    ],
)
async def test_other_web_pages_are_refused(method: str, origin: str, expected: int) -> None:
    """And for what changes something, every web page."""
    assert await status(method, "/api/records", {"Origin": origin}) == expected
