"""Whatever a caller sends: a clear error in OpenAI's shape, nothing sent upstream, nothing billed."""

import json

import pytest

from tests.integration.conftest import StartProxy
from tests.support import answers
from tests.support.config import ENVIRONMENT, KEY
from tests.support.harms import Answers, NeverAnswers
from tests.support.httpraw import RawClient, request_bytes

CHAT = "/v1/chat/completions"
GOOD = {"model": "m", "messages": []}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "invalid_json"),
        (b'{"model":"m","temperature":NaN}', "invalid_json"),
        (b'{"model":"m\xff"}', "invalid_json"),
        (b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b'{"model":"m","messages":[],"model":"n"}', "duplicate_key"),
        (b'{"model":"m","stream_options":{"include_usage":true,"include_usage":false},"stream":true}', "duplicate_key"),
        (b'{"messages":[]}', "missing_required_parameter"),
        (b'{"model":1}', "invalid_type"),
        (b'{"model":"m","stream":"yes"}', "invalid_type"),
        (b'{"model":"m","n":1.5}', "invalid_type"),
        (b'{"model":"m","messages":"hello"}', "invalid_type"),
        (b'{"model":"m","messages":{"role":"user"}}', "invalid_type"),
        (b'{"model":"m","stream":true,"stream_options":[]}', "invalid_type"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:30]),
)
async def test_malformed_body_is_400(start: StartProxy, body: bytes, code: str) -> None:
    """Strict JSON, typed fields: refused before anything is sent upstream."""
    proxy, upstream = await start(NeverAnswers())
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, body, key=KEY, headers=[("Content-Type", "application/json")])
        assert response.status == 400
        error = (await response.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert not upstream.posts
    assert not proxy.records


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ([], 401, "invalid_api_key"),
        ([("Authorization", "Bearer sk-wrong")], 401, "invalid_api_key"),
        ([("Authorization", f"Basic {KEY}")], 401, "invalid_api_key"),
        ([("Authorization", f"Bearer {KEY[:-1]}")], 401, "invalid_api_key"),
        ([("Authorization", f"Bearer {KEY}"), ("api-key", "sk-other")], 400, "conflicting_api_keys"),
    ],
)
async def test_wrong_key_is_refused_before_the_body_is_read(
    start: StartProxy, headers: list[tuple[str, str]], status: int, code: str
) -> None:
    """The answer comes though the body never does."""
    proxy, upstream = await start(NeverAnswers())
    async with await RawClient.connect(proxy.url) as client:
        whole = request_bytes("POST", CHAT, GOOD, headers=headers)
        await client.send(whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        response = await client.response()
        assert response.status == status
        assert (await response.json())["error"]["code"] == code
        if status == 401:
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.headers["x-should-retry"] == "false"
    assert not upstream.posts


@pytest.mark.parametrize("header", ["Authorization", "api-key", "x-api-key"])
async def test_a_key_comes_in_any_of_three_headers(start: StartProxy, header: str) -> None:
    """OpenAI's, Azure's and Anthropic's clients all work; twice the same key is fine."""
    proxy, _ = await start(Answers(answers.chat_json()))
    value = f"bearer {KEY}" if header == "Authorization" else KEY
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, GOOD, headers=[(header, value), ("X-Api-Key", KEY)])
        assert response.status == 200
        await response.read()


async def test_expired_and_disabled_keys_are_401(start: StartProxy) -> None:
    """As if they had never been there."""
    keys = [
        {"id": "old", "secret": {"env": "OLD"}, "expires_at": "2020-01-01T00:00:00Z", "quotas": "unlimited"},
        {"id": "off", "secret": {"env": "OFF"}, "disabled": True, "quotas": "unlimited"},
    ]
    environment = {**ENVIRONMENT, "OLD": "sk-old", "OFF": "sk-off"}
    proxy, _ = await start(NeverAnswers(), keys=keys, environment=environment)
    async with await RawClient.connect(proxy.url) as client:
        for secret in ("sk-old", "sk-off"):
            response = await client.request("POST", CHAT, GOOD, key=secret)
            assert response.status == 401
            await response.read()


async def test_unknown_or_forbidden_model_is_404(start: StartProxy) -> None:
    """One answer for both: it does not tell which models exist."""
    keys = [{"id": "alice", "secret": {"env": "ALICE_KEY"}, "quotas": "unlimited", "models": ["small*"]}]
    models = {"small-1": {"upstream": "local"}, "big": {"upstream": "local"}}
    proxy, upstream = await start(NeverAnswers(), keys=keys, models=models)
    bodies = []
    async with await RawClient.connect(proxy.url) as client:
        for model in ("big", "small-2"):
            response = await client.request("POST", CHAT, {**GOOD, "model": model}, key=KEY)
            assert response.status == 404
            bodies.append(await response.json())
    assert bodies[0] == bodies[1]
    assert bodies[0]["error"]["code"] == "model_not_found"
    assert not upstream.posts


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ([("Content-Type", "application/x-www-form-urlencoded")], 415, "unsupported_media_type"),
        ([("Content-Type", "application/json"), ("Content-Encoding", "gzip")], 415, "unsupported_content_encoding"),
    ],
)
async def test_wrong_type_or_coding_is_415(
    start: StartProxy, headers: list[tuple[str, str]], status: int, code: str
) -> None:
    """`curl -d` without a header says form: the error tells which header to send."""
    proxy, _ = await start(NeverAnswers())
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, GOOD, key=KEY, headers=headers)
        assert response.status == status
        assert (await response.json())["error"]["code"] == code


@pytest.mark.parametrize("chunked", [False, True])
async def test_too_large_a_body_is_413(start: StartProxy, chunked: bool) -> None:
    """By its declared length, or as soon as it is too long."""
    proxy, upstream = await start(NeverAnswers(), limits={"max_body": "10K"})
    async with await RawClient.connect(proxy.url) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
        if chunked:
            await client.send(f"{head}Transfer-Encoding: chunked\r\n\r\n4000\r\n".encode() + b"x" * 0x4000)
        else:
            await client.send(f"{head}Content-Length: 20000\r\n\r\n".encode())
        response = await client.response()
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "request_too_large"
    assert not upstream.posts


async def test_expect_100_continue_is_told_to_go_on_only_with_a_good_key(start: StartProxy) -> None:
    """A wrong key gets its 401 without having to send the body."""
    proxy, _ = await start(Answers(answers.chat_json()))
    body = json.dumps(GOOD).encode()
    for key, status in (("sk-wrong", 401), (KEY, 200)):
        async with await RawClient.connect(proxy.url) as client:
            head, _, _ = request_bytes("POST", CHAT, body, key=key, headers=[("Expect", "100-continue")]).partition(
                b"\r\n\r\n"
            )
            await client.send(head + b"\r\n\r\n")
            if status == 200:
                await client.send(body)
            response = await client.response()
            assert response.status == status
            await response.read()


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", CHAT, 405), ("POST", "/v1/models", 405)]
)
async def test_unknown_url_and_method_are_openai_shaped(start: StartProxy, method: str, path: str, status: int) -> None:
    """SDKs print the message of the JSON, not an HTML page."""
    proxy, _ = await start(NeverAnswers())
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request(method, path, key=KEY)
        assert response.status == status
        assert set((await response.json())["error"]) == {"message", "type", "param", "code"}
        assert "server" not in response.headers


async def test_browsers_preflight_without_a_key(start: StartProxy) -> None:
    """No auth, explicit headers (a `*` would not cover Authorization), and errors can be read too."""
    proxy, _ = await start(NeverAnswers())
    origin = ("Origin", "http://localhost:5173")
    async with await RawClient.connect(proxy.url) as client:
        asked = [
            origin,
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization,content-type,x-stainless-os"),
        ]
        response = await client.request("OPTIONS", CHAT, headers=asked)
        assert response.status == 204
        assert response.headers["access-control-allow-origin"] == "*"
        assert "authorization" in response.headers["access-control-allow-headers"]
        assert "x-stainless-os" in response.headers["access-control-allow-headers"]
        await response.read()
        refused = await client.request("POST", CHAT, GOOD, headers=[origin])
        assert refused.status == 401
        assert refused.headers["access-control-allow-origin"] == "*"


async def test_operators_credential_is_added_and_never_shown(start: StartProxy) -> None:
    """Upstream errors pass with status and body, less the credential; the client's own key stays here."""
    secret = "sk-operator-0123456789"
    script = Answers(answers.error_json(f"Incorrect API key provided: {secret}."), status=401)
    proxy, upstream = await start(script, upstream={"api_key": secret})
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request(
            "POST", CHAT, GOOD, key=KEY, headers=[("Cookie", "a=b"), ("Origin", "http://x")]
        )
        assert response.status == 401
        body = await response.read()
    assert secret.encode() not in body
    assert b"Incorrect API key provided: **********************." in body
    assert upstream.posts[0].headers["authorization"] == f"Bearer {secret}"
    assert KEY not in str(upstream.posts[0].raw_head)
    assert not {"cookie", "origin", "api-key", "x-api-key"} & {name.lower() for name in upstream.posts[0].headers}
    record = await proxy.record()
    assert (record.outcome, record.output_tokens, record.input_tokens) == ("client_error", 0, 0)


async def test_request_ids_go_both_ways(start: StartProxy) -> None:
    """Ours always as x-meter-request-id; the upstream's as x-request-id if it has one; the client's in the record."""
    proxy, upstream = await start(Answers(answers.chat_json()))
    upstream.then(Answers(answers.chat_json()), Answers(answers.chat_json(), headers=[("X-Request-Id", "up-1")]))
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("POST", CHAT, GOOD, key=KEY, headers=[("X-Request-Id", "mine")])
        await response.read()
        record = await proxy.record()
        assert response.headers["x-meter-request-id"] == response.headers["x-request-id"] == record.id
        assert record.client_request_id == "mine"
        assert upstream.posts[0].headers["x-request-id"] == "mine"
        response = await client.request("POST", CHAT, GOOD, key=KEY)
        await response.read()
        assert response.headers["x-request-id"] == "up-1"


async def test_models_lists_what_the_caller_may_ask_for(start: StartProxy) -> None:
    """Configured names, and what the upstream lists behind a `*`, less what the key may not use."""
    keys = [{"id": "alice", "secret": {"env": "ALICE_KEY"}, "quotas": "unlimited", "models": ["a*"]}]
    models = {"a1": {"upstream": "local"}, "b1": {"upstream": "local"}, "*": {"upstream": "local"}}
    proxy, upstream = await start(NeverAnswers(), keys=keys, models=models)
    listed = b'{"object":"list","data":[{"id":"a2"},{"id":"b2"}]}'
    upstream.on_get("/v1/models", lambda exchange: exchange.answer(listed))
    async with await RawClient.connect(proxy.url) as client:
        response = await client.request("GET", "/v1/models", key=KEY)
        assert [entry["id"] for entry in (await response.json())["data"]] == ["a1", "a2"]
        one = await client.request("GET", "/v1/models/a2", key=KEY)
        assert (await one.json())["id"] == "a2"
        missing = await client.request("GET", "/v1/models/b1", key=KEY)
        assert missing.status == 404
        await missing.read()
        assert (await client.request("GET", "/v1/models")).status == 401
