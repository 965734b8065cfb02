"""Addresses, URLs and path prefixes."""

import pytest

from meter_proxy.config import urls
from meter_proxy.config.schema import Address, RedisConfig


@pytest.mark.parametrize(
    ("written", "address", "loopback"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080), True),
        ("127.9.9.9:0", Address("127.9.9.9", 0), True),
        ("localhost:80", Address("localhost", 80), True),
        ("[::1]:8080", Address("::1", 8080), True),
        ("0.0.0.0:8080", Address("0.0.0.0", 8080), False),
        ("[::]:8080", Address("::", 8080), False),
        ("proxy.example:8080", Address("proxy.example", 8080), False),
    ],
)
def test_addresses_are_read_and_written_alike(written: str, address: Address, loopback: bool) -> None:
    """What was written comes out again; loopback is known for what it is."""
    assert urls.host_port(written) == address
    assert str(address) == written
    assert address.is_loopback is loopback


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("8080", "must be HOST:PORT, such as 127.0.0.1:8080"),
        ("h:65536", "must be HOST:PORT, such as 127.0.0.1:8080"),
        ("h:", "must be HOST:PORT, such as 127.0.0.1:8080"),
        (":8080", "has no host; write 127.0.0.1:8080, or 0.0.0.0:8080 for all interfaces"),
        ("::1:8080", "an IPv6 address stands in brackets, such as [::1]:8080"),
        ("[::g]:1", "the host in brackets is not an IPv6 address"),
        ("http://h:1", "an IPv6 address stands in brackets, such as [::1]:8080"),
        ("a b:1", "the host is neither a name nor an address"),
    ],
)
def test_wrong_addresses_are_answered_with_a_right_one(written: str, message: str) -> None:
    """One sentence that says what to write."""
    with pytest.raises(ValueError) as caught:
        urls.host_port(written)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("https://api.example/", "https://api.example"),
    ],
)
def test_base_url_loses_only_its_last_slash(written: str, meant: str) -> None:
    """An upstream at the root is possible; nothing is added to what a file says."""
    assert urls.base_url(written) == meant


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("ftp://h", "must be a URL such as http://127.0.0.1:8000/v1"),
        ("127.0.0.1:8000", "must be a URL such as http://127.0.0.1:8000/v1"),
        ("http://", "must be a URL such as http://127.0.0.1:8000/v1"),
        ("http://:80/v1", "must be a URL such as http://127.0.0.1:8000/v1"),
        ("http://h:99999/v1", "is not a URL: its host or port is broken"),
        ("http://[h/v1", "is not a URL: its host or port is broken"),
        ("http://u:hunter2@h/v1", "must not hold a user or password; use api_key"),
        ("http://hunter2@h/v1", "must not hold a user or password; use api_key"),
        ("http://h/v1?key=hunter2", "must not have a query or fragment"),
        ("http://h/v1#", "must not have a query or fragment"),
        ("http://h/v 1", "must be plain ASCII without blanks"),
        ("http://h/v1\r\nX: y", "must be plain ASCII without blanks"),
    ],
)
def test_base_url_refuses_what_would_not_be_sent(written: str, message: str) -> None:
    """Scheme, host, and a path; a password in it is refused and not repeated."""
    with pytest.raises(ValueError) as caught:
        urls.base_url(written)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/api/v3", "http://127.0.0.1:8000/api/v3"),
        ("nonsense", "nonsense"),
        ("http://[h", "http://[h"),
    ],
)
def test_a_url_on_the_command_line_may_leave_out_v1(typed: str, meant: str) -> None:
    """`--upstream http://host:8000` works for a server whose API is under /v1, as nearly all are."""
    assert urls.with_default_path(typed) == meant


@pytest.mark.parametrize(
    "url",
    [
        "embedded",
        "redis://127.0.0.1:6379/0",
        "rediss://user:p@ss@h:6380",
        "unix:///run/redis.sock?db=1",
        "unix://:pass@/run/redis.sock",
        "redis+sentinel://a:26379,b:26379/mymaster/0",
        "redis+cluster://[::1]:7000",
    ],
)
def test_every_kind_of_store_can_be_named(url: str) -> None:
    """All the schemes of the contract are read."""
    assert urls.store_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "memcached://hunter2",
        "redis://",
        "redis://:hunter2@",
        "redis://h:hunter2",
        "unix://hunter2",
        "hunter2",
        "redis:h",
    ],
)
def test_a_wrong_store_url_is_never_repeated(url: str) -> None:
    """It may hold a password."""
    with pytest.raises(ValueError) as caught:
        urls.store_url(url)
    assert "hunter2" not in str(caught.value)


def test_a_wrong_scheme_is_told_the_right_ones() -> None:
    """What a store may be is said at once, all of it."""
    with pytest.raises(ValueError) as caught:
        urls.store_url("http://h")
    assert (
        str(caught.value)
        == "must be embedded, or a URL with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
    )


def test_a_store_is_shown_without_its_password() -> None:
    """Neither repr nor the printable form of the store's URL holds user, password or parameters."""
    redis = RedisConfig(url="redis://user:hunt@er2@h:6379/3?password=hunter3")
    assert redis.shown_url == "redis://h:6379/3"
    assert "hunt" not in repr(redis)


@pytest.mark.parametrize("prefix", ["/v1", "/v1/llm", "/openai/deployments/a.b-c_d~e", "/healthzoo"])
def test_plain_paths_are_good_prefixes(prefix: str) -> None:
    """Whatever needs no escaping."""
    assert urls.path_prefix(prefix) == prefix


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("v1", "must start with a slash: /v1"),
        ("/", "must not end with a slash"),
        ("/v1/", "must not end with a slash"),
        ("/a/../b", "must not have . or .. as a segment"),
        ("/./b", "must not have . or .. as a segment"),
        ("/a//b", "must be a plain path such as /v1, without query, blanks, % or double slashes"),
        ("/a%2fb", "must be a plain path such as /v1, without query, blanks, % or double slashes"),
        ("/{model}", "must be a plain path such as /v1, without query, blanks, % or double slashes"),
        ("/v1?x", "must be a plain path such as /v1, without query, blanks, % or double slashes"),
        ("/healthz", "/healthz is taken by the proxy itself"),
        ("/readyz/v1", "/readyz is taken by the proxy itself"),
    ],
)
def test_prefixes_that_no_request_could_match_are_refused(prefix: str, message: str) -> None:
    """One sentence that says why."""
    with pytest.raises(ValueError) as caught:
        urls.path_prefix(prefix)
    assert str(caught.value) == message


def test_two_prefixes_never_make_one_path_of_two_operations() -> None:
    """/v1 + chat/completions is /v1/chat + completions: who is billed for what must not depend on order."""
    assert urls.clashes(["/v1", "/v1/llm"]) == {}
    assert urls.clashes(["/v1", "/v2", "/v1"]) == {2: "/v1 is listed twice"}
    message = "/v1/chat/completions would mean two operations, under /v1 and under /v1/chat"
    assert urls.clashes(["/v1", "/v1/chat"]) == {1: message}
