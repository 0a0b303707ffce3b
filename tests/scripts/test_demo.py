"""The demo's promise on the shipped weights: half the error of doing nothing, and the requested thickness."""

import json
from pathlib import Path

import pytest
from paths import REPO
from PIL import Image
from running import assert_refused, run

SCRIPT = REPO / "scripts" / "demo.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_counterfactuals_of_the_shipped_weights_are_near_the_truth(tmp_path: Path) -> None:
    outcome = run(SCRIPT, "--out", tmp_path / "out", "--images", 32)
    assert outcome.returncode == 0, outcome.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report) == {"morphomnist", "pendulum"}
    for dataset, row in report.items():
        assert {"do_nothing_l1", "counterfactual_l1", "variable", "requested", "measured", "seconds"} <= set(row)
        assert row["counterfactual_l1"] <= 0.5 * row["do_nothing_l1"], (dataset, row)
        assert dataset in outcome.stdout
    assert abs(report["morphomnist"]["measured"] - report["morphomnist"]["requested"]) <= 0.3
    with Image.open(tmp_path / "out" / "counterfactuals.png") as grid:
        assert min(grid.size) > 500


def test_bad_flags_are_refused(tmp_path: Path) -> None:
    assert_refused(run(SCRIPT, "--out", tmp_path / "out", "--images", -1), "--images: expected 0 or more")
    assert not (tmp_path / "out").exists()
