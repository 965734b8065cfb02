"""The line between the parent and one worker's process: configurations go down, short lines of text come up.

A configuration takes effect in two steps, so that all workers go over to it or none does: `Prepare` lets a worker
make everything that it needs for it, `Commit` lets it serve by that, which cannot fail any more.
"""

import asyncio
import pickle
import socket
from typing import NamedTuple

from meter_proxy.config.schema import Config

# What a worker says, each up to the end of the line.
READY = b"ready"
LEAVING = b"leaving"  # told to end: takes no new connections
CANNOT_START = b"cannot start: "  # and why
PREPARED = b"prepared "  # and the number; it could serve by that configuration
REFUSED = b"refused "  # number, a blank, and why it could not
SERVING = b"serving "  # and the number: by that configuration, from now on

_LENGTH_BYTES = 8
_RECEIVE_BYTES = 65_536


class Prepare(NamedTuple):
    """Make ready for a configuration, and say so. A later one replaces it."""

    number: int
    config: Config


class Commit(NamedTuple):
    """Serve by the configuration that was prepared under this number."""

    number: int


Message = Prepare | Commit


def packed(message: Message) -> bytes:
    """A message on its way to a worker: its length, and a pickle; both ends are this very program."""
    data = pickle.dumps(message)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


def unpacked(received: bytearray) -> Message | None:
    """Take one message from what has been received; None while it is not whole."""
    length = int.from_bytes(received[:_LENGTH_BYTES], "big")
    if len(received) < _LENGTH_BYTES or len(received) < _LENGTH_BYTES + length:
        return None
    message: Message = pickle.loads(bytes(received[_LENGTH_BYTES : _LENGTH_BYTES + length]))
    del received[: _LENGTH_BYTES + length]
    return message


class Line:
    """The parent's end. One per process of a worker: its successor gets its own."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """Takes `sock` over."""
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        self._outgoing = bytearray()
        self._incoming = bytearray()
        self._is_open = True

    def fileno(self) -> int:
        """For the loop."""
        return self._sock.fileno()

    def send(self, data: bytes) -> None:
        """Send what `packed` made, after what was sent before. Never waits, not even for a worker that hangs."""
        if not self._is_open:
            return
        if not self._outgoing:
            self._loop.add_writer(self._sock, self._write)
        self._outgoing += data

    def _write(self) -> None:
        try:
            sent = self._sock.send(self._outgoing)
        except BlockingIOError:
            return
        except OSError:  # it has died; the end of what it says tells so, too
            sent = len(self._outgoing)
        del self._outgoing[:sent]
        if not self._outgoing:
            self._loop.remove_writer(self._sock)

    def receive(self) -> list[bytes] | None:
        """The whole lines that have come, without their ends; None when nothing comes any more."""
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, rest = bytes(self._incoming + data).split(b"\n")
        self._incoming[:] = rest
        return lines

    def close(self) -> None:
        """Close it. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
