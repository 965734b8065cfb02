"""Long work shows on a terminal that it goes on, and nowhere else; nothing of it is in the result."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from meter_proxy.ledger.journal import encode_line
from tests.support.journals import open_journal
from tests.support.records import usage_record

REPOSITORY = Path(__file__).parents[3]


def usage(state_dir: Path, stderr: int) -> str:
    """Run `usage --format json` with this stderr; its stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "meter_proxy", "usage", "--format", "json", "--state-dir", state_dir],
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm"},
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_a_terminal_sees_the_count_and_a_pipe_sees_nothing(tmp_path: Path) -> None:
    """The result is the same."""
    (tmp_path / "w0").mkdir()
    journal = open_journal(tmp_path / "w0")
    journal.append(b"".join(encode_line(usage_record(), "m1") for _ in range(3000)))
    journal.close()
    ours, theirs = pty.openpty()
    with (tmp_path / "stderr").open("wb") as pipe:
        on_a_terminal, in_a_pipe = usage(tmp_path, theirs), usage(tmp_path, pipe.fileno())
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 65_536):
            seen += data
    except OSError:  # the other end is closed: Linux' way to say that this was all
        pass
    os.close(ours)
    assert b"records read: 2,000" in seen
    assert (tmp_path / "stderr").read_bytes() == b""
    assert on_a_terminal == in_a_pipe
