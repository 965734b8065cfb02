"""`mock-backend` as it is typed."""

import errno
import os
import sys

import pytest
from aiohttp import web

from meter_proxy.cli.main import main


def test_a_taken_port_says_how_to_choose_another(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 3, one line."""

    async def start(site: web.TCPSite) -> None:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr(web.TCPSite, "start", start)
    monkeypatch.setattr(sys, "argv", ["meter-proxy", "mock-backend", "--listen", "127.0.0.1:8000"])
    with pytest.raises(SystemExit) as exit:
        main()
    message = "cannot listen on 127.0.0.1:8000: Address already in use; choose another with --listen"
    assert (exit.value.code, capsys.readouterr().err) == (3, f"meter-proxy: {message}\n")
