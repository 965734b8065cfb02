"""ServiceManagerSocket: systemd's end of the notification socket.

with ServiceManagerSocket(tmp_path) as manager:
    async with running_proxy(config, env=manager.environment(watchdog_s=0.2)):
        await manager.told("READY")
"""

import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.waiting import until


class ServiceManagerSocket:
    """Collects what a service says of itself, in the order of its arrival."""

    def __init__(self, directory: Path | None) -> None:
        """A socket in `directory`; None: one in the abstract namespace, as systemd has it for users' services."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        if directory is None:
            self._sock.bind("")  # the kernel finds a name
            self.address = "@" + self._sock.getsockname()[1:].decode()
        else:
            self.address = str(directory / "notify")
            self._sock.bind(self.address)
        self.messages: list[dict[str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sock.close()

    def environment(self, *, watchdog_s: float | None = None) -> dict[str, str]:
        """What systemd sets for the service, but for WATCHDOG_PID: it cannot be known before the start."""
        watchdog = {} if watchdog_s is None else {"WATCHDOG_USEC": str(int(watchdog_s * 1_000_000))}
        return {"NOTIFY_SOCKET": self.address, **watchdog}

    def hear(self) -> list[dict[str, str]]:
        """All messages so far; each is its `NAME=value` lines."""
        while True:
            try:
                raw = self._sock.recv(4096)
            except BlockingIOError:
                return self.messages
            self.messages.append(dict(line.split("=", 1) for line in raw.decode().splitlines()))

    async def told(self, name: str, *, times: int = 1) -> list[dict[str, str]]:
        """Wait for the `times`-th message with NAME=1; all of them."""
        return await until(
            lambda: found if len(found := [m for m in self.hear() if m.get(name) == "1"]) >= times else None,
            f"{name}=1 for the {times}. time",
        )

    def story(self) -> list[str]:
        """The states that the service went through, without its signs of life."""
        states = ("READY", "RELOADING", "STOPPING")
        return [state for message in self.hear() for state in states if message.get(state) == "1"]
