"""What only the front lane can get wrong: exchanges without a task of their own."""

import pytest

from meter_proxy.gateway.front import Front
from meter_proxy.gateway.quotas import MUST_ASK
from meter_proxy.usage import Outcome
from tests.integration.conftest import StartProxy
from tests.support import answers
from tests.support.config import KEY
from tests.support.harms import Streams
from tests.support.httpraw import BrokenOff, RawClient

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "12345678"}], "stream": True}
EVENTS = answers.chat_stream("a", "b", output_tokens=2)


@pytest.fixture
def lane() -> str:
    """Only this one."""
    return "front"


async def test_a_mistake_of_ours_after_the_settlement_bills_nothing_twice(
    start: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly once, whatever comes after it."""
    proxy, _ = await start(Streams(EVENTS))
    detach = Front.detach

    def fails(front: Front) -> None:
        monkeypatch.setattr(Front, "detach", detach)
        raise RuntimeError("a mistake")

    async with await RawClient.connect(proxy.url) as client:
        await (await client.request("POST", CHAT, ASK, key=KEY)).read()  # from now on there is a connection upstream
        await proxy.record()
        monkeypatch.setattr(Front, "detach", fails)
        await (await client.request("POST", CHAT, ASK, key=KEY)).read()
        record = await proxy.record(2)
    assert record.outcome == Outcome.COMPLETED
    assert not proxy.gateway.in_flight


async def test_a_mistake_while_a_grant_is_asked_for_leaves_nobody_waiting(start: StartProxy) -> None:
    """The client sees its connection end."""
    proxy, _ = await start(Streams(EVENTS))

    async def fails(call: object) -> None:
        raise RuntimeError("a mistake")

    quotas = proxy.gateway.quotas
    quotas.grant_now = lambda call: MUST_ASK  # type: ignore[method-assign]
    quotas.grant = fails  # type: ignore[method-assign]
    async with await RawClient.connect(proxy.url) as client:
        with pytest.raises(BrokenOff):
            await client.request("POST", CHAT, ASK, key=KEY)
