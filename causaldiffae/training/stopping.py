"""When to stop early: a signal, or a time limit, noticed between two steps.

Queues announce the end of a job by a signal (SIGTERM; Slurm also SIGUSR1 with `--signal`) and kill it some time later.
A handler may run in the middle of anything, so it only takes a note; the training loop asks between steps, tells the
other processes, saves and leaves.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Notes signals while it is entered, and watches the clock from its making on.

    Args:
        max_hours: time limit; 0 for none.

    Outside the main thread, where Python takes no handlers, only the clock counts.
    """

    def __init__(self, max_hours: float = 0.0) -> None:
        self.max_hours = max_hours
        self._begun = time.monotonic()
        self._signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def reason(self) -> str:
        """What asks for the end, in words; empty while nothing does."""
        if self._signal is not None:
            return self._signal.name
        if self.max_hours and time.monotonic() - self._begun >= 3600 * self.max_hours:
            return f"max_hours = {self.max_hours:g}"
        return ""

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal = signal.Signals(number)
