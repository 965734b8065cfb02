"""Facts about the machine that belong beside figures: what it is, not whose it is."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

from tests.bench.rig import CPUS


def facts() -> dict[str, str | int]:
    """CPU, kernel, Python and the libraries under the proxy. No path and no host name."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            cpu = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": cpu,
        "architecture": platform.machine(),
        "cpus": len(CPUS),
        "kernel": os.uname().release.split("-")[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("aiohttp", "uvloop", "msgspec")},
    }
