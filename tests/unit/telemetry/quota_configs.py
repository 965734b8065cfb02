"""Configurations with quotas."""

from pathlib import Path
from typing import Any

from meter_proxy.config.schema import Config


def key(id: str, *quotas: dict[str, Any], **members: Any) -> dict[str, Any]:
    """A key with these rules."""
    return {"id": id, "secret": [bytes(32)], "quotas": list(quotas) or "unlimited", **members}


def config_with(*keys: dict[str, Any], **members: Any) -> Config:
    """A configuration with these keys; not looked at by the cross checks."""
    upstreams = {"local": {"base_url": "http://127.0.0.1:9/v1"}}
    models = {"*": {"upstream": "local"}}
    return Config.model_validate(
        {"state_dir": Path("state"), "upstreams": upstreams, "models": models, "keys": keys, **members}
    )
