"""A worker's process, from its fork to its `os._exit`.

A fork takes over everything that was open and registered in the parent, in the middle of its event loop. Nothing of
that may be used here, and nothing may be kept alive here that the parent closes.
"""

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn, Protocol, TypeAlias

from meter_proxy.config.schema import Config
from meter_proxy.errors import MeterProxyError
from meter_proxy.workers import line
from meter_proxy.workers.line import Prepare, unpacked

try:
    import uvloop  # here, not after the fork: a replaced worker is wanted at once
except ImportError:
    new_event_loop = asyncio.new_event_loop
else:
    new_event_loop = uvloop.new_event_loop

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
ORPHAN_S = 0.9  # when the parent is gone: settle, and be gone within a second
HURRY_AGAIN_S = 0.1  # a cancelled worker drains first; cancelled again, it does not

_libc = ctypes.CDLL(None)  # here, not after the fork
_log = logging.getLogger("meter_proxy.workers")


# Makes everything that a new configuration needs, and may raise; what it returns goes over to it, and may not.
PrepareConfig: TypeAlias = Callable[[Config], Callable[[], None]]


class ServeWorker(Protocol):
    """What a worker does; `app.serve_worker` is it."""

    async def __call__(
        self,
        config: Config,
        *,
        index: int,
        sock: socket.socket,
        store_url: str,
        ready: Callable[[PrepareConfig], None],
        stop: asyncio.Event,
    ) -> None:
        """Serve on `sock` until `stop` is set; then drain, settle and return.

        Calls `ready`, with what takes new configurations, when connections are accepted.

        Cancelled: the same in a hurry. Raises `MeterProxyError` when it cannot start.
        """


def run(
    config: Config,
    serve_worker: ServeWorker,
    *,
    index: int,
    sock: socket.socket,
    control: socket.socket,
    store_url: str,
    signals: Collection[signal.Signals],
) -> NoReturn:
    """Be worker `index`. Call it right after the fork, with `signals` blocked; it never returns.

    `control` is the line to the parent, see line.py; its end is the parent's end.
    """
    code = 1
    try:
        _let_go_of_parent({sock.fileno(), control.fileno()})
        _end_with_parent()
        worker = _serve(config, serve_worker, index, sock, control, store_url, signals)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(worker)
        code = 0
    except asyncio.CancelledError:
        code = 0
    except MeterProxyError as exc:
        control.send(line.CANNOT_START + _in_one_line(exc))
    except BaseException:
        _log.exception("worker %d failed", index)
    finally:
        # Past the interpreter's own end: it would run what the parent has registered for its own.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise AssertionError  # unreachable: for the type checker


def _let_go_of_parent(keep: Collection[int]) -> None:
    """Undo what the fork took over: signal handlers, and every file descriptor but `keep`, stdout and stderr.

    Descriptors are not closed but pointed to /dev/null: the parent's objects still hold their numbers here, and
    must not close a file of ours that would have got the same number.
    """
    signal.set_wakeup_fd(-1)
    for which in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(which, signal.SIG_DFL)
    for which in (signal.SIGINT, signal.SIGHUP):  # a terminal sends these to the whole group; the parent decides
        signal.signal(which, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
        if fd not in (1, 2, null, *keep):
            os.dup2(null, fd, inheritable=False)


def _end_with_parent() -> None:
    """Be gone soon after the parent, even if the event loop hangs and never reads the end of `control`.

    The kernel's signal at the parent's death starts the clock; until it runs out there is time to settle.
    """
    signal.signal(signal.SIGUSR1, lambda *_: _be_gone_within(ORPHAN_S))
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)


def _be_gone_within(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends us, even if the loop hangs


async def _serve(
    config: Config,
    serve_worker: ServeWorker,
    index: int,
    sock: socket.socket,
    control: socket.socket,
    store_url: str,
    signals: Collection[signal.Signals],
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    serving = asyncio.current_task()
    assert serving is not None

    def tell(words: bytes) -> None:
        try:
            control.send(words)
        except OSError:
            pass  # the parent is gone: parent_is_gone() comes next

    def leave() -> None:
        if stop.is_set():
            hurry()
        stop.set()
        tell(line.LEAVING + b"\n")

    def hurry() -> None:
        serving.cancel()
        loop.call_later(HURRY_AGAIN_S, serving.cancel)

    def parent_is_gone() -> None:
        loop.remove_reader(control)
        _be_gone_within(ORPHAN_S)
        hurry()

    prepare: PrepareConfig | None = None
    prepared: tuple[int, Callable[[], None]] | None = None
    received = bytearray()

    def listen_to_parent() -> None:
        try:
            data = control.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            parent_is_gone()
            return
        received.extend(data)
        take_messages()

    def take_messages() -> None:
        nonlocal prepared
        while prepare is not None and (message := unpacked(received)) is not None:
            number = b"%d" % message.number
            if isinstance(message, Prepare):
                prepared = None
                try:
                    prepared = message.number, prepare(message.config)
                except Exception as exc:
                    _log.exception("worker %d cannot serve by another configuration", index)
                    tell(line.REFUSED + number + b" " + _in_one_line(exc))
                else:
                    tell(line.PREPARED + number + b"\n")
            elif prepared is not None and prepared[0] == message.number:
                prepared[1]()
                prepared = None
                tell(line.SERVING + number + b"\n")

    def is_ready(prepare_config: PrepareConfig) -> None:
        nonlocal prepare
        prepare = prepare_config
        gc.collect()
        gc.freeze()  # what there is now stays: a collection would look through all of it, and hold the loop for it
        take_messages()  # some may have come while we started
        tell(line.READY + b"\n")

    control.setblocking(False)
    loop.add_signal_handler(signal.SIGTERM, leave)
    loop.add_reader(control, listen_to_parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    await serve_worker(config, index=index, sock=sock, store_url=store_url, ready=is_ready, stop=stop)


def _in_one_line(exc: Exception) -> bytes:
    return (str(exc) or type(exc).__name__).replace("\n", "; ").encode(errors="replace") + b"\n"
