"""Which journal a worker's directory writes now, and the how-manieth time.

A journal belongs to its directory, not to a process: its totals grow over restarts, and Redis tells messages of an
earlier incarnation from later ones by their version. A directory begins a new journal when it is new, when it was
repaired, when the machine was restarted without a clean stop, and when it turns out to be an older copy (see sync.py):
then the last lines may be missing here, though Redis has heard of them. The former journal stays, is read, and is
never written again.
"""

import secrets
from pathlib import Path

import msgspec

from meter_proxy.ledger.journal import write_atomically
from meter_proxy.ledger.segments import PREFIX

FILE = "current"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Identity(msgspec.Struct):
    """What stands in `current`."""

    journal_id: str
    incarnation: int
    boot_id: str
    is_clean: bool  # the last process stopped by itself, everything on disk

    @property
    def journal_directory(self) -> str:
        """The name of the journal's directory."""
        return PREFIX + self.journal_id


def take_over(directory: Path, boot_id: str) -> Identity:
    """Begin an incarnation: of the journal that is there, or of a new one. Raises `OSError`."""
    last = read_identity(directory)
    if last is None or not (directory / last.journal_directory).is_dir() or _is_in_doubt(last, boot_id):
        now = Identity(secrets.token_hex(16), 1, boot_id, is_clean=False)
    else:
        now = Identity(last.journal_id, last.incarnation + 1, boot_id, is_clean=False)
    (directory / now.journal_directory).mkdir(mode=0o700, exist_ok=True)
    _write(directory, now)
    return now


def stopped_clean(directory: Path, identity: Identity) -> None:
    """Note that everything is on disk. Raises `OSError`."""
    identity.is_clean = True
    _write(directory, identity)


def retire(directory: Path) -> None:
    """The next start begins a new journal. Raises `OSError`."""
    (directory / FILE).unlink(missing_ok=True)


def read_identity(directory: Path) -> Identity | None:
    """What the last process wrote; None where there was none, or nothing that can be read."""
    try:
        return msgspec.json.decode((directory / FILE).read_bytes(), type=Identity)
    except (OSError, ValueError):
        return None


def this_boot() -> str:
    """The kernel's name for the time since the machine was started; empty where it has none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _is_in_doubt(last: Identity, boot_id: str) -> bool:
    return last.boot_id != boot_id and not last.is_clean


def _write(directory: Path, identity: Identity) -> None:
    write_atomically(directory / FILE, msgspec.json.encode(identity))
