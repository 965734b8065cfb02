"""The YAML of a proxy under test: small, on free loopback ports, everything in the test's directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.servers import free_port

KEY = "sk-test-alice"  # the secret of the key `alice` in basic_config()


def basic_config(upstream_url: str, directory: Path, **members: Any) -> dict[str, Any]:
    """One upstream `local`, every model, the key `alice` (secret: KEY, from the environment), one worker.

    `members` replace or add top-level members. The state directory is inside `directory`.
    """
    return {
        "listen": f"127.0.0.1:{free_port()}",
        "admin": f"127.0.0.1:{free_port()}",
        "workers": 1,
        "state_dir": str(directory / "state"),
        "upstreams": {"local": {"base_url": upstream_url}},
        "models": {"*": {"upstream": "local"}},
        "keys": [{"id": "alice", "secret": {"env": "ALICE_KEY"}, "quotas": "unlimited"}],
        **members,
    }


ENVIRONMENT = {"ALICE_KEY": KEY}  # what basic_config() refers to


def write_config(directory: Path, config: Mapping[str, Any]) -> Path:
    """Write `config` as YAML into `directory`; its path."""
    path = directory / "meter-proxy.yaml"
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    return path
