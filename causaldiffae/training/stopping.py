"""Stopping early on a signal or a time limit.

Job schedulers announce the end of a job by a signal (SIGTERM; Slurm also SIGUSR1 with `--signal`) and kill it later.
The handler only records the signal; the training loop reads it between steps, saves a checkpoint and returns.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Context manager that records signals; its time limit counts from construction.

    Outside the main thread, where Python allows no signal handlers, only the time limit applies.

    Args:
        max_hours: time limit; 0 for none.
    """

    def __init__(self, max_hours: float = 0.0) -> None:
        self.max_hours = max_hours
        self._start = time.monotonic()
        self._signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def reason(self) -> str:
        """Why to stop; empty to continue."""
        if self._signal is not None:
            return f"{self._signal.name} received"
        if self.max_hours and time.monotonic() - self._start >= 3600 * self.max_hours:
            return f"max_hours {self.max_hours:g} reached"
        return ""

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._record) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _record(self, number: int, _: FrameType | None) -> None:
        self._signal = signal.Signals(number)
