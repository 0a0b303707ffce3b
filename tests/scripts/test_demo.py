"""The demo keeps its promise on the shipped weights: half the error of doing nothing, and the thickness asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPO
from PIL import Image


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_counterfactuals_of_the_shipped_weights_are_near_the_truth(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(REPO / "scripts" / "demo.py"),
        "--out",
        str(tmp_path / "out"),
        "--images",
        "32",
    ]
    process = subprocess.run(command, capture_output=True, text=True, timeout=880, cwd=tmp_path, check=False)
    assert process.returncode == 0, process.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report) == {"morphomnist", "pendulum"}
    for dataset, row in report.items():
        assert {"do_nothing_l1", "counterfactual_l1", "variable", "requested", "measured", "seconds"} <= set(row)
        assert row["counterfactual_l1"] <= 0.5 * row["do_nothing_l1"], (dataset, row)
        assert dataset in process.stdout
    assert abs(report["morphomnist"]["measured"] - report["morphomnist"]["requested"]) <= 0.3
    with Image.open(tmp_path / "out" / "counterfactuals.png") as picture:
        assert min(picture.size) > 500


def test_the_demo_names_what_is_wrong(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(REPO / "scripts" / "demo.py"),
        "--out",
        str(tmp_path / "out"),
        "--images",
        "-1",
    ]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 2 and process.stderr.startswith("error: --images")
    assert not (tmp_path / "out").exists()
