"""The seam that the gateway sees: `settle` a record, and it is billed."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path

from meter_proxy.errors import CannotStart
from meter_proxy.ledger import former
from meter_proxy.ledger.admission import Admission
from meter_proxy.ledger.books import Books, DayBook
from meter_proxy.ledger.journal import FILE_PATTERN, DirectoryLock, Journal, encode_line, legible
from meter_proxy.ledger.labels import ModelLabels
from meter_proxy.ledger.recovery import recover
from meter_proxy.ledger.slots import Slot, SlotTable, remove_slots
from meter_proxy.ledger.sync import BooksStore, Sync
from meter_proxy.tasks import spawn
from meter_proxy.usage import UsageRecord

LABELS_FILE = "models"  # in the state directory: the workers share it
REWRITE_S = 0.25  # a full disk is tried again this often
STOP_S = 5.0  # what Redis does not have by then, it gets at the next start
STOP_WHILE_DOWN_S = 1.0  # where Redis is known to be away, the same, sooner
DAY_S = 86_400

_log = logging.getLogger("meter_proxy.ledger")


class Ledger:
    """One worker's books. `start()` it, `settle` each exchange once, `stop()` it; all in one event loop.

    A record is committed when it stands in the journal; only then it is in the books and on its way to Redis.
    """

    def __init__(
        self,
        directory: Path,
        store: BooksStore | None,
        *,
        workers: int = 1,
        configured_models: Collection[str] = (),
        usage_retention_s: float = 400 * DAY_S,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`directory` is `state_dir/w<index>` of one of `workers`; without a store the books stay here."""
        self.directory = directory
        self.labels: ModelLabels  # the same for every view: Prometheus' label of a refused request, too
        self._store = store
        self._workers = workers
        self._configured_models = configured_models
        self._retention_s = int(usage_retention_s)
        self._clock = clock
        self._jitter = jitter
        self._lock: DirectoryLock
        self._journal: Journal
        self._slots: SlotTable
        self._books: Books
        self._last: DayBook | None = None  # the book of the newest record
        self._unwritten: deque[tuple[UsageRecord, str, bytes, Slot | None]] = deque()
        self._rewriting: asyncio.Task[None] | None = None
        self._sync: Sync | None = None
        self._running: asyncio.Task[None] | None = None
        self._adoption: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take the directory and begin a journal; needs no store. Raises `CannotStart`, naming who holds the directory.

        What former incarnations left goes to Redis in the background.
        """
        self._lock = DirectoryLock(self.directory)
        try:
            self.labels = ModelLabels(self.directory.parent / LABELS_FILE, self._configured_models)
            self._recover()
            self._remove_empty_journals()
            self._journal = Journal(self.directory)
            self._slots = SlotTable(self.directory, self._journal.id)
        except OSError as exc:
            self._lock.release()
            raise CannotStart(f"cannot write to {self.directory.parent}: {exc.strerror}") from exc
        self._books = Books(self._journal.id)
        if self._store is None:
            return
        self._sync = Sync(
            self._store,
            retention_s=self._retention_s,
            on_lost=self._send_everything,
            clock=self._clock,
            jitter=self._jitter,
        )
        await self._sync.greet()
        self._running = spawn(self._sync.run(), name="ledger sync")
        self._adopt(self._sync, again=False)

    def _recover(self) -> None:
        """Settle what killed processes left here, and in directories that nobody serves any more."""
        now = self._clock()
        recover(self.directory, self.labels, now)
        for directory in former.worker_directories(self.directory, self._workers):
            if directory == self.directory:
                continue
            try:
                lock = DirectoryLock(directory)
            except CannotStart:
                continue  # somebody serves it after all
            try:
                recover(directory, self.labels, now)
                remove_slots(directory)
            finally:
                lock.release()

    def _remove_empty_journals(self) -> None:
        """Clear away what an incarnation left that was killed before its first record."""
        for path in self.directory.glob(FILE_PATTERN):
            if path.stat().st_size == 0:
                path.unlink()

    def _adopt(self, sync: Sync, *, again: bool) -> None:
        directories = former.worker_directories(self.directory, self._workers)
        adoption = former.adopt(sync, directories, live=self._journal.path, again=again)
        self._adoption = spawn(adoption, name="ledger adoption")

    def admit(self, admission: Admission) -> Slot | None:
        """A slot for a new exchange, to be given to `settle`; None when this worker cannot serve more at once."""
        return self._slots.take(admission.slot_text())

    def settle(self, record: UsageRecord, slot: Slot | None = None) -> None:
        """Bill one exchange: call it exactly once for each. Never waits, never raises. Frees its slot.

        A record that the disk does not take is kept in memory and written as soon as it can be; `can_write` is
        False until then.
        """
        try:
            label, line = self._line(record)
        except UnicodeEncodeError:  # whatever somebody sent us, the bill must stand
            record = legible(record)
            label, line = self._line(record)
        if not self._unwritten:  # else it would overtake the ones that wait
            try:
                self._commit(record, label, line, slot)
            except OSError as exc:
                _log.error("cannot write to %s, keeping records in memory: %s", self._journal.path, exc.strerror)
            else:
                return
        self._unwritten.append((record, label, line, slot))
        if self._rewriting is None:
            self._rewriting = spawn(self._rewrite(), name="ledger rewrite")

    def _line(self, record: UsageRecord) -> tuple[str, bytes]:
        label = self.labels.label(record.model, record.status)
        return label, encode_line(record, label)

    def _commit(self, record: UsageRecord, label: str, line: bytes, slot: Slot | None) -> None:
        self._journal.append(line)  # the commit point
        if slot is not None:
            slot.free()
        self._last = self._books.add(record, label)
        if self._sync is not None:
            self._sync.mark(self._last)

    def _write_waiting(self) -> None:
        while self._unwritten:
            self._commit(*self._unwritten[0])
            self._unwritten.popleft()

    async def _rewrite(self) -> None:
        while self._unwritten:
            await asyncio.sleep(REWRITE_S)
            try:
                self._write_waiting()
            except OSError:
                continue
        self._rewriting = None
        _log.warning("%s can be written again", self._journal.path)

    def _send_everything(self) -> None:
        """Redis has lost data: bring it our books and the journals of all incarnations before."""
        assert self._sync is not None
        self._sync.resend(self._books)
        if self._adoption is not None:
            self._adoption.cancel()
        self._adopt(self._sync, again=True)

    @property
    def can_write(self) -> bool:
        """Tell whether the last record reached the journal; while it does not, admit nothing more."""
        return not self._unwritten

    @property
    def store_up(self) -> bool:
        """Tell whether Redis took the last message; False without a store."""
        return self._sync is not None and self._sync.store_up

    @property
    def unsynced(self) -> int:
        """Return the number of settled records that Redis has not acknowledged; 0 without a store."""
        return self._sync.unsynced + len(self._unwritten) if self._sync is not None else 0

    @property
    def regressions(self) -> int:
        """Return how often Redis turned out to have lost what it had acknowledged."""
        return self._sync.regressions if self._sync is not None else 0

    async def stop(self) -> None:
        """Write and send the rest, at most 5 s (1 s while Redis is away), and give the directory back.

        Nothing may be settled after it.
        """
        for task in (self._adoption, self._rewriting):
            if task is not None:
                task.cancel()
        try:
            self._write_waiting()
        except OSError as exc:
            _log.error("%s could not be written (%s); see below", _records(len(self._unwritten)), exc.strerror)
            for _, _, line, _ in self._unwritten:
                _log.error("%s", line.decode())
        try:
            await self._stop_sync()
        finally:
            self._journal.close()
            self._slots.close()
            if not self._unwritten:
                remove_slots(self.directory)
            self.labels.close()
            self._lock.release()

    async def _stop_sync(self) -> None:
        if self._sync is None or self._running is None or self._store is None:
            return
        complete = await self._sync.stop(self._running, STOP_S if self._sync.store_up else STOP_WHILE_DOWN_S)
        if not complete:
            if missing := self.unsynced:
                _log.warning("not in the store yet, sent at the next start: %s", _records(missing))
        elif self._last is not None:
            try:
                former.write_marker(self._journal.path, self._journal.length_bytes, self._last)
            except OSError as exc:
                _log.warning("cannot note that the store has everything: %s", exc.strerror)
        await self._store.close()

    def __repr__(self) -> str:
        return f"<Ledger {self.directory} unsynced={self.unsynced} can_write={self.can_write} store_up={self.store_up}>"


def _records(count: int) -> str:
    return f"{count} record{'' if count == 1 else 's'}"
