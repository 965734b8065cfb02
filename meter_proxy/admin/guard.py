"""Who may ask the admin listener.

With an `admin_token`: everybody who sends it as `Authorization: Bearer` (for Prometheus: `authorization` with
`credentials` in the scrape configuration). Health stays open, for the probes of orchestrators, and so do the files of
the usage page: they hold nothing, and ask the reader for the token.

Without one the listener is on loopback, and the danger is a web page in a browser on this machine: so no request
from a foreign origin, and none under a foreign host name (DNS rebinding makes the two the same).
"""

import ipaddress
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from meter_proxy.config.secrets import is_bearer

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
PAGE, PAGE_FILES = "/", "/static/"


def error(status: int, code: str, message: str, *, param: str | None = None) -> web.Response:
    """An error in the shape of OpenAI's API."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")


def guard(admin_token: str | None) -> Middleware:
    """Make the middleware that lets in whom it should."""

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in OPEN_PATHS:
            return await handler(request)
        if (
            admin_token is not None
            and not _is_page(request.path)
            and not is_bearer(request.headers.get("Authorization", ""), admin_token)
        ):
            refusal = error(401, "invalid_admin_token", "Send the admin_token as `Authorization: Bearer TOKEN`.")
            refusal.headers["WWW-Authenticate"] = "Bearer"
            return refusal
        if admin_token is None and not _is_local_name(request.host):
            return error(403, "foreign_host", "Ask for it by IP address or as localhost, or set an admin_token.")
        if _is_foreign(request):
            return error(403, "foreign_origin", "Not for other web pages.")
        return await handler(request)

    return admit


def _is_page(path: str) -> bool:
    return path == PAGE or path.startswith(PAGE_FILES)


def _is_local_name(host: str) -> bool:
    """Whether a Host header names this machine in a way that no DNS server can make up."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_foreign(request: web.Request) -> bool:
    """Whether a web page asks: of another origin, or of any for what changes something."""
    origin = request.headers.get("Origin")
    if origin is None:
        return False
    return request.method not in ("GET", "HEAD") or urlsplit(origin).netloc != request.host
