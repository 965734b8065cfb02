"""Upstreams in OpenTelemetry's words: `gen_ai.provider.name`, `server.address`, `server.port`."""

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from meter_proxy.config.schema import Upstream

# The well-known values of gen_ai.provider.name that speak OpenAI's API, by the host's last labels:
# https://opentelemetry.io/docs/specs/semconv/registry/attributes/gen-ai/
PROVIDERS = {
    "openai.azure.com": "azure.ai.openai",
    "services.ai.azure.com": "azure.ai.inference",
    "anthropic.com": "anthropic",
    "amazonaws.com": "aws.bedrock",
    "cohere.com": "cohere",
    "cohere.ai": "cohere",
    "deepseek.com": "deepseek",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "groq.com": "groq",
    "mistral.ai": "mistral_ai",
    "moonshot.ai": "moonshot_ai",
    "moonshot.cn": "moonshot_ai",
    "perplexity.ai": "perplexity",
    "x.ai": "x_ai",
}
# The conventions: the provider names the flavour of the API, as best one knows; ours is OpenAI's.
DEFAULT_PROVIDER = "openai"
DEFAULT_PORTS = {"http": 80, "https": 443}


class Server(NamedTuple):
    """Where an upstream is. `port` is text, being a label."""

    provider: str
    address: str
    port: str


UNKNOWN_SERVER = Server(DEFAULT_PROVIDER, "", "")  # of a record whose upstream is not configured any more


def servers_of(upstreams: Mapping[str, Upstream]) -> dict[str, Server]:
    """Each upstream's name -> its server."""
    return {name: _server(upstream.base_url) for name, upstream in upstreams.items()}


def _server(base_url: str) -> Server:
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    known = (name for domain, name in PROVIDERS.items() if host == domain or host.endswith(f".{domain}"))
    return Server(next(known, DEFAULT_PROVIDER), host, str(parts.port or DEFAULT_PORTS[parts.scheme]))
