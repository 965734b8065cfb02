"""A configuration that replaces the one that is served: what may differ, and how to notice.

It takes effect whole or not at all: it is read and judged like at the start, and what only a start can decide must be
the same.
"""

import os
from collections.abc import Callable
from pathlib import Path

from meter_proxy.config.schema import Config
from meter_proxy.errors import ConfigError

FIXED = ("listen", "admin", "admin_token", "workers", "state_dir", "path_prefixes", "journal")
FIXED_LIMITS = ("header_timeout_s",)  # connections that are open have it already
FIXED_REDIS = ("url", "usage_retention_s")


class ConfigSource:
    """A configuration file that can be read again."""

    def __init__(self, path: Path, load: Callable[[], Config]) -> None:
        """`load` reads and judges `path` as at the start."""
        self.path = path
        self.load = load

    def signature(self) -> tuple[int, int, int] | None:
        """What changes when the file does; None while it is not there (it may be about to be replaced)."""
        try:
            status = os.stat(self.path)  # noqa: PTH116 - follows the links of a mounted ConfigMap
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def refuse_fixed_changes(now: Config, new: Config) -> None:
    """Raises ConfigError that names what differs and cannot be changed while the proxy runs."""
    changed = [name for name in FIXED if getattr(now, name) != getattr(new, name)]
    changed += [f"limits.{name.removesuffix('_s')}" for name in FIXED_LIMITS if _differs(now.limits, new.limits, name)]
    changed += [f"redis.{name.removesuffix('_s')}" for name in FIXED_REDIS if _differs(now.redis, new.redis, name)]
    if changed:
        raise ConfigError([f"{name} cannot be changed while the proxy runs: restart it" for name in changed])


def _differs(now: object, new: object, name: str) -> bool:
    return bool(getattr(now, name) != getattr(new, name))
