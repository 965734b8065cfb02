"""`meter-proxy top`: what goes through the proxy now. Reads, never changes anything."""

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from enum import StrEnum
from types import FrameType
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from meter_proxy.cli.admin_client import DEFAULT_ADMIN_URL, AdminClient, AdminError, AdminUrlArgument
from meter_proxy.cli.frame import frame
from meter_proxy.cli.snapshot import Snapshot, look

QUIT_KEYS = frozenset("qQ\x03\x04\x1b")  # Ctrl-C too: in this mode it may come as a byte
PIPE_WIDTH = 120

EXAMPLES = (
    "meter-proxy top",
    "meter-proxy top http://127.0.0.1:9090 --interval 0.5",
    "meter-proxy top --once",
    "meter-proxy top --once --format json | jq .live.rates",
)


class Format(StrEnum):
    """How a frame is printed."""

    TEXT = "text"
    JSON = "json"


def command(
    admin_url: AdminUrlArgument = DEFAULT_ADMIN_URL,
    interval: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, max=3600, help="Between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit; so does a pipe.")] = False,
    format: Annotated[Format, typer.Option(help="json: one frame as the server told it.")] = Format.TEXT,
) -> None:
    """Show live streams, keys and quotas.

    Streams in flight, tokens per second, each key, and how full the quotas are. q quits. Output tokens per second of
    a stream are those since the last frame.
    """
    client = AdminClient(admin_url)
    if format is Format.JSON:
        document = look(client, time.monotonic()).document
        print(msgspec.json.format(msgspec.json.encode(document)).decode())
    elif once or not (sys.stdout.isatty() and sys.stdin.isatty()):
        _print_once(client)
    else:
        _watch(client, interval)


def _print_once(client: AdminClient) -> None:
    """One frame: as large as the terminal is, or whole into a pipe."""
    console = Console(highlight=False)
    size = shutil.get_terminal_size((PIPE_WIDTH, 0))
    width, height = (size.columns, size.lines) if console.is_terminal else (size.columns, None)
    console.width = width
    shown = frame(
        look(client, time.monotonic()), None, url=client.url, width=width, height=height, now=time.time(), note=""
    )
    shown.rstrip()
    console.print(shown, no_wrap=True, crop=False, soft_wrap=True)


def _watch(client: AdminClient, interval_s: float) -> None:
    """Frames on the whole screen until `q`. A proxy that goes away is waited for; the first look must succeed."""
    snapshot, before, note = look(client, time.monotonic()), None, ""
    console = Console(highlight=False)
    with (
        _ended_by_signals(),
        _keys() as keys,
        Live(console=console, screen=True, auto_refresh=False) as screen,
    ):
        while True:
            _show(screen, snapshot, before, client.url, note)
            deadline = time.monotonic() + interval_s
            size = console.size
            while (left_s := deadline - time.monotonic()) > 0:
                if keys.pressed(min(left_s, 0.25)) & QUIT_KEYS:
                    return
                if console.size != size:
                    size = console.size
                    _show(screen, snapshot, before, client.url, note)
            try:
                snapshot, before, note = look(client, time.monotonic()), snapshot, ""
            except AdminError as exc:
                note = f"{exc} (as of {time.monotonic() - snapshot.at:.0f} s ago)"


def _show(screen: Live, snapshot: Snapshot, before: Snapshot | None, url: str, note: str) -> None:
    size = screen.console.size
    shown = frame(snapshot, before, url=url, width=size.width, height=size.height, now=time.time(), note=note)
    shown.no_wrap = True
    screen.update(shown, refresh=True)


class _Keys:
    """Keys as they are pressed, without Enter and without an echo."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def pressed(self, within_s: float) -> frozenset[str]:
        """Wait for keys; empty when none came. A terminal that is gone counts as `q`."""
        ready, _, _ = select.select([self._descriptor], [], [], within_s)
        if not ready:
            return frozenset()
        data = os.read(self._descriptor, 64)
        if len(data) > 1 and data.startswith(b"\x1b"):
            return frozenset()  # an arrow or a function key, not Esc
        return frozenset(data.decode("ascii", "replace")) if data else frozenset("q")


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this block as an exception does: the terminal is given back as it was."""

    def leave(which: int, _: FrameType | None) -> None:
        signal.signal(which, signal.SIG_IGN)  # once is enough: not again while the terminal is given back
        raise SystemExit(128 + which)  # what a shell makes of a process that a signal ended

    before = {which: signal.signal(which, leave) for which in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except (OSError, termios.error):
        # The terminal is gone, and took our last words with it. Python's own flush at its end would fail, too.
        os._exit(128 + signal.SIGHUP)
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


@contextlib.contextmanager
def _keys() -> Iterator[_Keys]:
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield _Keys(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
