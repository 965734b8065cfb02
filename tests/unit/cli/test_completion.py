"""Shell completion: what the shell asks is answered, and the script for it is printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


def completed(*typed: str) -> set[str]:
    """What bash is offered for the last word of `meter-proxy TYPED...`."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "_METER_PROXY_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("meter-proxy", *typed)),
        "COMP_CWORD": str(len(typed)),
    }
    done = subprocess.run(
        [sys.executable, "-m", "meter_proxy"], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("he",), {"healthcheck"}),
        (("import", ""), {"litellm", "one-api"}),
        (("usage", "--format", ""), {"table", "csv", "json", "jsonl"}),
        (("doctor", "--u"), {"--upstream", "--url"}),
    ],
)
def test_bash_is_offered_what_fits(typed: tuple[str, ...], offered: set[str]) -> None:
    """Commands, their options, and the words an option takes."""
    assert completed(*typed) == offered


@pytest.mark.parametrize(
    ("shell", "part"),
    [
        ("bash", "complete -o"),
        ("zsh", "#compdef meter-proxy"),
        ("fish", "complete --command meter-proxy"),
    ],
)
def test_install_completion_writes_the_script_for_the_shell(tmp_path: Path, shell: str, part: str) -> None:
    """Into the home directory; the shell is found out by itself, or named."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(tmp_path),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",  # then the option takes the shell's name
    }
    done = subprocess.run(
        [sys.executable, "-m", "meter_proxy", "--install-completion", shell],
        capture_output=True, text=True, env=environment, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert part in written
    assert "_METER_PROXY_COMPLETE" in written
