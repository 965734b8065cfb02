"""The proxies that are measured side by side, each on one core, with what it needs to be a fair peer.

`find` says which can run here and, in plain words, which cannot. A target writes its configuration into a directory of
the run, and is started as often as the run wants: `running(target, ...)`.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.rig import PROXY_CPU, REPOSITORY, Running, free_port, which
from tests.bench.scenarios import ALL, COUNTING

KEY = "sk-test-0123456789abcdef"
METER_PROXY = "meter-proxy"
NGINX = "nginx"

NGINX_CONFIG = """\
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.err warn;
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  client_max_body_size 20m; client_body_buffer_size 2m;
  keepalive_requests 1000000; keepalive_timeout 300s;
  upstream mock {{ server 127.0.0.1:{mock}; keepalive 2048; keepalive_requests 1000000; keepalive_timeout 300s; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""
HAPROXY_CONFIG = """\
global
  nbthread 1
  maxconn {half}
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  option http-no-delay
  http-reuse always
frontend clients
  bind 127.0.0.1:{port}
  default_backend mock
backend mock
  server mock 127.0.0.1:{mock}
"""
METER_PROXY_CONFIG = """\
listen: 127.0.0.1:{port}
admin: 127.0.0.1:{admin}
workers: {workers}
state_dir: {directory}/state
path_prefixes: [/v1]
redis: {{url: embedded}}
upstreams:
  mock: {{base_url: "http://127.0.0.1:{mock}/v1"}}
  counting: {{base_url: "http://127.0.0.1:{mock}/v1", running_usage: vllm}}
models:
  {counting_model}: {{upstream: counting, price: {{input: 2.5, output: 10}}}}
  "*": {{upstream: mock, price: {{input: 2.5, output: 10}}}}
keys:
  - id: bench
    secret: sha256:{digest}
    quotas: [{{requests: 900M, per: day}}, {{tokens: 900M, per: day}}, {{cost_usd: 1000000, per: month}}]
"""
LITELLM_MODEL = """\
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: "http://127.0.0.1:{mock}/v1", api_key: sk-upstream}}
"""
LITELLM_SETTINGS = f"""\
litellm_settings: {{telemetry: false, set_verbose: false, num_retries: 0}}
general_settings: {{master_key: {KEY}, dangerously_permit_weak_or_unset_master_key: true, disable_spend_logs: true}}
"""
LITELLM_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_MODE": "PRODUCTION",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Place:
    """Where a target runs: its directory, its ports, and the limits it may use."""

    directory: Path
    port: int
    admin: int
    mock: int
    workers: int
    files: int

    def fill(self, template: str, name: str) -> Path:
        """Write a configuration; its path."""
        path = self.directory / name
        path.write_text(
            template.format(
                directory=self.directory,
                port=self.port,
                admin=self.admin,
                mock=self.mock,
                workers=self.workers,
                files=self.files,
                connections=self.files * 2,  # when less than 1/16 is free, nginx closes some that are not idle at all
                half=self.files // 2 - 100,
                counting_model=COUNTING,
                digest=hashlib.sha256(KEY.encode()).hexdigest(),
            )
        )
        return path


@dataclass(frozen=True)
class Target:
    """A proxy; without `command` the mock itself, asked directly."""

    name: str
    version: str
    command: Callable[[Place], list[str | Path]] | None
    env: tuple[tuple[str, str], ...] = ()
    ready_within_s: float = 20.0
    warm_up_s: float = 0.7
    is_slow: bool = False  # it needs that warm-up before each scenario


def running(target: Target, directory: Path, mock_port: int, *, workers: int, files: int) -> tuple[Running, Place]:
    """Start it in a fresh directory; close the first of the two when done."""
    assert target.command is not None, "the mock runs already"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    place = Place(directory, free_port(), free_port(), mock_port, workers, files)
    process = Running(
        target.command(place),
        port=place.port,
        cpu=PROXY_CPU,
        log=directory / "output",
        env=dict(target.env),
        ready_within_s=target.ready_within_s,
    )
    return process, place


def find(names: list[str], *, litellm: str | None) -> tuple[list[Target], dict[str, str]]:
    """The targets that can run here, in the order asked for; and why others cannot. KeyError: an unknown name."""
    makers: dict[str, Callable[[], Target | str]] = {
        "direct": lambda: Target("direct", "", None),
        NGINX: _nginx,
        "haproxy": _haproxy,
        "naive": _naive,
        "litellm": lambda: _litellm(litellm),
        METER_PROXY: _meter_proxy,
    }
    found = {name: makers[name]() for name in names}
    missing = {name: target for name, target in found.items() if isinstance(target, str)}
    return [target for target in found.values() if isinstance(target, Target)], missing


NAMES = ("direct", NGINX, "haproxy", "naive", "litellm", METER_PROXY)


def _nginx() -> Target | str:
    program = which("nginx")
    if program is None:
        return "nginx is not installed (Debian: apt-get install nginx-light)"

    def command(place: Place) -> list[str | Path]:
        config = place.fill(NGINX_CONFIG, "nginx.conf")
        return [program, "-c", config, "-e", place.directory / "nginx.err"]

    return Target(NGINX, _version(program, "-v"), command)


def _haproxy() -> Target | str:
    program = which("haproxy")
    if program is None:
        return "haproxy is not installed (Debian: apt-get install haproxy)"
    return Target(
        "haproxy",
        _version(program, "-v"),
        lambda place: [program, "-db", "-f", place.fill(HAPROXY_CONFIG, "haproxy.cfg")],
    )


def _naive() -> Target:
    def command(place: Place) -> list[str | Path]:
        return [sys.executable, "-m", "tests.bench.naive", str(place.port), str(place.mock)]

    return Target("naive", "", command, env=(("PYTHONPATH", str(REPOSITORY)),))


def _meter_proxy() -> Target:
    def command(place: Place) -> list[str | Path]:
        config = place.fill(METER_PROXY_CONFIG, "meter-proxy.yaml")
        return [sys.executable, "-m", "meter_proxy", "serve", config, "--log-level", "warning"]

    version = _version(sys.executable, "-m", "meter_proxy", "--version")
    return Target(METER_PROXY, version, command, env=(("PYTHONPATH", str(REPOSITORY)),))


def _litellm(program: str | None) -> Target | str:
    if program is None:
        return "no command was given for it (--litellm PATH)"
    if shutil.which(program) is None:
        return "the command given for it does not exist"
    path = str(Path(str(shutil.which(program))).absolute())

    def command(place: Place) -> list[str | Path]:
        models = dict.fromkeys(_model(scenario.options) for scenario in ALL)
        listed = "".join(LITELLM_MODEL.format(model=model, mock=place.mock) for model in models)
        config = place.directory / "litellm.yaml"
        config.write_text(f"model_list:\n{listed}{LITELLM_SETTINGS}")
        return [path, "--config", config, "--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1"]

    version = _version(path, "--version", env=LITELLM_ENVIRONMENT)
    return Target(
        "litellm",
        version,
        command,
        env=tuple(LITELLM_ENVIRONMENT.items()),
        ready_within_s=90.0,
        warm_up_s=3.0,
        is_slow=True,
    )


def _model(options: tuple[str, ...]) -> str:
    return options[options.index("--model") + 1]


def _version(*command: str, env: dict[str, str] | None = None) -> str:
    """The first thing in the program's answer that looks like a version; empty when nothing does."""
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(env or {})}
    )
    found = re.search(r"\d+(?:\.\d+)+", done.stdout + done.stderr)
    return found[0] if found else ""
