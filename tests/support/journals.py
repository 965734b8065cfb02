"""Journals for tests that need some, as a worker leaves them."""

from pathlib import Path

from meter_proxy.ledger.checkpoint import load
from meter_proxy.ledger.journal import SEGMENT_BYTES, Journal
from meter_proxy.ledger.segments import PREFIX


def open_journal(worker: Path, *, id: str = "a" * 32, segment_bytes: int = SEGMENT_BYTES) -> Journal:
    """The journal `id` in a worker's directory; goes on where it ended."""
    directory = worker / (PREFIX + id)
    directory.mkdir(parents=True, exist_ok=True)
    loaded = load(directory, strict=True)
    length = loaded.position - loaded.segment_start
    return Journal(directory, loaded.segment_start, length, segment_bytes=segment_bytes)
