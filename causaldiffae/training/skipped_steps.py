"""Steps that are skipped because their loss or gradient is not finite.

One bad batch (a corrupt image, an overflow in low precision) must not end a run of days, and must not reach the
weights: such a step changes nothing and is counted. Many in a row mean that training has diverged; then the run ends,
and a file names the batches.
"""

from __future__ import annotations

import json
import math
from collections import deque
from pathlib import Path
from typing import Any

from causaldiffae.errors import InputError

DUMP = "not_finite.json"


class SkippedSteps:
    """Counts skipped steps and keeps the last of them in a file.

    Args:
        allowed: so many may follow one another.

    Attributes:
        total: skipped steps since the run began.
        row: skipped steps that followed one another up to now.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed, self.total, self.row = allowed, 0, 0
        self._last: deque[dict[str, Any]] = deque(maxlen=max(allowed, 0) + 1)

    def state_dict(self) -> dict[str, int]:
        return {"total": self.total, "row": self.row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.total, self.row = state["total"], state["row"]

    def note_good(self) -> None:
        """A step was finite: the row is over."""
        self.row = 0

    def note(self, batch: dict[str, Any]) -> None:
        """A step was skipped; `batch` describes it in plain types, "step" among them."""
        self.total += 1
        self.row += 1
        self._last.append({key: _plain(value) for key, value in batch.items()})

    def dump(self, folder: Path) -> Path:
        """Writes the last skipped steps to `folder/not_finite.json`."""
        path = folder / DUMP
        temporary = folder / f".{DUMP}.tmp"
        temporary.write_text(json.dumps({"skipped": list(self._last)}, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
        return path

    def check(self) -> None:
        """`InputError` if more steps than allowed were skipped in a row."""
        if self.row > self.allowed:
            raise InputError(
                f"the loss or its gradient is no longer finite: {self.row} steps in a row up to step "
                f"{self._last[-1]['step']}, {self.allowed} are allowed (max_skipped_steps); {DUMP} names their images; "
                "a smaller lr or grad_clip may help"
            )


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
