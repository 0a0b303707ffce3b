"""Lists of checks: verdicts, the time budget, failures, and the report."""

import json
import math
from pathlib import Path

import pytest
import torch

from causaldiffae.errors import InputError
from causaldiffae.evaluation.check_list import Check, Outcome, hardware, run_checks, write_report


@pytest.mark.parametrize(
    ("value", "bound", "verdict"),
    [
        (1.0, 1.0, "passed"),
        (1.1, 1.0, "failed"),
        (math.nan, 1.0, "failed"),
        (5.0, None, "measured"),
        (math.inf, None, "failed"),
        (None, None, "skipped"),
    ],
)
def test_verdicts(value: float | None, bound: float | None, verdict: str) -> None:
    outcome = Outcome("loss", value, "MiB", bound, "a note")
    assert outcome.verdict == verdict
    assert outcome.line().startswith(verdict) and outcome.line().endswith("a note")


def test_columns_of_a_line_are_apart() -> None:
    name = "training step, max-autotune-no-cudagraphs, mini"
    line = Outcome(name, 79434.2, "counterfactuals/s", 79434.2, "32 images").line()
    assert f"{name} " in line and "counterfactuals/s  <= 79434.2 32" in line


def test_what_would_start_after_the_budget_is_skipped_and_a_failure_stops_nothing() -> None:
    now = 0.0

    def take(minutes: float) -> list[Outcome]:
        nonlocal now
        now += 60 * minutes
        return [Outcome("took", minutes, bound=10.0)]

    checks = [
        Check("fails", lambda: [Outcome("ratio", 1 / 0)]),
        Check("first", lambda: take(3)),
        Check("second", lambda: take(3)),
        Check("third", lambda: take(1)),
    ]
    shown: list[str] = []
    saved: list[int] = []
    outcomes = run_checks(checks, 5, shown.append, lambda: now, lambda found: saved.append(len(found)))
    assert saved == [1, 2, 3, 4], "after each check, for a run that is killed"
    assert [each.verdict for each in outcomes] == ["failed", "passed", "passed", "skipped"]
    assert outcomes[0].name == "fails" and outcomes[0].note == "ZeroDivisionError: division by zero"
    assert outcomes[3].name == "third" and outcomes[3].note == "the budget of 5 minutes is spent"
    assert shown == [each.line() for each in outcomes]


def test_the_report_has_hardware_and_command(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    outcomes = [Outcome("loss", 1e-6, bound=1e-4), Outcome("speed", math.nan)]
    write_report(path, outcomes, ["./scripts/gpu_check.sh", "--minutes", "8"], hardware(torch.device("cpu")))
    report = json.loads(path.read_text())
    assert report["command"] == "./scripts/gpu_check.sh --minutes 8" and report["hardware"]["torch"]
    assert [(each["verdict"], each["value"]) for each in report["checks"]] == [("passed", 1e-6), ("failed", None)]
    with pytest.raises(InputError, match="json: .*"):
        write_report(path / "below", outcomes, [], {})
