"""The product as people run it: real processes, one for a whole module of clients."""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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

    @property
    def base_url(self) -> str:
        """What an OpenAI client calls its base URL."""
        return f"{self.url}/v1"

    @property
    def environment(self) -> dict[str, str]:
        """For client programs in other languages."""
        return {**os.environ, "BASE_URL": self.url, "API_KEY": self.key, "NO_PROXY": "127.0.0.1"}

    async def record(self, *, model: str, outcome: str | None = None) -> dict[str, Any]:
        """Wait for the newest record of `model` (with `outcome`, if given)."""
        async with await RawClient.connect(self.admin_url) as client:

            async def look() -> dict[str, Any] | None:
                response = await client.request("GET", "/api/records?limit=1000")
                records: list[dict[str, Any]] = (await response.json())["data"]
                fitting = [r for r in records if r["model"] == model and outcome in (None, r["outcome"])]
                return fitting[-1] if fitting else None

            return await until_async(look, f"a record of {model} {outcome or ''}")


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """A proxy with the key KEY and the page's models, in front of a mock backend."""
    async with running_mock_backend("--rate", TOKENS_PER_S) as backend:
        models = {name: {"upstream": "local", "name": "mock-small"} for name in MODELS}
        config = basic_config(backend, tmp_path, models=models, path_prefixes=["/v1", "/v1/llm"])
        async with running_proxy(write_config(tmp_path, config), env=ENVIRONMENT) as proxy:
            yield Service(proxy.url, proxy.admin_url)
