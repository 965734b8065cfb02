"""Settles what a killed process left: each of its live slots becomes a record, once, however often this runs.

A slot whose record stands in the journal already was settled; its process died before it could free it. A recovery
that is itself killed has written some of the records: the next one finds them. Only when all of them are written may
the slots be made anew.
"""

import logging
from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path

from meter_proxy.errors import CannotStart
from meter_proxy.ledger.admission import Admission, read_admission
from meter_proxy.ledger.checkpoint import load
from meter_proxy.ledger.identity import read_identity
from meter_proxy.ledger.journal import DirectoryLock, Journal, encode_line
from meter_proxy.ledger.labels import ModelLabels
from meter_proxy.ledger.reading import read_segment
from meter_proxy.ledger.segments import journal_directories, segments
from meter_proxy.ledger.slots import Progress, read_live, remove_slots
from meter_proxy.metering.billing import outcome_of_status
from meter_proxy.quota.charge import Charge
from meter_proxy.usage import Outcome, UsageRecord

_log = logging.getLogger("meter_proxy.ledger")

Commit = Callable[[UsageRecord, tuple[Charge, ...], tuple[Charge, ...]], None]


def recover(directory: Path, settled: Collection[str], commit: Commit, now: float) -> int:
    """Commit the records of the exchanges that were in flight when the last process in `directory` was killed.

    `commit` gets the record, the counters that it is charged to, and those in which it may hold something.
    `settled`: ids of records in its journal, as far back as its slots can reach. `now` is Unix seconds; -> how many.
    """
    live = read_live(directory)
    count = 0
    for progress in live:
        admission = _admission(progress)
        if admission is not None and admission.id not in settled:
            record = _record(admission, progress, now)
            commit(record, admission.charges if progress.reached_upstream else (), admission.charges)
            count += 1
    if count:
        _log.warning("settled %d exchange%s of a killed process in %s", count, "" if count == 1 else "s", directory)
    return count


def _admission(progress: Progress) -> Admission | None:
    try:
        return read_admission(progress.text)
    except ValueError:
        _log.error("a slot holds no exchange that can be read: %r", progress)
        return None


def _record(admission: Admission, progress: Progress, now: float) -> UsageRecord:
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


def recent_ids(directory: Path) -> set[str]:
    """Ids of the last records in all journals of a worker's directory: as far back as stale slots can reach.

    After a power loss the slots on the disk may be older than the journal.
    """
    return {
        record.id
        for journal in journal_directories(directory)
        for segment in segments(journal)[-2:]
        for record in read_segment(segment.path)
    }


def recover_abandoned(directory: Path, labels: ModelLabels, now: float) -> None:
    """Settle what was in flight in a directory that nobody serves any more, into its own journal.

    Nothing where somebody serves it after all. Raises `DamagedJournal`, `OSError`.
    """
    identity = read_identity(directory)
    if identity is None or not read_live(directory):
        return
    try:
        lock = DirectoryLock(directory)
    except CannotStart:
        return
    try:
        place = directory / identity.journal_directory
        loaded = load(place, strict=True)
        journal = Journal(place, loaded.segment_start, loaded.position - loaded.segment_start)

        def commit(record: UsageRecord, charges: tuple[Charge, ...], held: tuple[Charge, ...]) -> None:
            label = labels.label(record.model, record.status)
            journal.append(encode_line(record, label, charges))

        try:
            recover(directory, loaded.ids, commit, now)
        finally:
            journal.close()
        remove_slots(directory)
    finally:
        lock.release()
