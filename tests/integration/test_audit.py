"""`audit` and `repair`: the books compared with Redis, and what can be saved of a damaged journal."""

import asyncio
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from meter_proxy.errors import DamagedJournal
from meter_proxy.ledger import Ledger
from meter_proxy.ledger.admission import Admission
from meter_proxy.ledger.audit import audit
from meter_proxy.ledger.books import DayBook
from meter_proxy.ledger.checkpoint import recompute
from meter_proxy.ledger.reading import iter_records, journals
from meter_proxy.ledger.store import Store
from meter_proxy.quota.charge import Charge, Unit
from meter_proxy.usage import UsageRecord
from tests.support.proc import Command
from tests.support.records import usage_record
from tests.support.servers import StoreServer
from tests.support.waiting import until

DAY_S = 86_400
CHARGE = Charge("k", "tokens-total", "total", Unit.TOKENS, 0)


def records(count: int) -> list[UsageRecord]:
    today = time.strftime("%Y-%m-%dT12:00:00.000Z", time.gmtime())
    return [usage_record(time=today, key=f"k{number % 3}", account="team") for number in range(count)]


def admission_of(record: UsageRecord) -> Admission:
    """What was known of it when it was admitted."""
    return Admission(
        id=record.id,
        time=record.time,
        key=record.key,
        account=record.account,
        model=record.model,
        upstream_model=record.upstream_model,
        upstream=record.upstream,
        operation=record.operation,
        stream=record.stream,
        input_text_bytes=4,
        charges=(CHARGE,),
    )


async def settled(directory: Path, url: str, count: int = 30) -> None:
    """A worker's life: so many exchanges, in its journal and in Redis."""
    ledger = Ledger(directory / "state" / "w0", Store(url))
    await ledger.start()
    for record in records(count):
        ledger.settle(record, charges=(CHARGE,))
    await until(lambda: ledger.unsynced == 0, "Redis has it")
    await ledger.stop()


async def compared(directory: Path, url: str) -> Any:
    store = Store(url)
    try:
        return await audit(directory / "state", store, now=time.time(), retention_s=400 * DAY_S, accounts={})
    finally:
        await store.close()


async def run(*arguments: str | Path) -> tuple[int, str, str]:
    """The command, to its end."""
    command = Command(arguments)
    code = await command.ended(within_s=30)
    output = command.stdout, command.stderr
    await command.close()
    return code, *output


async def test_nothing_differs_where_nothing_went_wrong(tmp_path: Path) -> None:
    with StoreServer.redis(tmp_path) as server:
        await settled(tmp_path, server.url)
        result = await compared(tmp_path, server.url)
    assert (result.records, result.hashes, result.differences) == (30, 6, [])


@pytest.mark.parametrize(
    ("harm", "field"),
    [
        (lambda redis, name: redis.hincrby(name("usage"), "m1|input_tokens", 1), "m1|input_tokens"),
        (lambda redis, name: redis.hincrby(name("quota"), "used", -1), "used"),
        (lambda redis, name: redis.hincrby(name("quota"), "reserved", 5), "reserved"),
        (lambda redis, name: redis.delete(name("books")), "m1|requests"),
    ],
)
async def test_each_figure_that_was_touched_is_named(tmp_path: Path, harm: Any, field: str) -> None:
    with StoreServer.redis(tmp_path) as server:
        await settled(tmp_path, server.url)
        with server.client() as redis:
            harm(redis, lambda kind: next(iter(redis.scan_iter(f"mp:*:{kind}:*k1*"))))
        result = await compared(tmp_path, server.url)
    assert any(difference.field.endswith(field) for difference in result.differences)


async def test_the_command_counts_in_good_english(tmp_path: Path) -> None:
    """One exchange is one record, of a day and of a counter."""
    with StoreServer.redis(tmp_path) as server:
        await settled(tmp_path, server.url, count=1)
        _, out, _ = await run("audit", "--state-dir", tmp_path / "state", "--redis", server.url)
    assert out == "1 record, 2 days and counters compared: no difference\n"


async def test_the_command_compares_beside_a_stopped_serve(tmp_path: Path) -> None:
    """Exit 0 and a line; exit 1 and each difference."""
    with StoreServer.redis(tmp_path) as server:
        await settled(tmp_path, server.url)
        arguments = ("audit", "--state-dir", tmp_path / "state", "--redis", server.url)
        code, out, _ = await run(*arguments)
        assert (code, "no difference" in out) == (0, True)
        with server.client() as redis:
            redis.hincrby(next(iter(redis.scan_iter("mp:*:usage:k1:*"))), "m1|cost_nano_usd", 7)
        code, out, _ = await run(*arguments, "--format", "json")
        assert code == 1
        (difference,) = json.loads(out)["differences"]
        assert (difference["field"], difference["difference"]) == ("m1|cost_nano_usd", 7)


def damage(directory: Path) -> Path:
    """One bit of a record in the middle."""
    (path,) = (directory / "state").glob("w0/journal-*/*.log")
    data = bytearray(path.read_bytes())
    place = [index for index, byte in enumerate(data) if byte == 10][10] + 300
    data[place] ^= 1
    path.write_bytes(bytes(data))
    for checkpoint in path.parent.glob("checkpoint"):
        checkpoint.unlink()
    return path


async def test_a_damaged_journal_is_refused_and_repaired(tmp_path: Path) -> None:
    """The start names file, offset and command; repair explains first, saves all that is good, and all goes on."""
    with StoreServer.redis(tmp_path) as server:
        await settled(tmp_path, server.url)
        path = damage(tmp_path)
        with pytest.raises(DamagedJournal, match="meter-proxy repair"):
            await Ledger(tmp_path / "state" / "w0", Store(server.url)).start()
        arguments = ("repair", "--state-dir", tmp_path / "state")
        code, out, _ = await run(*arguments)
        assert code == 1
        assert "11 good records before it and 18 behind it are saved" in out
        assert path.read_bytes().count(b"\n") == 30
        code, out, _ = await run(*arguments, "--format", "json")
        (damaged,) = json.loads(out)["damaged"]
        assert (code, damaged["file"], damaged["records_saved"]) == (1, str(path), 29)
        assert path.read_bytes().count(b"\n") == 30
        code, out, _ = await run(*arguments, "--yes")
        assert code == 0
        assert path.with_name(path.name + ".damaged").exists()
        assert len(list(iter_records(tmp_path / "state"))) == 29
        await settled(tmp_path, server.url, count=10)
        assert len(list(iter_records(tmp_path / "state"))) == 39
        assert len(journals(tmp_path / "state")) == 2
        result = await compared(tmp_path, server.url)
        # The lost record is not forgotten by Redis, and nothing new was swallowed by what it has more.
        assert sum(d.found - d.expected for d in result.differences if d.field.endswith("|requests")) == 1


async def test_a_good_journal_needs_no_repair_and_a_running_serve_is_left_alone(tmp_path: Path) -> None:
    with StoreServer.redis(tmp_path) as server:
        await settled(tmp_path, server.url)
        code, out, _ = await run("repair", "--state-dir", tmp_path / "state", "--yes")
        assert (code, out) == (0, "No journal is damaged: nothing to do.\n")
        code, out, _ = await run("repair", "--state-dir", tmp_path / "state", "--format", "json")
        assert (code, json.loads(out)) == (0, {"repaired": False, "damaged": []})


async def test_after_a_power_loss_a_new_journal_begins(tmp_path: Path) -> None:
    """Redis may have heard of records that the disk has not: their totals must not swallow new ones."""
    with StoreServer.redis(tmp_path) as server:
        await settled(tmp_path, server.url, count=5)
        ledger = Ledger(tmp_path / "state" / "w0", Store(server.url), boot_id="before")
        await ledger.start()
        for record in records(6):
            ledger.settle(record, charges=(CHARGE,))
        await until(lambda: ledger.unsynced == 0, "Redis has it")
        # The power fails: what stands behind the first ten records never reached the disk.
        (journal,) = journals(tmp_path / "state")
        (path,) = journal.glob("*.log")
        lines = path.read_bytes().split(b"\n")
        await ledger.stop()
        path.write_bytes(b"\n".join(lines[:10]) + b"\n" + bytes(5000))
        current = path.parent.parent / "current"
        current.write_bytes(current.read_bytes().replace(b'"is_clean":true', b'"is_clean":false'))
        again = Ledger(tmp_path / "state" / "w0", Store(server.url), boot_id="after")
        await again.start()
        for record in records(4):
            again.settle(record, charges=(CHARGE,))
        await until(lambda: again.unsynced == 0, "Redis has it")
        await asyncio.sleep(0.2)
        await again.stop()
        assert len(journals(tmp_path / "state")) == 2
        with server.client() as redis:
            total = sum(int(redis.hget(name, "m1|requests") or 0) for name in redis.scan_iter("mp:*:usage:*"))
        assert total == 11 + 4  # the lost one was billed, and stays so


async def test_an_older_copy_of_the_directory_goes_on_in_a_new_journal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis has larger totals of the same journal: they stay, and what is settled from now on comes on top of them."""
    state = tmp_path / "state"
    with StoreServer.redis(tmp_path) as server:
        await settled(tmp_path, server.url, count=5)
        shutil.copytree(state, tmp_path / "copy")
        await settled(tmp_path, server.url, count=7)
        assert len(journals(state)) == 1  # an ordinary restart begins none
        shutil.rmtree(state)
        shutil.copytree(tmp_path / "copy", state)
        for _ in range(2):
            caplog.clear()
            await settled(tmp_path, server.url, count=2)
        assert len(journals(state)) == 2
        assert "older copy" not in caplog.text  # it is not, any more
        with server.client() as redis:
            total = sum(int(redis.hget(name, "m1|requests") or 0) for name in redis.scan_iter("mp:*:usage:*"))
            used = [int(redis.hget(name, "used") or 0) for name in redis.scan_iter("mp:*:quota:*")]
        assert total == 5 + 7 + 2 * 2
        assert sum(used) == total * 15  # tokens of each


async def test_what_was_in_flight_when_the_copy_was_made_counts_once(tmp_path: Path) -> None:
    """Redis heard how it ended; the copy only knows that it ran."""
    state = tmp_path / "state"
    record = records(1)[0]
    with StoreServer.redis(tmp_path) as server:
        ledger = Ledger(state / "w0", Store(server.url))
        await ledger.start()
        slot = ledger.admit(admission_of(record))
        assert slot is not None
        shutil.copytree(state, tmp_path / "copy")
        ledger.settle(record, slot, charges=(CHARGE,))
        await until(lambda: ledger.unsynced == 0, "Redis has it")
        await ledger.stop()
        shutil.rmtree(state)
        shutil.copytree(tmp_path / "copy", state)
        await settled(tmp_path, server.url, count=3)
        with server.client() as redis:
            total = sum(int(redis.hget(name, "m1|requests") or 0) for name in redis.scan_iter("mp:*:usage:*"))
        assert total == 1 + 3


async def test_old_segments_go_to_the_archive_and_their_totals_stay(tmp_path: Path) -> None:
    """Base and segments together give the books, line by line."""
    from meter_proxy.config.schema import JournalConfig

    settings = JournalConfig.model_validate(
        {"segment": "4K", "keep_size": "9K", "archive": str(tmp_path / "archive")}, context=None
    )
    with StoreServer.redis(tmp_path) as server:
        ledger = Ledger(tmp_path / "state" / "w0", Store(server.url), journal=settings)
        await ledger.start()
        for record in records(60):
            ledger.settle(record, charges=(CHARGE,))
        await until(lambda: ledger.unsynced == 0, "Redis has it")
        await until(lambda: list((tmp_path / "archive").rglob("*.jsonl.gz")), "the archive")
        await ledger.stop()
        kept = len(list(iter_records(tmp_path / "state")))
        assert 0 < kept < 60
        (journal,) = journals(tmp_path / "state")
        books = recompute(journal)
        assert sum(t[0] for book in books if isinstance(book, DayBook) for t in book.totals.values()) == 60
        assert (await compared(tmp_path, server.url)).differences == []
        again = Ledger(tmp_path / "state" / "w0", Store(server.url), journal=settings)
        await again.start()
        await again.stop()
        assert (await compared(tmp_path, server.url)).differences == []
