"""`deploy/examples/plugin.py`, started wrongly: it is what people copy."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
CONFIGURATION = """\
upstreams: {local: {base_url: "http://127.0.0.1:8000/v1"}}
models: {"*": {upstream: local}}
state_dir: not-a-directory/state
"""


def plugin(*arguments: str | Path) -> tuple[int, str]:
    """Its exit code and stderr."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "deploy/examples/plugin.py", *arguments],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_without_a_configuration_it_says_how_to_start_it() -> None:
    """Exit 2, no traceback."""
    code, err = plugin()
    assert code == 2
    assert err.startswith("usage: plugin.py [-h] config\n")
    assert "Traceback" not in err


def test_a_wrong_configuration_is_its_faults(tmp_path: Path) -> None:
    """A line each, as `check-config` says them."""
    assert plugin(tmp_path / "gone") == (2, f"{tmp_path}/gone:1:1: cannot read the file: No such file or directory\n")


def test_what_cannot_start_is_one_line(tmp_path: Path) -> None:
    """Here: a state directory that cannot be made."""
    (tmp_path / "mp.yaml").write_text(CONFIGURATION)
    (tmp_path / "not-a-directory").touch()
    code, err = plugin(tmp_path / "mp.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "Not a directory" in err
