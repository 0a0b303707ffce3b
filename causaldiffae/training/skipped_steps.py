"""Skipping of training steps whose loss or gradient is not finite.

A single bad batch (a corrupt image, an overflow in low precision) should neither end a long run nor affect the weights,
so its step is skipped and counted. Many consecutive skipped steps mean that training has diverged, and end the run.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

from causaldiffae.errors import InputError
from causaldiffae.files.reading import replace_file

REPORT = "not_finite.json"


class SkippedSteps:
    """Counts skipped steps and reports the last ones in a file.

    Args:
        limit: maximum number of consecutive skipped steps.

    Attributes:
        total: number of skipped steps of the run.
        consecutive: number of skipped steps since the last finite one.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.total, self.consecutive = limit, 0, 0
        self._last: deque[dict[str, Any]] = deque(maxlen=max(limit, 0) + 1)

    def state_dict(self) -> dict[str, int]:
        return {"total": self.total, "row": self.consecutive}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.total, self.consecutive = state["total"], state["row"]

    def add(self, step: dict[str, Any]) -> None:
        """Counts a skipped step; its description holds plain types and the key "step"."""
        self.total += 1
        self.consecutive += 1
        self._last.append(step)

    def reset_consecutive(self) -> None:
        """Sets `consecutive` to 0; called after a finite step."""
        self.consecutive = 0

    def write_report(self, folder: Path) -> None:
        """Writes the last skipped steps to `folder/not_finite.json`."""
        replace_file(folder / REPORT, (json.dumps({"skipped": list(self._last)}, indent=1) + "\n").encode())

    def check(self) -> None:
        """Raises `InputError` if more than `limit` consecutive steps were skipped."""
        if self.consecutive > self.limit:
            raise InputError(
                f"max_skipped_steps: expected at most {self.limit} consecutive steps without a finite loss and "
                f"gradient, got {self.consecutive} up to step {self._last[-1]['step']}; their images are "
                f"listed in {REPORT}; try a smaller lr or grad_clip"
            )
