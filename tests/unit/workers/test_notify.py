"""ServiceManager: what it reads from the environment, and that it harms nobody when nobody is there."""

import logging
import os

import pytest

from meter_proxy.workers.notify import ServiceManager


def test_variables_are_taken_out_of_the_environment() -> None:
    """A worker or the embedded store cannot speak in the parent's name."""
    env = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    manager = ServiceManager.from_environment(env)
    assert env == {"HOME": "/"}
    assert manager.keep_alive_s == 15.0


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"WATCHDOG_USEC": "30000000"},
        {"NOTIFY_SOCKET": "/run/n"},
        {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)},
        {"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "30000000"},
    ],
)
def test_no_signs_of_life_where_nobody_asked_for_them(env: dict[str, str]) -> None:
    """No watchdog, one of another process, or a socket of a kind that we do not know."""
    assert ServiceManager.from_environment(env).keep_alive_s is None


def test_without_a_manager_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """The usual case: started by hand, or in a container."""
    manager = ServiceManager.from_environment({})
    manager.ready("serving")
    manager.stopping("draining")
    assert not caplog.records


def test_a_manager_that_is_gone_costs_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """The service goes on; the log says it once, not every time."""
    manager = ServiceManager("/nonexistent/notify", watchdog_s=1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            manager.alive()
    assert [record.getMessage() for record in caplog.records] == [
        "cannot tell the service manager WATCHDOG=1: No such file or directory"
    ]
