"""Runs a list of checks within a time budget: name, value, bound, passed or failed, and a report as JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from causaldiffae.errors import InputError, one_line
from causaldiffae.files.reading import replace_file


@dataclass(frozen=True)
class Outcome:
    """A measured value.

    Attributes:
        name: what was measured.
        value: the figure; None if it was not measured.
        unit: of the value; empty for a ratio.
        bound: largest value that passes; None for a figure without a bound.
        note: how it was measured, or why it was not.
        failed: whether the measurement itself failed.
    """

    name: str
    value: float | None
    unit: str = ""
    bound: float | None = None
    note: str = ""
    failed: bool = False

    @property
    def verdict(self) -> str:
        """passed, failed, skipped, or measured for a value without a bound."""
        if self.failed:
            return "failed"
        if self.value is None:
            return "skipped"
        if self.bound is None:
            return "measured" if math.isfinite(self.value) else "failed"
        return "passed" if self.value <= self.bound else "failed"  # NaN fails

    def line(self) -> str:
        """The outcome as a line of text."""
        value = "" if self.value is None else f"{self.value:,.4g} {self.unit}".rstrip()
        bound = "" if self.bound is None else f"<= {self.bound:g}"
        return f"{self.verdict:9s}{self.name:44s} {value:>24s}  {bound:10s} {self.note}".rstrip()


class Check(NamedTuple):
    """A named function that measures one or several values."""

    name: str
    run: Callable[[], Iterable[Outcome]]


def run_checks(
    checks: Sequence[Check],
    minutes: float,
    show: Callable[[str], object],
    clock: Callable[[], float] = time.perf_counter,
    save: Callable[[Sequence[Outcome]], object] = lambda outcomes: None,
) -> list[Outcome]:
    """Runs checks in order; a check that would start after `minutes` is skipped, one that raises has failed.

    Args:
        show: is called with a line for each outcome.
        save: is called with all outcomes so far after each check, so that a run that is killed leaves them.
    """
    start, outcomes = clock(), []
    for check in checks:
        if clock() - start >= 60 * minutes:
            found = [Outcome(check.name, None, note=f"the budget of {minutes:g} minutes is spent")]
        else:
            try:
                found = list(check.run())
            except Exception as error:  # a check must not keep the others from running
                message = one_line(f"{type(error).__name__}: {error}")[:200]
                found = [Outcome(check.name, None, note=message, failed=True)]
        outcomes += found
        for each in found:
            show(each.line())
        save(outcomes)
    return outcomes


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine that a report is about."""
    found: dict[str, Any] = {
        "device": str(device),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found |= {"gpu": gpu.name, "gpu_gib": gpu.total_memory / 2**30, "capability": f"{gpu.major}.{gpu.minor}"}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def write_report(path: Path, outcomes: Sequence[Outcome], command: Sequence[str], machine: dict[str, Any]) -> None:
    """Writes outcomes, command and machine as JSON.

    Raises:
        InputError: if the file cannot be written.
    """
    checks = [asdict(each) | {"verdict": each.verdict} for each in outcomes]
    for each in checks:
        if each["value"] is not None and not math.isfinite(each["value"]):
            each["value"] = None
    report = {"command": shlex.join(command), "hardware": machine, "checks": checks}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(report, indent=2) + "\n").encode())  # atomic: a kill leaves the former report
    except OSError as error:
        raise InputError(f"json: {path}: {error.strerror}") from error
