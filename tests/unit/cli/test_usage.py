"""`meter-proxy usage`: totals for people and for programs."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from meter_proxy.cli import usage
from meter_proxy.errors import ConfigError
from meter_proxy.ledger.journal import encode_line
from tests.support.journals import open_journal
from tests.support.records import usage_record

Run = Callable[..., Result]
FIELDS = "requests,input_tokens,output_tokens,cached_input_tokens,reasoning_tokens,cost_nano_usd"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run(*arguments)` on a state directory of three records; an expected error is raised."""
    journal_directory = tmp_path / "state" / "w0"
    journal_directory.mkdir(parents=True)
    journal = open_journal(journal_directory)
    journal.append(encode_line(usage_record(key="bob", cost_nano_usd=1_500_000_001), "gpt-4o"))
    journal.append(encode_line(usage_record(key="ann", time="2020-01-01T00:00:00.000Z", cost_nano_usd=0), "gpt-4o"))
    journal.append(encode_line(usage_record(key="ann", cost_nano_usd=20), '=cmd|"x"!A1'))
    journal.close()
    app = typer.Typer()
    app.command()(usage.command)

    def invoke(*arguments: str) -> Result:
        state_dir = ["--state-dir", str(tmp_path / "state")]
        return CliRunner().invoke(app, [*state_dir, *arguments], catch_exceptions=False)

    return invoke


def test_json_has_integers(run: Run) -> None:
    """Programs get nano-dollars and plain numbers, a row each."""
    rows = json.loads(run("--format", "json", "--by", "key").stdout)
    assert rows == [
        {"key": "ann", **dict(zip(FIELDS.split(","), [2, 20, 10, 0, 0, 20], strict=True))},
        {"key": "bob", **dict(zip(FIELDS.split(","), [1, 10, 5, 0, 0, 1_500_000_001], strict=True))},
    ]
    lines = run("--format", "jsonl", "--by", "key").stdout.splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_csv_is_safe_in_a_spreadsheet(run: Run) -> None:
    """A model name that would be a formula is quoted; everything reads back."""
    output = run("--format", "csv", "--by", "model,key").stdout
    rows = list(csv.reader(output.splitlines()))
    assert rows[0] == ["model", "key", *FIELDS.split(",")]
    assert [row[:2] for row in rows[1:]] == [['\'=cmd|"x"!A1', "ann"], ["gpt-4o", "ann"], ["gpt-4o", "bob"]]
    assert rows[3][-1] == "1500000001"


def test_table_is_plain_where_nobody_looks(run: Run) -> None:
    """Columns line up, costs are dollars, exactly."""
    output = run("--by", "key", "--since", "2026-01-01").stdout
    assert output.splitlines() == [
        "key    requests  input  output  cached input  reasoning     cost USD",
        "ann           1     10       5             0          0  0.000000020",
        "bob           1     10       5             0          0  1.500000001",
        "total         2     20      10             0          0  1.500000021",
    ]


def test_one_row_needs_no_total(run: Run) -> None:
    """It would say the same again."""
    assert "total" not in run("--by", "day", "--since", "2026-01-01").stdout
    assert "total" in run("--by", "day").stdout


@pytest.mark.usefixtures("run")
def test_a_narrow_terminal_gets_the_columns_that_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is part of another column goes first, and no line wraps."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "75")
    usage.command(by="key,day", state_dir=tmp_path / "state")
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["key", "day", "requests", "input", "output", "cached", "input", "cost", "USD"]
    assert len(rows) == 4
    assert max(map(len, [heading, *rows])) <= 75


def test_since_leaves_out_what_is_older(run: Run) -> None:
    """By the day of admission."""
    days = {json.loads(line)["day"] for line in run("--format", "jsonl", "--since", "2026-01-01").stdout.splitlines()}
    assert days == {"2026-03-01"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "colour"], "--by: cannot total by 'colour': choose from key,model,day"),
        (["--since", "soon"], "--since: 'soon' is neither"),
    ],
)
def test_a_wrong_word_is_one_clear_line(run: Run, arguments: list[str], message: str) -> None:
    """Which `main` prints, and exits 2."""
    with pytest.raises(ConfigError, match=message) as error:
        run(*arguments)
    assert "\n" not in str(error.value)


def test_no_state_directory_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And how to point it elsewhere."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"no state directory at {tmp_path}/state: .*--state-dir"):
        usage.command()


def test_nothing_used_is_an_empty_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A heading without rows."""
    usage.command(state_dir=tmp_path)
    headings = "key  model  day  requests  input  output  cached input  reasoning  cost USD"
    assert capsys.readouterr().out == f"{headings}\n"
