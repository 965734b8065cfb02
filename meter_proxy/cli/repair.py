"""`meter-proxy repair`: what can be saved of a damaged journal, said first, done when it is wanted."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from meter_proxy.cli.progress import shown
from meter_proxy.cli.tables import ConfigArgument, StateDirOption, counted, state_directory
from meter_proxy.ledger.identity import retire
from meter_proxy.ledger.journal import DirectoryLock, decode_record, write_atomically
from meter_proxy.ledger.reading import journals
from meter_proxy.ledger.segments import Segment, examine, framed, read_all_lines, segments

DAMAGED = ".damaged"

EXAMPLES = (
    "meter-proxy repair meter-proxy.yaml",
    "meter-proxy repair --state-dir state --format json",
    "meter-proxy repair --state-dir state --yes",
)


class Format(StrEnum):
    """How the findings are printed."""

    TEXT = "text"
    JSON = "json"


class Finding(NamedTuple):
    """One damaged segment."""

    segment: Segment
    damaged_at: int
    good: list[bytes]  # the lines that can be read
    good_before: int
    lost_bytes: int


def command(
    config: ConfigArgument = None,
    state_dir: StateDirOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    format: Annotated[Format, typer.Option(help="json: does nothing without --yes, and never asks.")] = Format.TEXT,
) -> None:
    """Save what is good of a damaged journal.

    It says first what it will do; serve must not run. The damaged file is kept beside the new one. Records that
    cannot be read are lost here, though Redis may have heard of them: audit shows what it has more.
    """
    directory = state_directory(config, state_dir)
    lock = DirectoryLock(directory)
    try:
        findings = [finding for journal in journals(directory) for finding in _damage_in(journal)]
        if format is Format.JSON:
            _repair_silently(findings, yes=yes)
            return
        if not findings:
            print("No journal is damaged: nothing to do.")
            return
        for finding in findings:
            _explain(finding)
        if not yes:
            if not sys.stdin.isatty():
                print("Nothing was done. Say --yes to do it.")
                raise typer.Exit(1)
            typer.confirm("Do it?", abort=True)
        for finding in findings:
            _mend(finding)
        print("Done. The next serve begins a new journal; these are kept, and read.")
    finally:
        lock.release()


def _repair_silently(findings: list[Finding], *, yes: bool) -> None:
    """For programs: exit 1 while something is damaged."""
    if yes:
        for finding in findings:
            _mend(finding)
    print(json.dumps({"repaired": yes, "damaged": [_described(finding) for finding in findings]}, indent=2))
    if findings and not yes:
        raise typer.Exit(1)


def _described(finding: Finding) -> dict[str, str | int]:
    return {
        "file": str(finding.segment.path),
        "damaged_at": finding.damaged_at,
        "records_saved": len(finding.good),
        "bytes_lost": finding.lost_bytes,
    }


def _damage_in(journal: Path) -> list[Finding]:
    found = segments(journal)
    findings = []
    for place, segment in enumerate(found):
        result = examine(segment.path)
        is_last = place == len(found) - 1
        at = result.damaged_at
        if at is None and result.torn_bytes and not is_last:
            at = result.good_bytes
        if at is None:
            continue
        good, good_before, lost_bytes = [], 0, 0
        for line in shown(read_all_lines(segment.path), "lines of a damaged segment read"):
            if line.text is not None and _is_record(line.text):
                good.append(line.text)
                good_before += line.offset < at
            else:
                lost_bytes += line.length
        findings.append(Finding(segment, at, good, good_before, lost_bytes))
    return findings


def _is_record(text: bytes) -> bool:
    try:
        decode_record(text)
    except ValueError:
        return False
    return True


def _explain(finding: Finding) -> None:
    path = finding.segment.path
    behind = len(finding.good) - finding.good_before
    print(f"{path} is damaged at byte {finding.damaged_at}:")
    print(f"  {counted(finding.good_before, 'good record')} before it and {behind:,} behind it are saved.")
    print(f"  {counted(finding.lost_bytes, 'byte')} cannot be read: what was there is lost, about 700 bytes a record.")
    print(f"  The damaged file is kept as {path.name}{DAMAGED}.")


def _mend(finding: Finding) -> None:
    path = finding.segment.path
    path.with_name(path.name + DAMAGED).write_bytes(path.read_bytes())
    write_atomically(path, b"".join(framed(text) for text in finding.good))
    (path.parent / "checkpoint").unlink(missing_ok=True)  # positions behind the damage are others now
    retire(path.parent.parent)
