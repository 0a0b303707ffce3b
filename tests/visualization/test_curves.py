"""Training curves: what is read from progress.csv, which tables are refused, how curves are drawn."""

import re
from pathlib import Path

import numpy as np
import pytest

from causaldiffae.errors import DataError
from causaldiffae.visualization.curves import draw_curves, merge_identical, panels_of, read_curves, running_median

HEADER = "step,mse,label_kl,label_kl/angle,grad_norm,effectiveness/angle,new\n"


def read(folder: Path, text: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    (folder / "progress.csv").write_text(text)
    return read_curves(folder)


def test_finite_values_are_read_and_grouped_by_panel(tmp_path: Path) -> None:
    curves = read(tmp_path, HEADER + "10,0.5,3,1,2,,inf\n20,0.25,2,nan,2,9,4\n")
    assert {name: [list(part) for part in points] for name, points in curves.items()} == {
        "mse": [[10, 20], [0.5, 0.25]],
        "label_kl": [[10, 20], [3, 2]],
        "label_kl/angle": [[10], [1]],
        "grad_norm": [[10, 20], [2, 2]],
        "effectiveness/angle": [[20], [9]],
        "new": [[20], [4]],
    }
    assert panels_of(list(curves)) == {
        "image loss": ["mse"],
        "distance of the latents from the labels (KL), large at first": ["label_kl", "label_kl/angle"],
        "effectiveness: mean error of the set variable, in its unit": ["effectiveness/angle"],
        "gradient norm": ["grad_norm"],
        "other": ["new"],
    }
    (panel,) = panels_of(["response", "response_angle"])
    assert panel.startswith("response to interventions")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected logged values, got none"),
        (HEADER, "expected logged values, got none"),
        (HEADER + "10,nan,inf,,,,\n", "expected logged values, got none"),
        (HEADER + "10,0.5\n", "line 2"),
        (HEADER + "10,half,1,1,1,1,1\n", "line 2: mse: expected a number, got 'half'"),
        ("no,table\n1,2\n", "step"),
        ('a"b\x00\n', "progress.csv"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        read(tmp_path, text)


def test_running_median_ignores_an_outlier() -> None:
    values = np.ones(100)
    values[50] = 1e6
    np.testing.assert_array_equal(running_median(values), 1.0)
    np.testing.assert_array_equal(running_median(np.array([3.0])), [3.0])


def test_identical_curves_are_merged(tmp_path: Path) -> None:
    curves = read(tmp_path, "step,mse,loss,val_mse\n10,0.5,0.5,0.5\n20,0.25,0.25,0.3\n")
    assert merge_identical(curves, list(curves)) == {"mse": "mse = loss", "val_mse": "val_mse"}


def test_a_single_value_is_drawn_as_a_marker() -> None:
    image = draw_curves({"effectiveness_angle": (np.array([100.0]), np.array([2.5]))}, "run").astype(int)
    columns = np.flatnonzero((image[..., 2] - image[..., 0] > 100).sum(axis=0))  # blue; frame and text are grey
    assert columns.min() < 350, "a marker in the middle of the panel, besides the legend at its right"
