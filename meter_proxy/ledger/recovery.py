"""Settles what a killed process left: each of its live slots becomes a record, once, however often this runs.

The records go into a journal of their own, whose id follows from the killed one's: a recovery that is itself
killed finds there what it had already written. Only when all of them are written may the slots be made anew.
"""

import logging
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import msgspec

from meter_proxy.ledger.admission import Admission, read_admission
from meter_proxy.ledger.journal import Journal, encode_line
from meter_proxy.ledger.labels import ModelLabels
from meter_proxy.ledger.slots import Progress, read_live
from meter_proxy.metering.billing import outcome_of_status
from meter_proxy.usage import Outcome, UsageRecord

_log = logging.getLogger("meter_proxy.ledger")


class _Line(msgspec.Struct):
    id: str


def recover(directory: Path, labels: ModelLabels, now: float) -> int:
    """Write the records of the exchanges that were in flight when the last process in `directory` was killed.

    The caller holds the directory's lock. `now` is Unix seconds; -> how many records. Raises `OSError`.
    """
    left = read_live(directory)
    if left is None or not left[1]:
        return 0
    killed_id, live = left
    settled = _ids_in(directory / f"records-{killed_id}.jsonl")
    journal = Journal(directory, id=sha256(b"crashed " + killed_id.encode()).hexdigest()[:32])
    try:
        settled |= _ids_in(journal.path)
        count = 0
        for progress in live:
            record = _record(progress, now)
            if record is not None and record.id not in settled:
                journal.append(encode_line(record, labels.label(record.model, record.status)))
                count += 1
    finally:
        journal.close()
    if count:
        _log.warning("settled %d exchanges of a killed process in %s", count, directory)
    return count


def _record(progress: Progress, now: float) -> UsageRecord | None:
    try:
        admission = read_admission(progress.text)
    except ValueError:
        _log.error("a slot holds no exchange that can be read: %r", progress)
        return None
    outcome = _outcome(progress)
    return admission.record(
        admission.bill(progress.reading, outcome, reached_upstream=progress.reached_upstream),
        outcome=outcome,
        status=progress.status,
        response_model=None,
        ttft_ms=None if progress.ttft_us is None else progress.ttft_us / 1000,
        duration_ms=round(max(0.0, now - _admitted_at(admission)) * 1000, 3),
    )


def _outcome(progress: Progress) -> Outcome:
    """An exchange that was over before the kill is what it was; only the others have crashed."""
    failure = outcome_of_status(progress.status)
    if failure is not None:
        return failure
    if progress.failed:
        return Outcome.UPSTREAM_FAILED
    return Outcome.COMPLETED if progress.finished or progress.done else Outcome.CRASHED


def _admitted_at(admission: Admission) -> float:
    return datetime.fromisoformat(admission.time).timestamp()


def _ids_in(path: Path) -> set[str]:
    """The ids of all whole records in a journal; a torn last line is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return set()
    decode = msgspec.json.Decoder(_Line).decode
    ids = set()
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        try:
            ids.add(decode(line).id)
        except ValueError:
            continue
    return ids
