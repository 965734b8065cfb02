"""`running_usage: auto`: the server's own identity endpoints decide, once, and hold nobody up for long."""

import asyncio

import pytest

from tests.integration.conftest import StartProxy
from tests.support import answers
from tests.support.config import KEY
from tests.support.harms import Answers, Streams
from tests.support.httpraw import RawClient
from tests.support.upstream import UpstreamExchange

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [], "stream": True}
STREAM = Streams(answers.chat_stream("a"))
AUTO = {"running_usage": "auto"}
DEEP = b'{"version":%b%b}' % (b"[" * 100_000, b"]" * 100_000)


async def ask(url: str) -> None:
    """One whole stream."""
    async with await RawClient.connect(url) as client:
        response = await client.request("POST", CHAT, ASK, key=KEY)
        assert response.status == 200
        await response.read()


@pytest.mark.parametrize(
    ("path", "body", "vllm", "llamacpp"),
    [
        ("/version", b'{"version":"0.11.0"}', True, False),
        ("/get_model_info", b'{"model_path":"qwen"}', True, False),
        ("/props", b'{"default_generation_settings":{}}', False, True),
        ("/version", b'"0.11.0"', False, False),
        ("/version", b"<html>version</html>", False, False),
        ("/version", b'{"version":"\xff"}', False, False),
        ("/version", DEEP, False, False),
    ],
    ids=["vLLM", "SGLang", "llama.cpp", "a string", "HTML", "no UTF-8", "nested too deep"],
)
async def test_a_server_is_known_by_its_own_endpoint(
    start: StartProxy, path: str, body: bytes, vllm: bool, llamacpp: bool
) -> None:
    """And asked for running usage in its own words; whatever cannot be read means nothing."""
    proxy, upstream = await start(STREAM, upstream=AUTO)
    upstream.on_get(path, Answers(body))
    await ask(proxy.url)
    sent = upstream.posts[0].json()
    assert sent["stream_options"].get("continuous_usage_stats", False) is vllm
    assert sent.get("timings_per_token", False) is llamacpp


async def test_it_is_asked_once_with_the_operators_credential(start: StartProxy) -> None:
    """Ten first callers at once, then one more: one look."""
    proxy, upstream = await start(STREAM, upstream={**AUTO, "api_key": "sk-operator"})
    upstream.on_get("/version", Answers(b'{"version":"0.11.0"}'))
    await asyncio.gather(*(ask(proxy.url) for _ in range(10)))
    await ask(proxy.url)
    looks = [request for request in upstream.requests if request.method == "GET"]
    assert [(look.target, look.headers["authorization"]) for look in looks] == [("/version", "Bearer sk-operator")]
    assert all(post.json()["stream_options"]["continuous_usage_stats"] for post in upstream.posts)


async def test_a_server_that_does_not_say_who_it_is_holds_a_caller_up_for_a_second_at_most(start: StartProxy) -> None:
    """Then it is asked without running usage; so is a plain call, at once."""
    release = asyncio.Event()

    async def says_nothing(exchange: UpstreamExchange) -> None:
        await release.wait()

    proxy, upstream = await start(STREAM, upstream=AUTO)
    upstream.on_get("/version", says_nothing)
    async with asyncio.timeout(5):
        await ask(proxy.url)
    release.set()
    assert upstream.posts[0].json()["stream_options"] == {"include_usage": True}


async def test_plain_calls_do_not_ask(start: StartProxy) -> None:
    """Running usage is for streams."""
    proxy, upstream = await start(Answers(answers.chat_json()), upstream=AUTO)
    async with await RawClient.connect(proxy.url) as client:
        await (await client.request("POST", CHAT, {**ASK, "stream": False}, key=KEY)).read()
    assert [request.method for request in upstream.requests] == ["POST"]
