"""The seam that the gateway sees: `settle` a record, and it is billed."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from meter_proxy.config.schema import JournalConfig
from meter_proxy.errors import CannotStart, StoreError
from meter_proxy.ledger import former
from meter_proxy.ledger.admission import Admission
from meter_proxy.ledger.books import FIELDS, Books, CounterBook
from meter_proxy.ledger.checkpoint import encode_books, encode_in_slices, load, write_checkpoint
from meter_proxy.ledger.days import by_model
from meter_proxy.ledger.flushing import Flusher
from meter_proxy.ledger.grants import Quotas
from meter_proxy.ledger.identity import Identity, retire, stopped_clean, take_over, this_boot
from meter_proxy.ledger.journal import DirectoryLock, Journal, encode_line, legible
from meter_proxy.ledger.labels import ModelLabels
from meter_proxy.ledger.messages import usage_key
from meter_proxy.ledger.recovery import recent_ids, recover, recover_abandoned
from meter_proxy.ledger.retention import remove_old
from meter_proxy.ledger.slots import Slot, SlotTable, remove_slots
from meter_proxy.ledger.sync import Sync, SyncStore
from meter_proxy.quota.charge import KEY_HOLDER, Charge, Unit
from meter_proxy.tasks import spawn
from meter_proxy.usage import UsageRecord

LABELS_FILE = "models"  # in the state directory: the workers share it
REWRITE_S = 0.25  # a full disk is tried again this often
HOUSEKEEPING_S = 1.0
CHECKPOINT_S = 60.0
CHECKPOINT_RECORDS = 20_000  # replayed in 0.2 s
STOP_S = 5.0  # what Redis does not have by then, it gets at the next start
STOP_WHILE_DOWN_S = 1.0  # where Redis is known to be away, the same, sooner
DAY_S = 86_400
OLDEST_CLOCK = 1_577_836_800.0  # 2020: a clock before that was never set

_log = logging.getLogger("meter_proxy.ledger")


class Releasable(Protocol):
    """What an exchange holds until it is settled; `grants.Grant` is it."""

    def release(self) -> None:
        """Let it go. Idempotent."""


class _Settlement(NamedTuple):
    """A record that the disk did not take yet."""

    record: UsageRecord
    label: str
    line: bytes
    charges: Sequence[Charge]
    slot: Slot | None
    grant: Releasable | None


class Ledger:
    """One worker's books. `start()` it, `settle` each exchange once, `stop()` it; all in one event loop.

    A record is committed when it stands in the journal; only then it is in the books and on its way to Redis.
    """

    def __init__(
        self,
        directory: Path,
        store: SyncStore | None,
        *,
        workers: int = 1,
        configured_models: Collection[str] = (),
        usage_retention_s: float = 400 * DAY_S,
        journal: JournalConfig | None = None,
        bounded_tokens: int = 20_000,
        boot_id: str | None = None,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`directory` is `state_dir/w<index>` of one of `workers`; without a store the books stay here."""
        self.directory = directory
        self.labels: ModelLabels  # the same for every view: Prometheus' label of a refused request, too
        self.quotas: Quotas | None = None
        self.store = store
        self._workers = workers
        self._configured_models = configured_models
        self._retention_s = int(usage_retention_s)
        self._settings = journal or JournalConfig()
        self._bounded_tokens = bounded_tokens
        self._boot_id = this_boot() if boot_id is None else boot_id
        self._clock = clock
        self._jitter = jitter
        self._identity: Identity
        self._lock: DirectoryLock
        self._journal: Journal
        self._slots: SlotTable
        self._books: Books
        self._unwritten: deque[_Settlement] = deque()
        self._rewriting: asyncio.Task[None] | None = None
        self._sync: Sync | None = None
        self._running: asyncio.Task[None] | None = None
        self._adoption: asyncio.Task[None] | None = None
        self._housekeeping: asyncio.Task[None] | None = None
        self._flusher: Flusher | None = None
        self._flushes_each = False
        self._checkpoint_at = 0  # position
        self._checkpointed_at = 0.0  # loop time
        self._settled = 0  # since the checkpoint

    # From start ...

    async def start(self) -> None:
        """Take the directory and go on in its journal; needs no store. What Redis lacks goes there in the background.

        Raises `CannotStart`, naming who holds the directory, or what is wrong with it.
        """
        if self._clock() < OLDEST_CLOCK:
            raise CannotStart("the clock of this machine is before 2020: set it, windows and records depend on it")
        self._lock = DirectoryLock(self.directory)
        self._or_release(self._open)
        if self.store is not None:
            self._sync = await self._greet(self.store)
        if self._settings.fsync == "interval":
            self._flusher = Flusher(self._journal, self._settings.fsync_interval_s)
        self._flushes_each = self._settings.fsync == "always"
        self._housekeeping = spawn(self._keep_house(), name="ledger housekeeping")
        if self._sync is None:
            return
        self.quotas = Quotas(self._books, self._sync, bounded_tokens=self._bounded_tokens)
        self._running = spawn(self._sync.run(), name="ledger sync")
        self._sync.send_new(self._books)
        for counter in self._current_counters():
            self._sync.mark(counter)  # what our last incarnation held is free
        self._adopt(self._sync, again=False)

    def _or_release(self, step: Callable[[], None]) -> None:
        """Take a step on the way to the start; where it fails, the directory is free again. Raises `CannotStart`."""
        try:
            step()
        except OSError as exc:
            self._lock.release()
            raise CannotStart(f"cannot write to {self.directory.parent}: {exc.strerror}") from exc
        except CannotStart:
            self._lock.release()
            raise

    def _open(self) -> None:
        """Read the books, and settle what killed processes left here and where nobody serves any more."""
        refuse_former_format(self.directory.parent)
        now = self._clock()
        self.labels = ModelLabels(self.directory.parent / LABELS_FILE, self._configured_models)
        self._identity = take_over(self.directory, self._boot_id)
        place = self.directory / self._identity.journal_directory
        loaded = load(place, strict=True)
        self._books = loaded.books
        self._journal = Journal(
            place,
            loaded.segment_start,
            loaded.position - loaded.segment_start,
            segment_bytes=self._settings.segment_bytes,
        )
        settled = loaded.ids if loaded.ids or self._identity.incarnation > 1 else recent_ids(self.directory)
        if recover(self.directory, settled, self._commit_recovered, now):
            self._journal.sync()
        for directory in former.worker_directories(self.directory, self._workers):
            if directory != self.directory:
                recover_abandoned(directory, self.labels, now)
        self._slots = SlotTable(self.directory)
        self._write_checkpoint_now()

    async def _greet(self, store: SyncStore) -> Sync:
        """Meet the store; in a new journal, if it has heard of more than there is of ours."""
        sync = self._new_sync(store)
        await sync.greet()
        if not sync.is_behind:
            return sync
        _log.warning(
            "%s is an older copy of what the store has heard of: a new journal begins, nothing there is counted twice; "
            "what was settled after the copy was made is in the store alone",
            self._journal.directory,
        )
        self._or_release(self._begin_anew)
        sync = self._new_sync(store)
        await sync.greet()
        return sync

    def _new_sync(self, store: SyncStore) -> Sync:
        return Sync(
            store,
            journal_id=self._identity.journal_id,
            incarnation=self._identity.incarnation,
            workers=self._workers,
            retention_s=self._retention_s,
            position=lambda: self._journal.position,
            on_lost=self._send_everything,
            on_behind=self._is_behind,
            clock=self._clock,
            jitter=self._jitter,
        )

    def _begin_anew(self) -> None:
        """Leave the journal that was opened as a former one. What was in flight in it was settled into it."""
        self._journal.close()
        self._slots.close()
        self.labels.close()
        retire(self.directory)
        self._open()

    def _commit_recovered(self, record: UsageRecord, charges: Sequence[Charge], held: Sequence[Charge]) -> None:
        label = self.labels.label(record.model, record.status)
        self._journal.append(encode_line(record, label, charges))
        self._books.add(record, label, charges)
        for charge in held:  # so that Redis hears that they are free
            self._books.counter_of(record, charge)

    def _adopt(self, sync: Sync, *, again: bool) -> None:
        directories = former.worker_directories(self.directory, self._workers)
        journals = former.former_journals(directories, self._journal.directory)
        self._adoption = spawn(former.adopt(sync, journals, again=again), name="ledger adoption")

    def _current_counters(self) -> list[CounterBook]:
        now = self._clock()
        return [counter for counter in self._books.counters if not counter.ends_at or counter.ends_at > now]

    def place_keys(self, accounts: Mapping[str, str]) -> None:
        """Say to which account each key belongs now: the counters of a key that moved go along."""
        for counter in self._current_counters():
            account = accounts.get(counter.owner) if counter.holder == KEY_HOLDER else None
            if account is not None and account != counter.account:
                counter.account = account
                if self._sync is not None:
                    self._sync.resend([counter])

    # ... over each exchange ...

    def now(self) -> float:
        """The store's time as far as it is known, Unix seconds."""
        return self._sync.now() if self._sync is not None else self._clock()

    def admit(self, admission: Admission) -> Slot | None:
        """A slot for a new exchange, to be given to `settle`; None when this worker cannot serve more at once."""
        return self._slots.take(admission.slot_text())

    def settle(
        self,
        record: UsageRecord,
        slot: Slot | None = None,
        *,
        charges: Sequence[Charge] = (),
        cut_by: str | None = None,
        grant: Releasable | None = None,
    ) -> None:
        """Bill one exchange: call it exactly once for each. Never waits, never raises. Frees its slot and its grant.

        A record that the disk does not take is kept in memory and written as soon as it can be; `can_write` is
        False until then.
        """
        try:
            label, line = self._line(record, charges, cut_by)
        except UnicodeEncodeError:  # whatever somebody sent us, the bill must stand
            record = legible(record)
            label, line = self._line(record, charges, cut_by)
        if not self._unwritten:  # else it would overtake the ones that wait
            try:
                self._journal.append(line)  # the commit point
            except OSError as exc:
                _log.error("cannot write to %s, keeping records in memory: %s", self._journal.directory, exc.strerror)
            else:
                self._committed(record, label, charges, slot, grant)
                return
        self._unwritten.append(_Settlement(record, label, line, charges, slot, grant))
        if self._rewriting is None:
            self._rewriting = spawn(self._rewrite(), name="ledger rewrite")

    def _line(self, record: UsageRecord, charges: Sequence[Charge], cut_by: str | None) -> tuple[str, bytes]:
        label = self.labels.label(record.model, record.status)
        return label, encode_line(record, label, charges, cut_by)

    def _committed(
        self, record: UsageRecord, label: str, charges: Sequence[Charge], slot: Slot | None, grant: Releasable | None
    ) -> None:
        if slot is not None:
            slot.free()
        changed = self._books.add(record, label, charges)
        if grant is not None:
            grant.release()
        if self._sync is not None:
            for book in changed:
                if book.waits_in != book.account:  # `mark` would see that, too, for twice the price
                    self._sync.mark(book)
        self._settled += 1
        if self._flusher is not None:
            self._flusher.wrote()
        elif self._flushes_each:
            self._sync_now()

    def _sync_now(self) -> None:
        try:
            self._journal.sync()
        except OSError as exc:
            _log.error("cannot bring %s to the disk: %s", self._journal.directory, exc.strerror)

    async def usage_on(self, account: str, key: str, days: Sequence[str]) -> list[dict[str, dict[str, int]]] | None:
        """What a key has used on each of these UTC days (YYYYMMDD), over all workers: model -> field -> amount.

        None: not known.
        """
        if self.store is None:
            return None
        try:
            hashes = await self.store.read_hashes([usage_key(account, key, day) for day in days])
        except StoreError:
            return None
        return [
            {model: dict(zip(FIELDS, totals, strict=True)) for model, totals in by_model(fields).items()}
            for fields in hashes
        ]

    def _write_waiting(self) -> None:
        while self._unwritten:
            record, label, line, charges, slot, grant = self._unwritten[0]
            self._journal.append(line)
            self._unwritten.popleft()
            self._committed(record, label, charges, slot, grant)

    async def _rewrite(self) -> None:
        while self._unwritten:
            await asyncio.sleep(REWRITE_S)
            try:
                self._write_waiting()
            except OSError:
                continue
        self._rewriting = None
        _log.warning("%s can be written again", self._journal.directory)

    def _send_everything(self) -> None:
        """Redis has lost data: bring it our books, those of former journals too."""
        assert self._sync is not None
        self._sync.resend(self._books)
        if self._adoption is not None:
            self._adoption.cancel()
        self._adopt(self._sync, again=True)

    def _is_behind(self) -> None:
        """The store has heard of more than our journal holds, and could not say so at the start."""
        _log.error(
            "%s is an older copy of what the store has heard of: until new exchanges have caught up, they count in the "
            "journal alone. Restart this proxy now: it will begin a new journal",
            self._journal.directory,
        )
        try:
            retire(self.directory)
        except OSError as exc:
            _log.error("remove %s before: %s", self.directory / "current", exc.strerror)

    # ... in the background ...

    async def _keep_house(self) -> None:
        loop = asyncio.get_running_loop()
        self._checkpointed_at = loop.time()
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            self._journal.make_spare()
            if self._settled and (
                loop.time() - self._checkpointed_at > CHECKPOINT_S
                or self._settled > CHECKPOINT_RECORDS
                or self._journal.segment_start > self._checkpoint_at
            ):
                try:
                    await self._checkpoint()
                    await self._remove_old()
                except OSError as exc:
                    _log.warning("cannot write a checkpoint of %s: %s", self._journal.directory, exc.strerror)
                self._checkpointed_at = loop.time()

    async def _checkpoint(self) -> None:
        self._forget_expired()
        position, self._settled = self._journal.position, 0
        data = await encode_in_slices(self._books, position)
        await asyncio.get_running_loop().run_in_executor(None, write_checkpoint, self._journal.directory, data)
        self._checkpoint_at = position

    def _write_checkpoint_now(self) -> None:
        position = self._journal.position
        write_checkpoint(self._journal.directory, encode_books(self._books, position))
        self._checkpoint_at = position

    def _forget_expired(self) -> None:
        if self._sync is not None:
            for book in self._sync.expired(self._books):
                self._books.forget(book)

    async def _remove_old(self) -> None:
        settings = self._settings
        if self.unsynced and self.store is not None:
            return  # Redis first
        await asyncio.get_running_loop().run_in_executor(
            None,
            lambda: remove_old(
                self._journal.directory,
                before=self._checkpoint_at,
                kept_since=self._clock() - settings.keep_for_s,
                keep_bytes=settings.keep_bytes,
                archive=settings.archive,
            ),
        )

    @property
    def can_write(self) -> bool:
        """Tell whether what is in flight can be recorded; while not, admit nothing more."""
        return not self._unwritten and self._journal.has_room

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

    @property
    def quota_states(self) -> list[tuple[str, str, Unit, str, int, int, int, int]]:
        """What Redis told of quota counters within the last seconds.

        Each: key (`account:NAME`: an account's), rule, unit, window, its end, limit, used, reserved by all workers.
        """
        if self._sync is None:
            return []
        states = []
        for counter in self._sync.lately_told():
            book = counter.book
            key = book.owner if book.holder == KEY_HOLDER else f"account:{book.owner}"
            figures = (counter.limit, counter.known_used, counter.all_reserved)
            states.append((key, book.rule, book.unit, book.window, book.ends_at, *figures))
        return states

    # ... to the end.

    async def stop(self) -> None:
        """Write and send the rest, at most 5 s (1 s while Redis is away), and give the directory back.

        Nothing may be settled after it.
        """
        for task in (self._adoption, self._rewriting, self._housekeeping):
            if task is not None:
                task.cancel()
        if self._flusher is not None:
            self._flusher.stop()  # `close` brings the rest to the disk
            self._flusher = None
        try:
            self._write_waiting()
        except OSError as exc:
            _log.error("%s could not be written (%s); see below", _records(len(self._unwritten)), exc.strerror)
            for settlement in self._unwritten:
                _log.error("%s", settlement.line.decode())
        try:
            await self._stop_sync()
        finally:
            self._close()

    def _close(self) -> None:
        try:
            self._journal.close()
            self._slots.close()
            self._write_checkpoint_now()
            if not self._unwritten:
                remove_slots(self.directory)
                if self._sync is None or not self._sync.is_behind:  # else the next start begins a new journal
                    stopped_clean(self.directory, self._identity)
        except OSError as exc:
            _log.warning("cannot note that %s was closed: %s", self.directory, exc.strerror)
        finally:
            self.labels.close()
            self._lock.release()

    async def _stop_sync(self) -> None:
        if self._sync is None or self._running is None or self.store is None:
            return
        complete = await self._sync.stop(self._running, STOP_S if self._sync.store_up else STOP_WHILE_DOWN_S)
        if not complete and (missing := self.unsynced):
            _log.warning("not in the store yet, sent at the next start: %s", _records(missing))
        await self.store.close()

    def __repr__(self) -> str:
        return f"<Ledger {self.directory} unsynced={self.unsynced} can_write={self.can_write} store_up={self.store_up}>"


def refuse_former_format(state_dir: Path) -> None:
    """A development version wrote other journals: their records must not be passed over. Raises `CannotStart`."""
    former_journal = next(state_dir.glob("w*/records-*.jsonl"), None)
    if former_journal is not None:
        raise CannotStart(
            f"{former_journal} was written by a development version, whose format is not read any more: "
            "move it away (one JSON record a line), or use another state_dir"
        )


def _records(count: int) -> str:
    return f"{count} record{'' if count == 1 else 's'}"
