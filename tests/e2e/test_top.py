"""`top` on a real terminal: tmux draws it, and the keys are typed."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.admin_listener import AdminListener, live, quota, stream
from tests.support.proc import REPOSITORY, children_of, is_running
from tests.support.waiting import until_blocking

_SAY_OTHERWISE = {"NO_COLOR", "COLUMNS", "LINES"}  # readline, which pytest-xdist's workers load, sets the last two


class Terminal:
    """A tmux server of its own with one window, in which `meter-proxy top` runs; its exit code is printed after it."""

    def __init__(self, directory: Path, width: int, height: int, *words: str, no_colour: bool = False) -> None:
        self._tmux = ["tmux", "-f", "/dev/null", "-S", str(directory / "tmux")]
        command = shlex.join([sys.executable, "-m", "meter_proxy", "top", *words])
        command = f"export NO_COLOR=1; {command}" if no_colour else command
        self._run(
            "new-session", "-d", "-x", str(width), "-y", str(height), f"{command}; echo ended with $?; exec cat",
            PYTHONPATH=str(REPOSITORY),
        )  # fmt: skip

    def _run(self, *words: str, **env: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name not in _SAY_OTHERWISE} | env
        done = subprocess.run(
            [*self._tmux, *words], capture_output=True, text=True, check=True, timeout=20, env=environment
        )
        return done.stdout

    def screen(self, *, colours: bool = False) -> str:
        """What a person sees; with the escape sequences of colours on demand."""
        return self._run("capture-pane", "-p", *(["-e"] if colours else []))

    def shows(self, text: str) -> str:
        """Wait until a text is on the screen; the screen then."""
        return until_blocking(lambda: (text in (shown := self.screen()) and shown) or None, f"{text!r} on the screen")

    def type(self, keys: str) -> None:
        """Press keys."""
        self._run("send-keys", keys)

    def resize(self, width: int, height: int) -> None:
        """Change the window's size."""
        self._run("resize-window", "-x", str(width), "-y", str(height))

    def pid(self) -> int:
        """The process of `top`: the shell's only child."""
        (pid,) = children_of(int(self._run("display-message", "-p", "#{pane_pid}")))
        return pid

    def is_sane(self) -> bool:
        """Whether a person could type here: lines are edited and echoed, and there is a cursor."""
        name, cursor = self._run("display-message", "-p", "#{pane_tty} #{cursor_flag}").split()
        done = subprocess.run(["stty", "-F", name, "-a"], capture_output=True, text=True, check=True, timeout=20)
        return {"icanon", "echo"} <= set(done.stdout.split()) and cursor == "1"

    def close(self) -> None:
        """End this server, whose socket is its own."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self._run("kill-server")


@pytest.fixture
def admin() -> Iterator[AdminListener]:
    """Forty streams and thirty quotas."""
    with AdminListener() as listener:
        streams = [stream(number, key=f"key-{number % 4}") for number in range(40)]
        listener.answers["/api/live"] = (200, live(streams))
        rules = [quota(key=f"key-{number}", used=190_000 - 1000 * number) for number in range(30)]
        listener.answers["/api/quotas"] = (200, {"total": 30, "data": rules})
        yield listener


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
def test_top_fills_the_terminal_and_q_quits(admin: AdminListener, tmp_path: Path, width: int, height: int) -> None:
    """All three sections at both sizes, no line broken; after `q` the shell's own screen is back, exit 0."""
    terminal = Terminal(tmp_path, width, height, admin.url, "--interval", "0.2")
    try:
        shown = terminal.shows("STREAMS").rstrip("\n").split("\n")
        assert len(shown) <= height
        assert shown[0].startswith("meter-proxy http://127.0.0.1:")
        assert shown[0].endswith("q quits")
        assert len(shown[0]) == width
        titles = {line.split()[0]: line for line in shown if line.startswith(("QUOTAS", "KEYS", "STREAMS"))}
        assert titles["QUOTAS"].endswith("of 30")
        assert titles["STREAMS"].endswith("of 40")
        assert [line for line in shown if "key-0" in line and "█" in line and "95%" in line]
        assert "\x1b[" in terminal.screen(colours=True)
        terminal.type("q")
        after = terminal.shows("ended with 0")
        assert "STREAMS" not in after
    finally:
        terminal.close()


def test_top_follows_the_server_and_the_terminal(admin: AdminListener, tmp_path: Path) -> None:
    """New numbers come by themselves; a wider window is filled; a server that goes away is said and waited for."""
    terminal = Terminal(tmp_path, 80, 24, admin.url, "--interval", "0.2")
    try:
        terminal.shows("40 in flight")
        admin.answers["/api/live"] = (200, live([stream(1)]))
        terminal.shows("1 in flight")
        terminal.resize(150, 30)
        terminal.shows("chatcmpl-00000001")  # ids are shown where there is room
        admin.answers["/api/live"] = (500, {"error": {"message": "on fire"}})
        terminal.shows("on fire")
        admin.answers["/api/live"] = (200, live([stream(1), stream(2)]))
        terminal.shows("2 in flight")
        terminal.type("C-c")
        terminal.shows("ended with")
    finally:
        terminal.close()


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(admin: AdminListener, tmp_path: Path, which: signal.Signals) -> None:
    """As `q` does; the exit code is the shell's for that signal."""
    terminal = Terminal(tmp_path, 80, 24, admin.url, "--interval", "0.2")
    try:
        terminal.shows("STREAMS")
        assert not terminal.is_sane()
        os.kill(terminal.pid(), which)
        assert "STREAMS" not in terminal.shows(f"ended with {128 + which}")
        assert terminal.is_sane()
    finally:
        terminal.close()


def test_a_terminal_that_is_closed_ends_it(admin: AdminListener, tmp_path: Path) -> None:
    """There is nobody left to show anything."""
    terminal = Terminal(tmp_path, 80, 24, admin.url, "--interval", "0.2")
    try:
        terminal.shows("STREAMS")
        pid = terminal.pid()
    finally:
        terminal.close()
    until_blocking(lambda: not is_running(pid), "the end of top")


def test_no_color_is_respected(admin: AdminListener, tmp_path: Path) -> None:
    """https://no-color.org: bold and dim may stay, colours may not."""
    for name in ("coloured", "plain"):
        (tmp_path / name).mkdir()
    coloured = Terminal(tmp_path / "coloured", 80, 24, admin.url)
    plain = Terminal(tmp_path / "plain", 80, 24, admin.url, no_colour=True)
    try:
        for terminal, has_colours in ((coloured, True), (plain, False)):
            terminal.shows("STREAMS")
            codes = re.findall(r"\x1b\[([0-9;]*)m", terminal.screen(colours=True))
            assert any(re.search(r"\b(3|9)[1-7]\b", code) for code in codes) is has_colours
    finally:
        coloured.close()
        plain.close()
