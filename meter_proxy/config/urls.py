"""Addresses, URLs and path prefixes, as strict as the code that uses them needs.

A URL may hold a password, also where none is allowed: no message here repeats one.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import SplitResult, urlsplit

from meter_proxy.config import values

# What follows a path prefix; two prefixes may not make one path of two operations.
OPERATION_PATHS = ("chat/completions", "completions", "embeddings", "models", "usage")
OWN_PATHS = ("healthz", "readyz")
MANY_SERVERS = ("redis+sentinel", "redis+cluster", "rediss+sentinel", "rediss+cluster")
SERVED_SCHEMES = "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)+\Z")


def host_port(value: Any) -> tuple[str, int]:
    """`127.0.0.1:8080`, `localhost:8080`, `[::1]:8080`; port 0 lets the system choose."""
    host, colon, port = values.text(value).rpartition(":")
    if not colon or not _PORT.match(port) or int(port) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:8080")
    if not host:
        raise ValueError(f"has no host; write 127.0.0.1:{port}, or 0.0.0.0:{port} for all interfaces")
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), int(port)
        except ValueError:
            raise ValueError("the host in brackets is not an IPv6 address") from None
    if ":" in host:
        raise ValueError("an IPv6 address stands in brackets, such as [::1]:8080")
    if not _HOST.match(host):
        raise ValueError("the host is neither a name nor an address")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to it. A name other than localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def base_url(value: Any) -> str:
    """An upstream's base URL without the slash at its end; operations are appended as they are."""
    url = values.text(value)
    parts = _split(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL such as http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user or password; use api_key")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise ValueError("must not have a query or fragment")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be plain ASCII without blanks")
    return url.rstrip("/")


def with_default_path(url: str) -> str:
    """`http://host:8000`, as people type it on a command line, means `http://host:8000/v1`."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # base_url() says what is wrong with it
    if parts.netloc and parts.path in ("", "/") and not parts.query and not parts.fragment:
        return f"{url.rstrip('/')}/v1"
    return url


def store_url(value: Any) -> str:
    """`embedded`, or the URL of a Redis or Valkey. May hold a password."""
    url = values.text(value)
    if url == "embedded":
        return url
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("redis", "rediss", "unix", *MANY_SERVERS):
        raise ValueError(f"must be embedded, or a URL with {SERVED_SCHEMES}")
    if scheme == "unix":
        if not rest.rpartition("@")[2].startswith("/"):
            raise ValueError("must name the socket by its whole path, such as unix:///run/redis/redis.sock")
    elif not _hosts_are_good(rest):
        raise ValueError(f"must name a host, such as {scheme}://127.0.0.1:6379")
    elif scheme.endswith("+sentinel") and not rest.partition("?")[0].partition("/")[2]:
        raise ValueError(f"must name the primary after the sentinels: {scheme}://HOST:26379,HOST:26379/mymaster")
    return url


def shown_store_url(url: str) -> str:
    """The URL as it may be printed: without user, password and parameters."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}"


def path_prefix(value: Any) -> str:
    """A path under which the operations are served, such as `/v1`."""
    prefix = values.text(value)
    if not prefix.startswith("/"):
        raise ValueError(f"must start with a slash: /{prefix}")
    if prefix.endswith("/"):
        raise ValueError("must not end with a slash")
    if not _PREFIX.match(prefix):
        raise ValueError("must be a plain path such as /v1, without query, blanks, % or double slashes")
    segments = prefix[1:].split("/")
    if "." in segments or ".." in segments:
        raise ValueError("must not have . or .. as a segment")
    if segments[0] in OWN_PATHS:
        raise ValueError(f"/{segments[0]} is taken by the proxy itself")
    return prefix


def clashes(prefixes: Iterable[str]) -> dict[int, str]:
    """Positions of prefixes that repeat another or share a path with it, each with the reason."""
    owner: dict[str, str] = {}
    reasons: dict[int, str] = {}
    for position, prefix in enumerate(prefixes):
        paths = [f"{prefix}/{operation}" for operation in OPERATION_PATHS]
        taken = next((path for path in paths if path in owner), None)
        if taken is not None and owner[taken] == prefix:
            reasons[position] = f"{prefix} is listed twice"
        elif taken is not None:
            reasons[position] = f"{taken} would mean two operations, under {owner[taken]} and under {prefix}"
        else:
            owner.update(dict.fromkeys(paths, prefix))
    return reasons


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for a port that is no number
    except ValueError:
        raise ValueError("is not a URL: its host or port is broken") from None
    return parts


def _hosts_are_good(rest: str) -> bool:
    """One host, or several after commas (sentinels, cluster nodes)."""
    netloc = re.split(r"[/?#]", rest.rpartition("@")[2], maxsplit=1)[0]
    for host in netloc.split(","):
        try:
            parts = urlsplit(f"//{host}")
            if not parts.hostname or (parts.port is None and host.endswith(":")):
                return False
        except ValueError:
            return False
    return True
