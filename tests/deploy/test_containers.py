"""The image and the stack of containers, as far as it can be seen without a Docker daemon."""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from meter_proxy.config.load import check, load_config
from meter_proxy.workers.supervisor import KILL_AFTER_S
from tests.support.proc import REPOSITORY, run_command
from tests.support.servers import installed_program, wheels_program

DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
ENVIRONMENT = {"ADMIN_TOKEN": "token", "API_KEY": "sk-first", "GRAFANA_PASSWORD": "secret"}


def test_hadolint_finds_nothing() -> None:
    """The Dockerfile's linter, all rules on."""
    done = subprocess.run(
        [wheels_program("hadolint"), "--failure-threshold", "style", str(DEPLOY / "Dockerfile")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_dclint_finds_nothing() -> None:
    """The linter of Compose files. Off: an image that is built here is also what the backend runs; services stand in
    the order of their meaning; it wants single quotes around ports."""
    dclint = REPOSITORY / "tests" / "e2e" / "node" / "node_modules" / ".bin" / "dclint"
    off = ["no-build-and-image", "services-alphabetical-order", "require-quotes-in-ports"]
    done = subprocess.run(
        [dclint, str(DEPLOY / "docker-compose.yml"), "--max-warnings", "0", "--disable-rule", *off],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "")


async def test_what_the_container_runs() -> None:
    """A number for a user, no shell in between, and commands that the program has."""
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    assert "pip install --require-hashes" in DOCKERFILE
    (entrypoint,) = re.findall(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.MULTILINE)
    (command,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    (health,) = re.findall(r"^HEALTHCHECK (?:.*\\\n)?\s*CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert json.loads(entrypoint) == ["meter-proxy"]
    assert json.loads(health)[:2] == ["meter-proxy", "healthcheck"]
    serve, config = json.loads(command)
    code, _, err = await run_command(serve, config)
    assert (code, "cannot read the file" in err) == (2, True)  # all that is missing here is the file


def test_the_image_is_built_from_what_is_let_in() -> None:
    """Every COPY from the tree passes .dockerignore, which lets in nothing else."""
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    ignore = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == copied
    assert all((REPOSITORY / source).exists() for source in copied)


@pytest.mark.parametrize(("lock", "table"), [("requirements", "project"), ("requirements-build", "build-system")])
def test_locks_fit_the_project(lock: str, table: str) -> None:
    """Every dependency stands in the lock, in a version that the project allows, with hashes: else `make lock`."""
    blocks = re.findall(r"^(\S+)==(\S+).*\\\n((?: +--hash=sha256:[0-9a-f]{64}.*\n)+)", text := lock_text(lock), re.M)
    assert len(blocks) == len(re.findall(r"^\S+==", text, re.MULTILINE))
    locked = {name.lower(): version for name, version, _ in blocks}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())[table]
    requirements = [Requirement(text) for text in project.get("dependencies", project.get("requires"))]
    assert requirements
    for requirement in requirements:
        assert locked.get(requirement.name.lower(), "0") in requirement.specifier, requirement


def lock_text(name: str) -> str:
    """A checked-in lock."""
    return (DEPLOY / f"{name}.lock").read_text()


def compose(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Docker Compose's own reading of the file."""
    program = [wheels_program("docker-compose"), "--env-file", "/dev/null", "-f", str(DEPLOY / "docker-compose.yml")]
    return subprocess.run(
        [*program, *arguments, "config", "--format", "json"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    """The stack with the profile `demo`."""
    done = compose(ENVIRONMENT, "--profile", "demo")
    assert (done.returncode, done.stderr) == (0, "")
    stack: dict[str, Any] = json.loads(done.stdout)
    return stack


@pytest.mark.parametrize("missing", ENVIRONMENT)
def test_a_missing_secret_is_named(missing: str) -> None:
    """Nothing starts with an empty password."""
    done = compose({name: value for name, value in ENVIRONMENT.items() if name != missing})
    assert done.returncode != 0
    assert f"{missing} is missing a value: write it into deploy/.env" in done.stderr
    assert f"\n{missing}=" in (DEPLOY / ".env.example").read_text()


def test_who_is_in_the_stack(stack: dict[str, Any]) -> None:
    """The backend only with the profile; whatever is published, on loopback; a store that keeps its data."""
    usual = json.loads(compose(ENVIRONMENT).stdout)["services"]
    assert set(usual) == {"proxy", "valkey", "prometheus", "grafana"}
    assert set(stack["services"]) - set(usual) == {"backend"}
    ports = [port for service in stack["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    command = stack["services"]["valkey"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--appendonly") + 1] == "yes"


def test_the_proxys_configuration_fits_the_stack(stack: dict[str, Any]) -> None:
    """Good in the container's environment; the store, the backend and the ports are the stack's; it may drain."""
    proxy = stack["services"]["proxy"]
    path = DEPLOY / "compose" / "meter-proxy.yaml"
    assert check(path, proxy["environment"]) == []
    config = load_config(path, proxy["environment"])
    assert config.redis.url == "redis://valkey:6379/0"
    assert config.upstreams["backend"].base_url == "http://backend:8000/v1"
    assert {port["target"] for port in proxy["ports"]} == {config.listen.port, config.admin.port}
    targets = {volume["target"] for volume in proxy["volumes"]}
    assert {str(config.state_dir), "/etc/meter-proxy"} == targets
    assert proxy["stop_grace_period"] == "1m20s"
    assert config.limits.drain_timeout_s + KILL_AFTER_S <= 80


def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    """promtool: with the rules and the token in the places that they have in the container."""
    text = (DEPLOY / "compose" / "prometheus.yml").read_text()
    (tmp_path / "token").write_text("token")
    for written, instead in (
        ("/run/secrets/admin_token", tmp_path / "token"),
        ("/etc/prometheus", DEPLOY / "prometheus"),
    ):
        assert text.count(written) == 1
        text = text.replace(written, str(instead))
    path = tmp_path / "prometheus.yml"
    path.write_text(text)
    command = [installed_program("promtool"), "check", "config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(r"SUCCESS: [1-9][0-9]* rules found", done.stdout), done.stdout


def test_what_is_mounted_is_there_and_where_it_is_looked_for(stack: dict[str, Any]) -> None:
    """A bind mount of nothing is an empty directory to Docker: no error, and no dashboards."""
    mounts = {
        volume["target"]: Path(volume["source"])
        for service in ("prometheus", "grafana")
        for volume in stack["services"][service]["volumes"]
        if volume["type"] == "bind"
    }
    assert all(source.is_dir() for source in mounts.values())
    provisioning = mounts["/etc/grafana/provisioning"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/meter-proxy.yaml").read_text())["providers"]
    assert list(mounts[provider["options"]["path"]].glob("*.json"))
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
