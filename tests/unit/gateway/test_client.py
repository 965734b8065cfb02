"""The way past aiohttp to a client's transport."""

import asyncio
from typing import cast

from aiohttp.test_utils import make_mocked_request

from meter_proxy.gateway.client import AiohttpClient


class ClosedUnheard:
    """A transport that is gone, as uvloop's: it takes nothing, and says so."""

    def is_closing(self) -> bool:
        return True

    def write(self, data: bytes) -> None:
        raise RuntimeError("the handler is closed")


def test_a_connection_that_is_gone_unheard_takes_everything_and_nothing_happens() -> None:
    """The loss is told a moment later."""
    client = AiohttpClient(make_mocked_request("POST", "/v1/chat/completions"))
    client.transport = cast(asyncio.Transport, ClosedUnheard())
    client.write(b"a", None)
    client.write(b"a", b"1\r\na\r\n")
    assert client.unsent_bytes() == 0
