"""Requests of the plain case, and a configuration whose keys they carry."""

import tempfile
from pathlib import Path

from meter_proxy.config.load import load_config
from meter_proxy.config.schema import Config


def config_of(text: str, **env: str) -> Config:
    """The configuration in a YAML text."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "meter-proxy.yaml"
        path.write_text(text)
        return load_config(path, env)


KEY = "sk-plain"
CONFIG = config_of(
    """\
upstreams: {one: {base_url: "http://one/v1"}}
models: {"*": {upstream: one}}
limits: {max_body: 1M}
path_prefixes: [/v1, /v1/llm]
keys:
  - {id: alice, secret: {env: K}, quotas: unlimited}
  - {id: off, secret: {env: OFF}, quotas: unlimited, disabled: true}
  - {id: ends, secret: {env: ENDS}, quotas: unlimited, expires_at: 2027-01-01T00:00:00Z}
""",
    K=KEY,
    OFF="sk-off",
    ENDS="sk-ends",
)
LINES = (
    b"Host: x",
    b"Accept: application/json",
    b"Content-Type: application/json",
    b"User-Agent: OpenAI/Python 2.0",
    b"X-Stainless-Lang: python",
    b"Authorization: Bearer sk-plain",
)


def head(*more: bytes, length: int = 2, start: bytes = b"POST /v1/chat/completions HTTP/1.1") -> bytes:
    """A plain head without its blank line, with `more` lines in it."""
    return b"\r\n".join([start, *LINES, *more, b"Content-Length: %d" % length])


def request(body: bytes) -> bytes:
    """A whole plain request."""
    return head(length=len(body)) + b"\r\n\r\n" + body
