"""What `doctor` looks at on this machine: file descriptors, disk. And how clocks are compared."""

import os
import resource
import shutil
from pathlib import Path

from meter_proxy.cli.findings import Finding, bad, good, note
from meter_proxy.cli.tables import counted

FEW_FILES = 4096  # a stream takes two: some 2,000 at once
NEEDED_BYTES = 64 * 1024**2  # per worker: its slots and the first segments of its journal are preallocated
COMFORT_BYTES = 1024**3  # a million records are ~700 MB
MAX_SKEW_S = 2.0  # HTTP's Date has whole seconds


def open_files(limit: int | None = None) -> Finding:
    """The limit on open files of a process started like this one; `limit` for another."""
    if limit is None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return good("open files", "no limit")
    found = f"{limit:,} per worker: room for about {limit // 2:,} streams at once"
    if limit < FEW_FILES:
        advice = "raise it: `ulimit -n 65536` before serve, or LimitNOFILE=65536 in the systemd unit"
        return bad("open files", found, advice)
    return good("open files", found)


def disk(state_dir: Path, workers: int, free_bytes: int | None = None) -> Finding:
    """Whether the books can be written, and for how long; `free_bytes` instead of what the disk says."""
    directory = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    if not directory.is_dir():
        return bad("state_dir", f"{directory} is not a directory", "name another state_dir")
    if not os.access(directory, os.W_OK | os.X_OK):
        return bad("state_dir", f"{directory} cannot be written", "let the user that serve runs as own it")
    free = shutil.disk_usage(directory).free if free_bytes is None else free_bytes
    found = f"{state_dir}: {free / 1024**3:,.1f} GB free"
    if free < NEEDED_BYTES * workers:
        needed = NEEDED_BYTES * workers // 1024**2
        return bad(
            "state_dir",
            found,
            f"make room for {counted(workers, 'worker')}: {needed} MB ahead, then ~700 bytes a record",
        )
    if free < COMFORT_BYTES:
        return note("state_dir", found, "a million records take ~700 MB; see journal.keep_for and journal.keep_size")
    return good("state_dir", found)


def clock(about: str, ahead_s: float, uncertain_s: float) -> Finding:
    """`ahead_s`: this machine's clock less the other's, known to within `uncertain_s`."""
    surely = max(0.0, abs(ahead_s) - uncertain_s)
    if surely > MAX_SKEW_S:
        found = f"this machine's is {abs(ahead_s):,.1f} s {'ahead' if ahead_s > 0 else 'behind'}"
        return bad(about, found, "run an NTP client here (chrony, systemd-timesyncd), and there")
    return good(about, f"the same within {max(abs(ahead_s), uncertain_s):,.3g} s")
