"""The listening sockets. They belong to the parent: a worker that dies loses no connection that waits in its queue.

The first socket of the public port is bound and listens alone, so the kernel itself says whether anybody else
is there, another meter-proxy included; only then it is opened to company (SO_REUSEPORT), and each further worker
gets one of its own. The kernel spreads new connections over them.
"""

import errno
import os
import socket
from types import TracebackType
from typing import Self

from meter_proxy.app import BACKLOG
from meter_proxy.config.schema import Address
from meter_proxy.errors import CannotStart


class Listeners:
    """All sockets of a proxy. A context manager: they are open within the block."""

    def __init__(self, public: Address, admin: Address, workers: int) -> None:
        """Nothing is opened yet; a port 0 stands for a free one."""
        self.public_address = public
        self.admin_address = admin
        self.admin: socket.socket
        self._workers = workers
        self._public: dict[int, socket.socket] = {}

    def __enter__(self) -> Self:
        """Open them. Raises `CannotStart` with one line that says which option would help."""
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def _open(self) -> None:
        first = _bind(self.public_address, option="--listen")
        self._public[0] = first
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.public_address = Address(self.public_address.host, first.getsockname()[1])
        self.admin = _bind(self.admin_address, option="--admin")
        self.admin_address = Address(self.admin_address.host, self.admin.getsockname()[1])
        for index in range(1, self._workers):
            self.of(index)

    def of(self, index: int) -> socket.socket:
        """The socket of one worker; opened anew if it was closed. Raises `CannotStart`."""
        sock = self._public.get(index)
        if sock is None:
            sock = self._public[index] = _bind(self.public_address, option="--listen", share=True)
        return sock

    def close(self, index: int) -> None:
        """Close the parent's side of a worker's socket: new connections go to the others, or are refused."""
        sock = self._public.pop(index, None)
        if sock is not None:
            sock.close()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for index in list(self._public):
            self.close(index)
        if hasattr(self, "admin"):
            self.admin.close()

    def __repr__(self) -> str:
        return f"<Listeners {self.public_address} admin={self.admin_address} open={sorted(self._public)}>"


def _bind(address: Address, *, option: str, share: bool = False) -> socket.socket:
    """A listening socket at `address`. Raises `CannotStart`."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)  # asyncio sets TCP_NODELAY where the protocol is named
    except OSError as exc:
        raise CannotStart(f"cannot listen on {address}: {exc.strerror}; choose another with {option}") from exc
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(where)
        sock.listen(BACKLOG)  # the kernel looks for other listeners again: two of us cannot slip past each other
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        reason = "address already in use" if exc.errno == errno.EADDRINUSE else os.strerror(exc.errno or 0).lower()
        raise CannotStart(f"cannot listen on {address}: {reason}; choose another with {option}") from exc
    return sock
