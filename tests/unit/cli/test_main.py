"""The command itself: its name for every command, its errors as one line, its exit codes, its pipes."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meter_proxy import __version__
from meter_proxy.ledger.journal import encode_line
from tests.support.journals import open_journal
from tests.support.records import usage_record
from tests.unit.cli.conftest import Run

COMMANDS = (
    "serve", "demo", "mock-backend", "check-config", "usage", "records", "top", "doctor", "audit", "repair",
    "healthcheck", "config schema", "keys create", "keys hash", "import litellm", "import one-api",
)  # fmt: skip
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A state directory with more records than a pipe or a buffer holds."""
    (tmp_path / "w0").mkdir()
    journal = open_journal(tmp_path / "w0")
    journal.append(b"".join(encode_line(usage_record(), "m1") for _ in range(2000)))
    journal.close()
    return tmp_path


def child(*words: str | Path, stdout: int | None) -> tuple[int, str]:
    """Run the command line with this stdout, None for a closed one; its exit code and stderr."""
    start = [] if stdout is not None else ["sh", "-c", 'exec "$@" >&-', "sh"]
    done = subprocess.run(
        [*start, sys.executable, "-m", "meter_proxy", *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": ""},  # "": buffered, as people have it
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_version_is_printed(run: Run) -> None:
    """One line, for bug reports."""
    assert run("--version") == (0, f"meter-proxy {__version__}\n", "")


@pytest.mark.parametrize(("command", "not_needed"), [("keys", "redis"), ("records", "aiohttp.web"), ("serve", "rich")])
def test_a_command_imports_only_what_it_needs(command: str, not_needed: str) -> None:
    """Most take less than half as long to begin as all of them together."""
    script = "import sys; from meter_proxy.cli.main import application; application(sys.argv[1]); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script, command], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert f"meter_proxy.cli.{command}" in loaded.stdout.split()
    assert not_needed not in loaded.stdout.split()


@pytest.mark.parametrize("words", ["", "config", "keys", *COMMANDS])
def test_help_fits_and_says_what_to_write(run: Run, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """Of every command: no boxes, no types of ours, no sentence cut short, at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(*words.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: meter-proxy {words}".rstrip())
    assert max(map(len, out.splitlines())) <= 80
    for noise in ("<bool>", "<int", "<str>", "─", "...\n", "\x1b"):
        assert noise not in out.replace("[ARGS]...", "")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["serve", "--workers", "x"], "--workers"),
        (["serve", "--log-level", "x"], "'x' is not one of 'debug', 'info', 'warning', 'error'"),
        (["mock-backend", "--dialect", "foo"], "'foo' is not one of openai, vllm"),
        (["mock-backend", "--listen", "8000"], "such as 127.0.0.1:8000"),
        (["records", "--format", "xml"], "Invalid value for '--format': 'xml' is not one of 'table'"),
        (["records", "--limit", "0"], "greater than or equal to 1"),
        (["records", "--nope"], "--nope"),
        (["records", "a", "b"], "b"),
        (["keys", "create"], "--id"),
        (["check-config"], "FILE"),
        (["records", "--follow", "--format", "json"], "take jsonl"),
        (["top", "ftp://x"], "such as http://127.0.0.1:9090"),
        (["doctor"], "either a CONFIG or an --upstream"),
        (["import", "litellm"], "FILE"),
        (["nope"], "nope"),
    ],
)
def test_wrong_usage_is_one_clear_line(run: Run, words: list[str], named: str) -> None:
    """Exit 2, no box; it names what is wrong."""
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("meter-proxy: ")
    assert named in err


@pytest.mark.parametrize("words", [[], ["keys"], ["config"], ["import"]])
def test_a_group_without_a_command_shows_its_help(run: Run, words: list[str]) -> None:
    """As other commands do; exit 2, since nothing was done."""
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: meter-proxy")
    assert "\nCommands:\n" in err


@pytest.mark.parametrize("words", [["check-config"], ["serve"], ["usage"], ["records"]])
def test_a_configuration_that_may_not_be_read_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """The same for all commands, in the form of every other fault."""
    path = unreadable(tmp_path, monkeypatch)
    code, out, err = run(*words, path)
    assert (code, out + err) == (2, f"{path}:1:1: cannot read the file: Permission denied\n")


def test_a_configuration_that_may_not_be_read_is_json_for_programs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stdout, as every other fault."""
    path = unreadable(tmp_path, monkeypatch)
    code, out, err = run("check-config", "--format", "json", path)
    assert (code, err) == (2, "")
    (fault,) = json.loads(out)["faults"]
    assert (fault["file"], fault["message"]) == (str(path), "cannot read the file: Permission denied")


def unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that only others may read: root, who may run this, can read any."""
    path = tmp_path / "mp.yaml"
    path.touch()
    file_open = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return file_open(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "access", lambda *arguments, **options: False)
    return path


def test_each_end_has_its_exit_code(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 good, 1 a file fails us, 2 wrong configuration, 3 cannot start, 130 Ctrl-C."""
    assert run("config", "schema")[0] == 0
    journal = tmp_path / "w0" / "journal-1" / "0000000000000000.log"
    journal.parent.mkdir(parents=True)
    journal.symlink_to(journal)
    code, _, err = run("usage", "--state-dir", tmp_path)
    assert (code, err) == (1, f"meter-proxy: {journal}: Too many levels of symbolic links\n")
    assert run("check-config", tmp_path / "gone")[0] == 2
    code, _, err = run("mock-backend", "--truth", tmp_path / "gone" / "truth")
    assert (code, err) == (
        3,
        f"meter-proxy: cannot write the truth to {tmp_path}/gone/truth: No such file or directory\n",
    )

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("meter_proxy.cli.config.json_schema", interrupt)
    assert run("config", "schema") == (130, "", "")


@pytest.mark.parametrize("words", ["--help", "config schema", "usage", "records", "records --format csv"])
def test_a_closed_pipe_is_a_silent_good_end(state_dir: Path, words: str) -> None:
    """`meter-proxy ... | head -1`, however much or little is printed."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        options = ["--state-dir", str(state_dir)] if words.startswith(("usage", "records")) else []
        assert child(*words.split(), *options, stdout=writing) == (0, "")
    finally:
        os.close(writing)


@pytest.mark.parametrize("command", ["usage", "records"])
def test_a_full_disk_is_one_line(state_dir: Path, command: str) -> None:
    """Exit 1, whether it is noticed in the middle or at the end."""
    with Path("/dev/full").open("wb") as full:
        code, err = child(command, "--state-dir", state_dir, stdout=full.fileno())
    assert (code, err) == (1, "meter-proxy: No space left on device\n")


def test_no_stdout_at_all_is_no_error(state_dir: Path) -> None:
    """`meter-proxy records >&-`."""
    assert child("records", "--state-dir", state_dir, stdout=None) == (0, "")
