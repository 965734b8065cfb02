"""Log lines: for people on a terminal, JSON lines for machines. Never secrets, never prompts.

One handler on the logger `meter_proxy`, writing to stderr. Requests are not logged (their records are in the journals);
warnings of the libraries below us come through the root logger's last resort, as in any program.
"""

import json
import logging
import os
import sys
import time


def set_up(*, level: str = "info", format: str = "auto") -> None:
    """Log to stderr from `level` on; `auto` is text on a terminal, else JSON. Calling it again replaces the last."""
    as_json = format == "json" or (format == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else TextLines())
    logger = logging.getLogger("meter_proxy")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


class TextLines(logging.Formatter):
    """`2026-01-31 14:05:09.123 WARNING ledger.sync [4711] the store does not take the books`, local time."""

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03d %(levelname)s %(area)s [%(process)d] %(message)s", "%Y-%m-%d %H:%M:%S"
        )

    def format(self, record: logging.LogRecord) -> str:
        record.area = _area(record)
        return super().format(record)


class JsonLines(logging.Formatter):
    """`{"time", "level", "logger", "pid", "message", "exception"?}`, one object a line, UTC."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": _area(record),
            "pid": os.getpid(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def _area(record: logging.LogRecord) -> str:
    return record.name.removeprefix("meter_proxy.")
