"""Log lines."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from meter_proxy.telemetry import logs


@pytest.fixture(autouse=True)
def logger() -> Iterator[None]:
    """The package's logger is put back as it was."""
    logger = logging.getLogger("meter_proxy")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def logged(monkeypatch: pytest.MonkeyPatch, *, level: str = "info", format: str, terminal: bool = False) -> str:
    """What is on stderr after a warning with an exception, an info and a debug line."""
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    logs.set_up(level=level, format=format)
    log = logging.getLogger("meter_proxy.ledger.sync")
    try:
        raise OSError("no\nspace")
    except OSError:
        log.warning("cannot write %s", "x", exc_info=True)
    log.info("an info")
    log.debug("a debug")
    return stderr.getvalue()


def test_json_lines_are_one_object_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with an exception of many lines."""
    lines = [json.loads(line) for line in logged(monkeypatch, format="json").splitlines()]
    assert [(line["level"], line["logger"], line["message"]) for line in lines] == [
        ("warning", "ledger.sync", "cannot write x"),
        ("info", "ledger.sync", "an info"),
    ]
    assert "OSError: no\nspace" in lines[0]["exception"]
    assert "exception" not in lines[1]
    assert lines[0]["time"].endswith("Z")


def test_text_lines_are_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time, level, where, process, message."""
    assert " WARNING ledger.sync [" in logged(monkeypatch, format="text")


@pytest.mark.parametrize(("terminal", "is_json"), [(True, False), (False, True)])
def test_auto_is_text_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, terminal: bool, is_json: bool) -> None:
    """Containers get JSON."""
    assert logged(monkeypatch, format="auto", terminal=terminal).startswith("{") is is_json


def test_the_level_is_the_least_that_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """From there upwards."""
    assert "an info" not in logged(monkeypatch, format="text", level="warning")
    assert "a debug" in logged(monkeypatch, format="text", level="debug")
