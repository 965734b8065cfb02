"""Brings the journal to the disk itself, in a thread of its own: for `journal.fsync: interval`.

What is written is on the disk at most one interval later, plus the time that the disk takes. The loop's part is a flag:
handing each flush to a pool of threads and back took it 100 us, a hundred times a second.
"""

import logging
import threading

from meter_proxy.ledger.journal import Journal

_log = logging.getLogger("meter_proxy.ledger")


class Flusher:
    """`wrote` tells it that there is something; it flushes until `stop`."""

    def __init__(self, journal: Journal, interval_s: float) -> None:
        self._journal = journal
        self._interval_s = interval_s
        self._is_due = False  # something was written that no flush has begun for
        self._work = threading.Lock()  # open: something is due
        self._end = threading.Lock()  # open: stop
        self._work.acquire()
        self._end.acquire()
        self._thread = threading.Thread(target=self._run, name="journal flush", daemon=True)
        self._thread.start()

    def wrote(self) -> None:
        """Something was written. Call it after each write, from the loop's thread."""
        if not self._is_due:
            self._is_due = True
            self._work.release()

    def _run(self) -> None:
        while True:
            self._work.acquire()
            if self._end.acquire(timeout=self._interval_s):
                return
            self._is_due = False  # before the flush: what is written from here on may miss it
            try:
                self._journal.sync()
            except OSError as exc:
                _log.error("cannot bring %s to the disk: %s", self._journal.directory, exc.strerror)

    def stop(self) -> None:
        """End the thread; waits for the flush that is under way. What was written since is the caller's to flush."""
        self._end.release()
        if self._work.locked():  # not `wrote`: the thread may be just about to forget that
            self._work.release()
        self._thread.join()
