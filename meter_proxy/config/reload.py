"""A configuration that replaces the one that is served: what may differ, and how to notice.

It takes effect whole or not at all: it is read and judged like at the start, and what only a start can decide must be
the same.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from meter_proxy.config import marks, values
from meter_proxy.config.faults import dotted
from meter_proxy.config.schema import Config
from meter_proxy.config.units import changed_units
from meter_proxy.errors import ConfigError

FIXED = ("listen", "admin", "admin_token", "workers", "state_dir", "path_prefixes", "usage_page", "journal")
FIXED_LIMITS = ("header_timeout_s",)  # connections that are open have it already
FIXED_REDIS = ("url", "usage_retention_s")
NAMES_A_FILE = ("api_key_file", "file")  # keys of the YAML whose value is the path of a secret

Status: TypeAlias = tuple[int, int, int, int] | None  # what changes with a file; None: it is not there


class ConfigSource:
    """A configuration file that can be read again, and the files that it takes secrets from."""

    def __init__(self, path: Path, load: Callable[[], Config], env: Mapping[str, str]) -> None:
        """`load` reads and judges `path` as at the start, with `env` as its variables."""
        self.path = path
        self._load = load
        self._env = env
        self._loaded: dict[Path, Status] = {}
        self._loaded_digest = b""
        self._seen: dict[Path, Status] = {}

    def load(self) -> Config:
        """Read it. Raises ConfigError with every fault; also then it counts as looked at, until it changes."""
        # Before it is read: what is written meanwhile is a change.
        self._loaded = self._seen = {file: _status(file) for file in files_of(self.path, self._env)}
        self._loaded_digest = _digest(self._loaded)
        return self._load()

    def has_changed(self) -> bool:
        """Whether there is something else to load, and it has stayed as it is since the last look.

        A file that was only touched is no change. While the configuration itself is not there, it is about to be
        replaced.
        """
        now = {file: _status(file) for file in self._loaded}
        is_settled, self._seen = now == self._seen, now
        if not is_settled or now == self._loaded or now.get(self.path) is None:
            return False
        if _digest(now) == self._loaded_digest:
            self._loaded = now
            return False
        return True


def files_of(path: Path, env: Mapping[str, str]) -> list[Path]:
    """A configuration file, and those that it takes secrets from; the latter only as far as it can be read."""
    found = {path: None}
    try:
        text = path.read_text("utf-8")
        if any(f"{name}:" in text.replace('"', "").replace("'", "") for name in NAMES_A_FILE):
            for name in _named_files(marks.read(text).data):
                found[path.absolute().parent / values.interpolate(name, env)] = None
    except (OSError, ValueError, RecursionError, marks.Unreadable):
        pass  # loading it tells what is wrong
    return list(found)


def _named_files(data: Any) -> list[str]:
    if isinstance(data, list):
        return [name for item in data for name in _named_files(item)]
    if not isinstance(data, dict):
        return []
    names = [member for key, member in data.items() if key in NAMES_A_FILE and isinstance(member, str) and member]
    return names + [name for member in data.values() for name in _named_files(member)]


def _status(file: Path) -> Status:
    try:
        status = os.stat(file)  # noqa: PTH116 - follows the links of a mounted ConfigMap
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _digest(files: Mapping[Path, Status]) -> bytes:
    digest = hashlib.sha256()
    for file in files:
        try:
            content = file.read_bytes()
        except (OSError, ValueError):
            content = b""
        digest.update(b"%d:" % len(content) + content)
    return digest.digest()


def refuse_fixed_changes(now: Config, new: Config) -> None:
    """Raises ConfigError that names what differs and cannot be changed while the proxy runs.

    That is also the unit of a rule that keeps its name, whether anything was counted yet or not: the next request is.
    """
    changed = [name for name in FIXED if getattr(now, name) != getattr(new, name)]
    changed += [f"limits.{name.removesuffix('_s')}" for name in FIXED_LIMITS if _differs(now.limits, new.limits, name)]
    changed += [f"redis.{name.removesuffix('_s')}" for name in FIXED_REDIS if _differs(now.redis, new.redis, name)]
    faults = [f"{name} cannot be changed while the proxy runs: restart it" for name in changed]
    faults += [f"{dotted(finding.loc)}: {finding.message}" for finding in changed_units(now, new)]
    if faults:
        raise ConfigError(faults)


def _differs(now: object, new: object, name: str) -> bool:
    return bool(getattr(now, name) != getattr(new, name))
