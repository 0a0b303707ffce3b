"""Early stopping of a run by a signal or a time limit.

Job schedulers send a signal (SIGTERM; Slurm also SIGUSR1 with `--signal`) some time before they kill a job. The handler
records the signal; the training loop checks it after every step, saves a checkpoint and returns.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

_NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")  # Windows has no SIGUSR1
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class StopRequest:
    """Context manager that records signals and requests, and checks a time limit.

    Outside the main thread, where Python does not allow signal handlers, only the time limit applies.

    Args:
        max_hours: time limit, counted from construction; 0 for none.
    """

    def __init__(self, max_hours: float = 0.0) -> None:
        self.max_hours = max_hours
        self._start = time.monotonic()
        self._signal: signal.Signals | None = None
        self._requested = ""
        self._handlers: dict[signal.Signals, Any] = {}

    def request(self, reason: str) -> None:
        """Requests to stop; an empty reason changes nothing."""
        self._requested = self._requested or reason

    def reason(self) -> str:
        """Returns the reason to stop, or an empty string."""
        if self._signal is not None:
            return f"{self._signal.name} received"
        if self.max_hours and time.monotonic() - self._start >= 3600 * self.max_hours:
            return f"max_hours {self.max_hours:g} reached"
        return self._requested

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as under nohup
            self._handlers = {number: signal.signal(number, self._record) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _record(self, number: int, _: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        if number == signal.SIGINT:  # a second Ctrl-C interrupts at once
            signal.signal(number, self._handlers[self._signal])
