"""The files of the usage page over HTTP, on both listeners."""

import hashlib
import re
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from meter_proxy.admin.app import build
from meter_proxy.admin.page import Page
from meter_proxy.telemetry.feed import RecordFeed
from meter_proxy.telemetry.metrics import Metrics
from tests.integration.test_admin import FakeProxy

STATIC = files("meter_proxy.admin").joinpath("static")


@pytest.fixture(params=["index.html", "usage.html"])
async def page(request: pytest.FixtureRequest) -> AsyncIterator[tuple[TestClient[Any, Any], str]]:
    """A client, and the path of the page."""
    name: str = request.param
    path = "/" if name == "index.html" else "/usage"
    app = web.Application()
    Page(name, needs_token="no", api_prefix="/v1").add_to(app.router, path)
    async with TestClient(TestServer(app)) as client:
        yield client, path


async def test_everything_that_it_loads_is_there(page: tuple[TestClient[Any, Any], str]) -> None:
    """Its scripts, all that they import, and its styles; nothing from elsewhere, nothing inline."""
    client, path = page
    async with client.get(path) as response:
        html = await response.text()
    assert "{{" not in html
    assert not re.search(r"style=|<style|<script(?![^>]* src=)| on\w+=|https?:", html)
    waiting = {
        client.make_url(path).join(url).path
        for url in re.findall(r'(?:src|href)="([^"#]+)"', html)
        for url in [_url(url)]
    }
    loaded: set[str] = set()
    while waiting - loaded:
        url = (waiting - loaded).pop()
        loaded.add(url)
        async with client.get(url) as response:
            assert response.status == 200, url
            text = await response.text()
        if url.endswith(".js") and "/vendor/" not in url:
            waiting |= {client.make_url(url).join(_url(name)).path for name in re.findall(r'from "([^"]+)"', text)}
    assert len(loaded) > 8


def _url(text: str) -> Any:
    from yarl import URL

    return URL(text)


async def test_a_browser_has_to_ask_but_not_to_load_again(page: tuple[TestClient[Any, Any], str]) -> None:
    """304 with the same tag and policy; gzip where it is taken."""
    client, path = page
    async with client.get(path, headers={"Accept-Encoding": "gzip"}) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["Vary"] == "Accept-Encoding"
        tag, policy = response.headers["ETag"], response.headers["Content-Security-Policy"]
        whole = await response.text()
    async with client.get(path, headers={"Accept-Encoding": "identity"}) as response:
        assert "Content-Encoding" not in response.headers
        assert await response.text() == whole
    async with client.get(path, headers={"If-None-Match": f'"other", {tag}'}) as response:
        assert (response.status, await response.read()) == (304, b"")
        assert (response.headers["ETag"], response.headers["Content-Security-Policy"]) == (tag, policy)
    async with client.get(path, headers={"If-None-Match": '"other"'}) as response:
        assert response.status == 200


async def test_the_policy_lets_in_its_own_files_only(page: tuple[TestClient[Any, Any], str]) -> None:
    """Each directive as it is meant."""
    client, path = page
    async with client.get(path) as response:
        directives = set(response.headers["Content-Security-Policy"].split("; "))
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert directives == {
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    }


@pytest.mark.parametrize("name", ["static/nothing.js", "static/../app.py", "static/%2e%2e/app.py", "static/", "static"])
async def test_no_other_file_is_served(page: tuple[TestClient[Any, Any], str], name: str) -> None:
    """Neither the package's sources, nor a listing."""
    client, path = page
    async with client.get(f"{path.rstrip('/')}/{name}") as response:
        assert response.status == 404


def test_vendored_files_are_those_that_are_said() -> None:
    """The sums in their README."""
    vendor = STATIC.joinpath("vendor")
    sums = re.findall(r"`dist/(\S+)`: SHA-256 `([0-9a-f]{64})`", vendor.joinpath("README.md").read_text())
    assert len(sums) == 2
    for name, expected in sums:
        assert hashlib.sha256(vendor.joinpath(name).read_bytes()).hexdigest() == expected
    assert "MIT" in vendor.joinpath("uPlot.LICENSE.txt").read_text()


async def test_the_page_needs_no_token_but_its_data_does(tmp_path: Path) -> None:
    """A browser cannot send one before it has the page; data is never kept by a browser."""
    metrics = Metrics(version="1", servers={})
    app = build(metrics, RecordFeed(tmp_path, metrics, workers=1), FakeProxy(), admin_token="secret")
    async with TestClient(TestServer(app)) as client:
        for path, status in (("/", 200), ("/static/page.css", 200), ("/about.json", 401), ("/api/live", 401)):
            async with client.get(path) as response:
                assert response.status == status, path
                assert "Server" not in response.headers
        assert 'content="yes"' in await (await client.get("/")).text()
        async with client.get("/about.json", headers={"Authorization": "Bearer secret"}) as response:
            assert (response.status, response.headers["Cache-Control"]) == (200, "no-store")
