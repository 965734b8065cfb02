"""The product as people run it: real processes, one for a whole module of clients."""

import fcntl
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from meter_proxy.gateway.settlement import rfc3339
from tests.support.browser import browsing
from tests.support.config import ENVIRONMENT, KEY, basic_config, write_config
from tests.support.httpraw import RawClient
from tests.support.proc import running_mock_backend, running_proxy
from tests.support.waiting import until_async

MODELS = ("gpt-4", "auto", "auto-fast", "mock-small")  # the names that the page of the seed uses, and the mock's
TOKENS_PER_S = "60"  # slow enough to hang up in the middle, fast enough for a test


@dataclass
class Service:
    """A running proxy in front of a running mock backend."""

    url: str  # without a path
    admin_url: str
    key: str = KEY
    since: str = field(default_factory=lambda: rfc3339(time.time()))  # what was admitted before is another test's

    @property
    def base_url(self) -> str:
        """What an OpenAI client calls its base URL."""
        return f"{self.url}/v1"

    @property
    def environment(self) -> dict[str, str]:
        """For client programs in other languages."""
        return {**os.environ, "BASE_URL": self.url, "API_KEY": self.key, "NO_PROXY": "127.0.0.1"}

    async def record(self, *, model: str, outcome: str | None = None) -> dict[str, Any]:
        """Wait for the newest record of `model` (with `outcome`, if given) that this test has made."""
        async with await RawClient.connect(self.admin_url) as client:

            async def look() -> dict[str, Any] | None:
                response = await client.request("GET", "/api/records?limit=1000")
                records: list[dict[str, Any]] = (await response.json())["data"]
                fitting = [
                    record
                    for record in records
                    if record["model"] == model
                    and record["time"] >= self.since
                    and outcome in (None, record["outcome"])
                ]
                return fitting[-1] if fitting else None

            return await until_async(look, f"a record of {model} {outcome or ''}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A proxy with the key KEY and the page's models, in front of a mock backend."""
    directory = tmp_path_factory.mktemp("service")
    async with running_mock_backend("--rate", TOKENS_PER_S) as backend:
        models = {name: {"upstream": "local", "name": "mock-small"} for name in MODELS}
        config = basic_config(backend, directory, models=models, path_prefixes=["/v1", "/v1/llm"])
        async with running_proxy(write_config(directory, config), env=ENVIRONMENT) as proxy:
            yield Service(proxy.url, proxy.admin_url)


@pytest.fixture
def service(running_service: Service) -> Service:
    """The module's service; of its records, this test's only."""
    return replace(running_service, since=rfc3339(time.time()))


@pytest.fixture
def usual_ports() -> Iterator[None]:
    """The ports that people use, such as 8080: one test at a time has them, of all that a user runs on this machine."""
    with (Path(tempfile.gettempdir()) / f"meter-proxy-test-usual-ports-{os.getuid()}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """Headless Chromium. Tests that use it run on the module's loop."""
    async with browsing() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def browser(chromium: Browser) -> AsyncIterator[Browser]:
    """The module's Chromium; what a test has opened is closed after it, and its profiles are forgotten."""
    yield chromium
    for context in chromium.contexts:
        await context.close()
