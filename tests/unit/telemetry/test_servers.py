"""Upstreams in OpenTelemetry's words."""

import pytest

from meter_proxy.config.schema import Upstream
from meter_proxy.telemetry.servers import servers_of


@pytest.mark.parametrize(
    ("base_url", "server"),
    [
        ("http://127.0.0.1:8000/v1", ("openai", "127.0.0.1", "8000")),
        ("https://api.openai.com/v1", ("openai", "api.openai.com", "443")),
        ("http://vllm/v1", ("openai", "vllm", "80")),
        ("http://[::1]:8000/v1", ("openai", "::1", "8000")),
        ("https://acme.openai.azure.com/openai/v1", ("azure.ai.openai", "acme.openai.azure.com", "443")),
        ("https://api.x.ai/v1", ("x_ai", "api.x.ai", "443")),
        ("https://max.ai/v1", ("openai", "max.ai", "443")),
    ],
)
def test_a_server_is_its_host_its_port_and_the_provider_if_well_known(
    base_url: str, server: tuple[str, str, str]
) -> None:
    """The port is there even if the URL leaves it to the scheme; a domain matches as a whole."""
    assert servers_of({"u": Upstream(base_url=base_url)}) == {"u": server}
