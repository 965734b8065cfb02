"""Removes segments that are old or too many; nothing is removed whose totals are not kept, nor its lines if wanted.

The order makes it safe to be killed anywhere: archive, then `base`, then the segment itself. Segments that `base`
already holds are just removed.
"""

import gzip
import itertools
import logging
import os
from pathlib import Path

from meter_proxy.ledger.checkpoint import BASE, encode_books, load_base
from meter_proxy.ledger.journal import decode_record, write_atomically
from meter_proxy.ledger.segments import Segment, journal_id, read_lines, segments

_log = logging.getLogger("meter_proxy.ledger")


def remove_old(journal: Path, *, before: int, kept_since: float, keep_bytes: int | None, archive: Path | None) -> int:
    """Remove the segments of `journal` that end at the position `before` or earlier and need not be kept.

    `kept_since` is Unix seconds: what was last written before may go. `keep_bytes`: what is more may go, the oldest
    first. -> how many were removed. Blocks; raises `OSError`.
    """
    removed = 0
    for segment in _expendable(journal, before, kept_since, keep_bytes):
        if archive is not None:
            _archive(segment, archive / journal.parent.name / journal_id(journal))
        books, position = load_base(journal)
        end = segment.start
        for line in read_lines(segment.path):
            end = segment.start + line.offset + line.length
            if end > position and line.text is not None:
                record = decode_record(line.text)
                books.add(record, record.model_label, record.charges)
        if end > position:
            write_atomically(journal / BASE, encode_books(books, end))
        segment.path.unlink()
        removed += 1
        _log.info("removed %s%s", segment.path, f"; its records are in {archive}" if archive else "")
    return removed


def _expendable(journal: Path, before: int, kept_since: float, keep_bytes: int | None) -> list[Segment]:
    found = segments(journal)
    closed = [one for one, following in itertools.pairwise(found) if following.start <= before]
    sizes = {one: one.path.stat() for one in found}
    total_bytes = sum(status.st_size for status in sizes.values())
    expendable: list[Segment] = []
    for segment in closed:
        status = sizes[segment]
        if status.st_mtime >= kept_since and (keep_bytes is None or total_bytes <= keep_bytes):
            break
        total_bytes -= status.st_size
        expendable.append(segment)
    return expendable


def _archive(segment: Segment, directory: Path) -> None:
    """Write the records as plain JSON lines, compressed; whole or not at all."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{segment.path.stem}.jsonl.gz"
    scratch = path.with_name(path.name + ".new")
    with gzip.open(scratch, "wb", compresslevel=6) as file:
        for line in read_lines(segment.path):
            if line.text is not None:
                file.write(line.text + b"\n")
    fd = os.open(scratch, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    scratch.replace(path)
