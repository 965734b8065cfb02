"""The usage page over HTTP: the files in `static/`, as they are, under a strict content security policy.

There are two pages over the same modules: `index.html` for the operator (at `/` of the admin listener) and
`usage.html` for the holder of a key (at `/usage` of the public one). They hold no data: their scripts ask for it,
with the credential that the reader gave. Files are read once; a browser asks each time whether they have changed.
"""

import gzip
import hashlib
import re
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

from aiohttp import web

CONTENT_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".md": "text/markdown",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
}


class File(NamedTuple):
    """One file, ready to be sent."""

    content_type: str
    body: bytes
    gzipped: bytes
    etag: str

    @classmethod
    def of(cls, name: str, body: bytes) -> "File":
        """`name` says the type."""
        suffix = name[name.rfind(".") :]
        return cls(CONTENT_TYPES[suffix], body, gzip.compress(body, mtime=0), hashlib.sha256(body).hexdigest()[:32])


class Page:
    """One page and the files that it loads."""

    def __init__(self, name: str, **facts: str) -> None:
        """`name` is the HTML file; each of `facts` takes the place of its name in double braces there."""
        folder = files("meter_proxy.admin").joinpath("static")
        html = folder.joinpath(name).read_text("utf-8")
        self._page = File.of(name, re.sub(r"{{(\w+)}}", lambda fact: escape(facts[fact[1]]), html).encode())
        self._files = {path: File.of(path, entry.read_bytes()) for path, entry in _walk(folder)}

    def add_to(self, router: web.UrlDispatcher, path: str) -> None:
        """Serve the page at `path`, its files below `PATH/static/`."""
        router.add_get(path, self._get_page)
        router.add_get(path.rstrip("/") + "/static/{name:.+}", self._get_file)

    async def _get_page(self, request: web.Request) -> web.Response:
        return _answer(request, self._page)

    async def _get_file(self, request: web.Request) -> web.Response:
        file = self._files.get(request.match_info["name"])
        if file is None:
            raise web.HTTPNotFound
        return _answer(request, file)


def _walk(folder: Traversable, prefix: str = "") -> list[tuple[str, Traversable]]:
    """All files below `folder`, by their path; without the pages themselves."""
    found: list[tuple[str, Traversable]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _walk(entry, f"{prefix}{entry.name}/")
        elif not entry.name.endswith(".html"):
            found.append((prefix + entry.name, entry))
    return found


def _answer(request: web.Request, file: File) -> web.Response:
    if any(tag.value in (file.etag, "*") for tag in request.if_none_match or ()):
        response = web.Response(status=304, headers=HEADERS)
    else:
        response = web.Response(body=file.body, content_type=file.content_type, charset="utf-8", headers=HEADERS)
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            response.body = file.gzipped
            response.headers["Content-Encoding"] = "gzip"
    response.etag = file.etag
    return response
