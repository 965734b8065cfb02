"""Workers that outlive their parent for a moment, and the proxy that is started after it."""

from pathlib import Path

import pytest

from meter_proxy import workers
from meter_proxy.errors import CannotStart
from meter_proxy.ledger.journal import DirectoryLock


def test_workers_that_still_settle_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold their directories until they end."""
    held = [DirectoryLock(tmp_path / "w0"), DirectoryLock(tmp_path / "w1")]
    monkeypatch.setattr("time.sleep", lambda seconds: held.pop().release())
    workers._wait_for_former_workers(tmp_path)
    assert held == []
    DirectoryLock(tmp_path / "w0").release()


def test_a_directory_that_stays_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names it and its owner."""
    monkeypatch.setattr(workers, "FORMER_WORKERS_S", 0.0)
    held = DirectoryLock(tmp_path / "w0")
    with pytest.raises(CannotStart, match=r"w0 is in use by process \d+"):
        workers._wait_for_former_workers(tmp_path)
    held.release()
