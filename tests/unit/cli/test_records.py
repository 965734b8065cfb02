"""`meter-proxy records`: one line an exchange, newest last."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from meter_proxy.cli import records
from meter_proxy.errors import ConfigError
from meter_proxy.ledger.journal import Journal, encode_line
from tests.support.journals import open_journal
from tests.support.records import usage_record

LONG_ID = "req-0123456789-0123456789-0123456789-0123456789"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal with three records, `w0`'s."""
    (tmp_path / "w0").mkdir()
    journal = open_journal(tmp_path / "w0")
    for second, key in enumerate(("alice", "bob", "alice"), start=1):
        record = usage_record(id=f"r{second}", key=key, time=f"2026-03-01T00:00:0{second}.000Z", client_request_id="@x")
        journal.append(encode_line(record, "m1"))
    return journal


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    """`run(*arguments)`: the command on the test's state directory."""
    app = typer.Typer()
    app.command()(records.command)
    return lambda *arguments: CliRunner().invoke(
        app, ["--state-dir", str(tmp_path), *arguments], catch_exceptions=False
    )


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ([], ["r1", "r2", "r3"]),
        (["--limit", "2"], ["r2", "r3"]),
        (["--key", "alice"], ["r1", "r3"]),
        (["--key", "alice", "--limit", "1"], ["r3"]),
        (["--since", "2026-03-01T00:00:02Z"], ["r2", "r3"]),
        (["--key", "nobody"], []),
    ],
)
def test_records_are_chosen_and_come_newest_last(
    journal: Journal, run: Callable[..., Result], arguments: list[str], ids: list[str]
) -> None:
    """All of them, or the newest, of a key, since a moment."""
    lines = run("--format", "jsonl", *arguments).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ids


def test_csv_has_the_fields_of_the_contract(journal: Journal, run: Callable[..., Result]) -> None:
    """In their order, integers as they are, nothing for what is not known, no formula."""
    rows = list(csv.DictReader(run("--format", "csv", "--limit", "1").stdout.splitlines()))
    contract = (
        "id,time,key,account,model,upstream_model,response_model,upstream,operation,stream,input_tokens,"
        "cached_input_tokens,output_tokens,reasoning_tokens,cost_nano_usd,input_basis,basis,outcome,status,ttft_ms,"
        "duration_ms,client_request_id"
    )
    assert list(rows[0])[:-1] == contract.split(",")
    assert (rows[0]["cost_nano_usd"], rows[0]["cached_input_tokens"], rows[0]["stream"]) == ("75000", "", "true")
    assert (rows[0]["operation"], rows[0]["basis"]) == ("chat", "reported")
    assert rows[0]["client_request_id"] == "'@x"


def test_table_shows_ids_whole_and_control_characters_harmless(journal: Journal, run: Callable[..., Result]) -> None:
    """A model name cannot move the reader's cursor; costs are dollars."""
    journal.append(encode_line(usage_record(id=LONG_ID, model="\x1b[2Jgone\n[bold]", status=None), "other"))
    last = run().stdout.splitlines()[-1]
    assert last.endswith(f"  {LONG_ID}")
    assert r"\x1b[2Jgone\n[bold]" in last
    assert "  0.000075000  reported  completed       -  " in last


@pytest.mark.usefixtures("journal")
def test_a_narrow_terminal_gets_the_columns_that_a_bill_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 90 columns nothing wraps."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "90")
    records.command(state_dir=tmp_path)
    heading, *rows = capsys.readouterr().out.splitlines()
    assert "  ".join(heading.split()) == "time  key  model  input  output  cost  USD  basis  outcome"
    assert len(rows) == 3
    assert max(map(len, [heading, *rows])) <= 90


class CtrlC:
    """Stands in for `time.sleep`: a running `serve` settles lines between two polls, then the user presses Ctrl-C."""

    def __init__(self, journal: Journal, *settled: Sequence[bytes]) -> None:
        self._journal = journal
        self._settled = list(settled)

    def __call__(self, seconds: float) -> None:
        if not self._settled:
            raise KeyboardInterrupt
        for line in self._settled.pop(0):
            self._journal.append(line)


@pytest.mark.parametrize("format", ["table", "jsonl", "csv"])
def test_follow_prints_what_comes_until_ctrl_c(
    journal: Journal, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """What was there and what comes, each once; Ctrl-C is a good end."""
    new = [encode_line(usage_record(id=f"new{number}", key="alice"), "m1") for number in range(3)]
    other = encode_line(usage_record(id="not-asked-for", key="bob"), "m1")
    monkeypatch.setattr("time.sleep", CtrlC(journal, new[:1], [], [new[1], other, new[2]]))
    result = run("--follow", "--format", format, "--key", "alice", "--limit", "1")
    assert result.exit_code == 0
    words = result.stdout.replace('"', " ").replace(",", " ").split()
    assert [word for word in words if word in ("r1", "r3", "new0", "new1", "new2", "not-asked-for")] == [
        "r3",
        "new0",
        "new1",
        "new2",
    ]


def test_what_is_settled_while_follow_begins_comes_once(
    journal: Journal, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before and just after the past is read, nothing is lost or doubled."""
    present = records._present

    def settle_around_reading(*arguments: object) -> object:
        journal.append(encode_line(usage_record(id="before"), "m1"))
        read = list(present(*arguments))  # type: ignore[arg-type]
        journal.append(encode_line(usage_record(id="after"), "m1"))
        return read

    monkeypatch.setattr(records, "_present", settle_around_reading)
    monkeypatch.setattr("time.sleep", CtrlC(journal, []))
    output = run("--follow", "--format", "jsonl").stdout
    assert (output.count('"before"'), output.count('"after"')) == (1, 1)


def test_a_wrong_since_is_one_clear_line(run: Callable[..., Result]) -> None:
    """Which `main` prints, and exits 2."""
    with pytest.raises(ConfigError, match="--since: 'soon' is neither"):
        run("--since", "soon")


def test_json_is_one_list_of_what_jsonl_has_in_lines(journal: Journal, run: Callable[..., Result]) -> None:
    """Also of nothing."""
    lines = run("--format", "jsonl").stdout.splitlines()
    assert json.loads(run("--format", "json").stdout) == [json.loads(line) for line in lines]
    assert json.loads(run("--format", "json", "--key", "nobody").stdout) == []
