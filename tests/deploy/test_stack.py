"""The stack of docker-compose.yml without containers: its programs, with its own arguments, files and environment.

Only addresses and directories are replaced, by what is free here. Grafana is missing: it cannot be installed here.
"""

from pathlib import Path
from typing import Any

from redis import Redis, RedisError

from tests.deploy.test_containers import DEPLOY
from tests.deploy.test_containers import stack as stack  # the fixture
from tests.support.httpraw import RawClient
from tests.support.proc import running_mock_backend, running_proxy
from tests.support.servers import ChildServer, PrometheusServer, free_port, valkey_program
from tests.support.waiting import until

ASK = {"model": "anything", "messages": [{"role": "user", "content": "hi"}], "stream": True}


class Valkey(ChildServer):
    """The store, with the arguments of its service."""

    def __init__(self, directory: Path, command: list[str]) -> None:
        self.client = Redis(port=free_port(), decode_responses=True)
        self.port: int = self.client.connection_pool.connection_kwargs["port"]
        place = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(directory)]
        assert command[0] == "valkey-server"
        super().__init__([valkey_program(), *command[1:], *place], directory)

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except RedisError:
            return False


class Prometheus(PrometheusServer):
    """Debian's, with the configuration of the service."""

    def __init__(self, directory: Path, configuration: str) -> None:
        super().__init__(directory, [])
        (self.directory / "prometheus.json").write_text(configuration)  # instead of the rig's own; it is YAML


def replaced(text: str, places: dict[str, str]) -> str:
    """`text` with each place replaced; AssertionError where one is not in it exactly once."""
    for written, instead in places.items():
        assert text.count(written) == 1, written
        text = text.replace(written, instead)
    return text


async def test_the_stack_meters_a_call(stack: dict[str, Any], tmp_path: Path) -> None:
    """A caller's tokens are in the store and, scraped with the token, in Prometheus."""
    services = stack["services"]
    environment: dict[str, str] = services["proxy"]["environment"]
    command: list[str] = services["backend"]["command"]
    assert command[:3] == ["mock-backend", "--listen", "0.0.0.0:8000"]
    admin = f"127.0.0.1:{free_port()}"
    token = tmp_path / "token"
    token.write_text(environment["ADMIN_TOKEN"])
    scrape = replaced(
        (DEPLOY / "compose" / "prometheus.yml").read_text(),
        {"/run/secrets/admin_token": str(token), "proxy:9090": admin, "scrape_interval: 5s": "scrape_interval: 200ms"},
    )
    with Valkey(tmp_path / "valkey", services["valkey"]["command"]) as store:
        async with running_mock_backend(*command[3:]) as backend:
            written = (DEPLOY / "compose" / "meter-proxy.yaml").read_text()
            places = {
                "0.0.0.0:8080": f"127.0.0.1:{free_port()}",
                "0.0.0.0:9090": admin,
                "valkey:6379": f"127.0.0.1:{store.port}",
                "/var/lib/meter-proxy": str(tmp_path / "books"),
            }
            config = tmp_path / "meter-proxy.yaml"
            config.write_text(replaced(written, places))
            upstream = replaced(environment["UPSTREAM_URL"], {"http://backend:8000/v1": backend})
            async with running_proxy(config, env={**environment, "UPSTREAM_URL": upstream}) as proxy:
                with Prometheus(tmp_path, scrape) as prometheus:
                    async with await RawClient.connect(proxy.url) as client:
                        response = await client.request("POST", "/v1/chat/completions", ASK, key=environment["API_KEY"])
                        assert response.status == 200
                        assert b"[DONE]" in await response.read()
                    scraped = await until(
                        lambda: prometheus.query('sum by (type) (meter_proxy_tokens_total{key="first"}) > 0'),
                        "tokens in Prometheus",
                    )
                    assert set(scraped) == {(("type", "input"),), (("type", "output"),)}
                    assert prometheus.query("meter_proxy_redis_up") and not prometheus.query("up == 0")
        usage = store.client.keys("*:usage:first:*")
        assert store.client.hget(usage[0], "anything|output_tokens") == str(int(scraped[(("type", "output"),)]))
        assert store.client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        store.client.close()
