"""Counts the bytecode instructions of a process, from one SIGUSR2 to the next. On the PYTHONPATH of a measured proxy.

Python imports a module of this name at its start, before the proxy's own code, so all workers inherit the handler. The
count is of the main thread, and says nothing about work inside C code. It is the same on every machine. The second
signal writes it to $METER_PROXY_COUNT/PID.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

DIRECTORY = os.environ["METER_PROXY_COUNT"]
_executed = 0


def _on_call(frame: FrameType, event: str, argument: Any) -> Any:
    frame.f_trace_lines = False
    frame.f_trace_opcodes = True
    return _on_opcode


def _on_opcode(frame: FrameType, event: str, argument: Any) -> Any:
    global _executed
    _executed += 1
    return _on_opcode


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _executed
    if sys.gettrace() is None:
        _executed = 0
        sys.settrace(_on_call)
        return
    sys.settrace(None)
    path = Path(DIRECTORY, str(os.getpid()))
    path.with_suffix(".new").write_text(str(_executed))
    path.with_suffix(".new").rename(path)


signal.signal(signal.SIGUSR2, _on_signal)
