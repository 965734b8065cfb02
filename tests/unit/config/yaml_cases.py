"""YAML texts for the tests of the configuration, and how to look at their faults."""

from collections.abc import Mapping
from pathlib import Path

from meter_proxy.config.load import check, load_config
from meter_proxy.config.schema import Config

# Two lines that are good by themselves: what a case adds begins at line 3.
BASE = """\
upstreams: {local: {base_url: "http://127.0.0.1:8000/v1"}}
models: {"*": {upstream: local}}
"""

DIGEST = "sha256:" + "1" * 64
OTHER_DIGEST = "sha256:" + "2" * 64

# The page that outsiders read, whole.
EXAMPLE = """\
listen: 127.0.0.1:8080
admin: 127.0.0.1:9090
admin_token: ${ADMIN_TOKEN:-}          # required when admin is not on loopback; also the key for /v1/organization/*
workers: 2
state_dir: ./state
path_prefixes: [/v1, /v1/llm]          # the same operations under each; upstream paths stay the upstream's own
limits: {max_body: 20M, max_event: 1M, header_timeout: 10s, client_stall: 30s, drain_timeout: 60s}

redis:
  url: embedded                        # embedded | redis:// | rediss:// | unix:// | redis+sentinel:// | redis+cluster://
  when_down: bounded                   # closed | bounded | open
  bounded_tokens: 20k                  # per key and worker while Redis is away
  usage_retention: 400d

upstreams:
  local:
    base_url: http://127.0.0.1:8000/v1
    api_key: ${UPSTREAM_KEY:-}         # or api_key_file
    running_usage: auto                # auto | vllm | sglang | llamacpp | off
    tokenizer: auto                    # auto | upstream | o200k_base | cl100k_base | FILE (tokenizer.json) | none
    on_disconnect: cancel              # cancel | drain | {drain_for: 5s}
    bill_prompt: on_first_token        # on_first_token | always | never
    timeouts: {connect: 5s, first_byte: 300s, idle: 120s, total: 6h}

models:                                # what callers may ask for; "*" passes any name through
  gpt-4o: {upstream: local, price: {input: 2.50, cached_input: 1.25, output: 10.00}, max_output_tokens: 16384}
  auto: {upstream: [local], name: qwen2.5-72b}      # an alias; several upstreams: tried in order
  "*": {upstream: local}

plans:
  free:
    quotas:
      - {requests: 20, per: minute}
      - {tokens: 200k, per: day, timezone: Asia/Shanghai}
      - {concurrent: 2}

keys:
  - id: alice
    secret: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08   # or a list of two
    plan: free
    models: ["gpt-4o*", auto]
    expires_at: 2027-01-01T00:00:00Z   # and `disabled: true`
    quotas:                            # added to the plan's; a rule with the same `name` replaces the plan's
      - {name: budget, cost_usd: 20, per: month, warn_at: 80%}
      - {output_tokens: 50k, per: hour, models: ["gpt-4o*"], when_exhausted: finish}
  - id: ci
    secret: {env: CI_KEY}              # or {file: /run/secrets/ci}; plain text only this way
    account: platform-team             # quotas under `accounts:` are shared by its keys
    quotas: unlimited                  # a key with no rule at all must say so (it does not waive the account's)

accounts:
  platform-team:
    quotas: [{tokens: 10M, per: month}]
"""


def config_of(text: str, directory: Path, env: Mapping[str, str] | None = None) -> Config:
    """The Config of a YAML text; ConfigError with its faults."""
    return load_config(_written(text, directory), env or {})


def faults_of(text: str, directory: Path, env: Mapping[str, str] | None = None) -> list[str]:
    """The faults of a YAML text as they are printed, less the file's name: `line:col: path: message`."""
    path = _written(text, directory)
    return [str(fault).removeprefix(f"{path}:") for fault in check(path, env or {})]


def _written(text: str, directory: Path) -> Path:
    path = directory / "meter-proxy.yaml"
    path.write_text(text, encoding="utf-8")
    return path
