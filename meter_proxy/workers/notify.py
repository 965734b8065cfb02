"""What we tell the service manager that started us: ready, reloading, stopping, still alive.

The protocol is systemd's sd_notify(3): one datagram of `NAME=value` lines to the socket in NOTIFY_SOCKET. Not started
by such a manager, every call does nothing. A manager that cannot be reached costs a line in the log, never the service.
"""

import logging
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Self

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_MICROSECONDS = 1_000_000

_log = logging.getLogger("meter_proxy.workers")


class ServiceManager:
    """The one who started us, and waits to hear from us. No call blocks or raises."""

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        """`address`: a Unix socket's path, or `@NAME` in the abstract namespace; None for nobody.

        `watchdog_s`: after so long a silence we are killed; None for never.
        """
        self._address = address
        self._is_unreachable = False  # said once in the log
        self.keep_alive_s = None if address is None or watchdog_s is None else watchdog_s / 2
        """How often `alive()` is due, in seconds; None for never."""

    @classmethod
    def from_environment(cls, env: MutableMapping[str, str]) -> Self:
        """Read what systemd has set, and take it out: our children must not speak in our name."""
        address, watchdog_us, watched_pid = (env.pop(name, "") for name in _VARIABLES)
        is_watched = watchdog_us.isascii() and watchdog_us.isdigit() and int(watchdog_us) > 0
        if watched_pid and watched_pid != str(os.getpid()):
            is_watched = False  # it is for somebody between the manager and us
        if address and address[0] not in "/@":
            _log.warning("NOTIFY_SOCKET is neither a path nor an abstract name; the service manager is not told")
            address = ""
        return cls(address or None, int(watchdog_us) / _MICROSECONDS if is_watched else None)

    def ready(self, status: str) -> None:
        """We serve, at the start or after a reload, whether that was good or not; `status` is one line for people."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Another configuration is being read; `ready()` follows."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000  # lets the manager tell one reload from the next
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_us}", "STATUS=reading the configuration again")

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._send("STOPPING=1", f"STATUS={status}")

    def alive(self) -> None:
        """Due every `keep_alive_s`."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto("\n".join(lines).encode(), address)
        except OSError as exc:
            if not self._is_unreachable:
                _log.warning("cannot tell the service manager %s: %s", lines[0], exc.strerror)
            self._is_unreachable = True
        else:
            self._is_unreachable = False

    def __repr__(self) -> str:
        return f"<ServiceManager {self._address} keep_alive_s={self.keep_alive_s}>"
