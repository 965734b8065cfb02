"""Tables on terminals and in pipes, amounts, and the directory that they are read from."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meter_proxy.cli import tables
from meter_proxy.errors import ConfigError

LONG_ID = "req-0123456789-0123456789-0123456789-0123456789"
COLUMNS = ("key", "n", "status", "id")
Show = Callable[..., list[str]]


@pytest.fixture
def on_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    """`on_terminal(width, row)`: the lines of a table of one row on a terminal that wide."""

    def show(width: int, *rows: list[tables.Cell]) -> list[str]:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("NO_COLOR", "1")
        tables.print_table(COLUMNS, frozenset({"n"}), rows, optional=("id", "status"))
        return capsys.readouterr().out.splitlines()

    return show


def test_a_wide_terminal_gets_a_frame(on_terminal: Show) -> None:
    """If it is wide enough for every line; markup in a name is text."""
    row: list[tables.Cell] = ["alice[red]", 5, 200, LONG_ID]
    lines = on_terminal(80, row)
    assert f"│ alice[red] │ 5 │ 200    │ {LONG_ID} │" in lines
    width = len(lines[0])
    assert on_terminal(width, row) == lines
    assert "│" not in "".join(on_terminal(width - 1, row))


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (65, ["alice", "5", "200", LONG_ID]),
        (64, ["alice", "5", "200"]),
        (16, ["alice", "5", "200"]),
        (15, ["alice", "5"]),
        (5, ["alice", "5"]),
    ],
)
def test_a_narrow_terminal_gets_the_plain_columns_that_fit(on_terminal: Show, width: int, shown: list[str]) -> None:
    """Optional columns go one by one; the others overflow and are never cut."""
    heading, row = on_terminal(width, ["alice", 5, 200, LONG_ID])
    assert heading.split() == [*COLUMNS[: len(shown)]]
    assert row.split() == shown


def test_a_frame_is_for_what_can_be_looked_over(on_terminal: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long table is printed as it comes, without one."""
    monkeypatch.setattr(tables, "CHUNK_ROWS", 3)
    row: list[tables.Cell] = ["alice", 5, 200, "x"]
    assert "│" in "".join(on_terminal(80, row, row))
    assert [line.split() for line in on_terminal(80, *[row] * 4)][1:] == [["alice", "5", "200", "x"]] * 4


def test_the_first_line_does_not_wait_for_the_last_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe gets lines while the rows are still being read; a wider cell widens its column from there on."""
    monkeypatch.setattr(tables, "CHUNK_ROWS", 2)
    printed: list[str] = []

    def rows() -> Iterator[list[tables.Cell]]:
        for key in ("a", "b", "carol", "d"):
            printed.append(capsys.readouterr().out)
            yield [key, 1]

    tables.print_table(("key", "n"), frozenset({"n"}), rows())
    assert "".join(printed) == "key  n\na    1\nb    1\n"
    assert capsys.readouterr().out == "carol  1\nd      1\n"


@pytest.mark.parametrize(
    ("amounts", "written"),
    [
        ([], []),
        ([0], ["0.0000"]),
        ([1_250_000_000, 0], ["1.2500", "0.0000"]),
        ([15_000, 2_000_000_000], ["0.000015", "2.000000"]),
        ([1, 20, 12_000_000_000], ["0.000000001", "0.000000020", "12.000000000"]),
    ],
)
def test_amounts_of_a_column_are_exact_and_have_the_same_decimals(amounts: list[int], written: list[str]) -> None:
    """At least four, and as many as the finest needs."""
    decimals = tables.decimals_for(amounts)
    assert [tables.usd(amount, decimals) for amount in amounts] == written


CONFIGURATION = (
    'upstreams: {a: {base_url: "http://127.0.0.1:8000/v1"}}\nmodels: {"*": {upstream: a}}\nstate_dir: books\n'
)


def test_a_configuration_that_never_ran_is_named(tmp_path: Path) -> None:
    """Not: name the configuration. It was named."""
    path = tmp_path / "mp.yaml"
    path.write_text(CONFIGURATION)
    with pytest.raises(ConfigError) as error:
        tables.state_directory(path, None)
    assert str(error.value) == f"meter-proxy: serve has not run with {path} yet (no {tmp_path}/books)"
    (tmp_path / "books").mkdir()
    assert tables.state_directory(path, None) == tmp_path / "books"


def test_a_state_dir_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """It says where it looked."""
    with pytest.raises(ConfigError) as error:
        tables.state_directory(None, tmp_path / "gone")
    assert str(error.value) == f"meter-proxy: no state directory at {tmp_path}/gone"


@pytest.mark.parametrize("forbidden", [".", "w0"])
def test_records_that_may_not_be_read_are_not_an_empty_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forbidden: str
) -> None:
    """Another user's state directory, or a worker's in it."""
    (tmp_path / "w0").mkdir()
    locked = tmp_path / forbidden
    scandir = os.scandir

    def scan(path: Any) -> Any:
        if Path(path) == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    assert tables.state_directory(None, tmp_path) == tmp_path
    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(ConfigError) as error:
        tables.state_directory(None, tmp_path)
    assert str(error.value) == f"meter-proxy: cannot read the state directory {locked}: Permission denied"


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 records"), (1, "1 record"), (2, "2 records"), (12_345, "12,345 records")]
)
def test_one_of_something_is_not_many(count: int, words: str) -> None:
    assert tables.counted(count, "record") == words


def test_a_word_may_have_its_own_plural() -> None:
    assert [tables.counted(count, "day or counter", "days and counters") for count in (1, 2)] == [
        "1 day or counter",
        "2 days and counters",
    ]
