"""The command line as it is typed, in this process."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from meter_proxy.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(*words)`: exit code, stdout and stderr of the command line."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["meter-proxy", *map(str, words)])
        with pytest.raises(SystemExit) as exit:
            main.main()
        out, err = capsys.readouterr()
        return int(exit.value.code or 0), out, err

    return run
