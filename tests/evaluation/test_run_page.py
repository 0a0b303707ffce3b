"""A run's page: curves out of progress.csv, damaged and empty tables refused, traversals as pictures and animation."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from paths import REPO
from PIL import Image
from running import assert_refused, run

from causaldiffae.errors import DataError
from causaldiffae.evaluation.run_page import write_gif
from causaldiffae.visualization.curves import draw_curves, panels_of, read_curves, running_median, without_twins

SCRIPT = REPO / "scripts" / "plot_run.py"
TABLE = "step,mse,label_kl,label_kl/angle,grad_norm,effectiveness/angle,new\n"


def write(folder: Path, text: str) -> Path:
    (folder / "progress.csv").write_text(text)
    return folder


def test_curves_hold_what_was_logged(tmp_path: Path) -> None:
    table = TABLE + "10,0.5,3,1,2,,inf\n20,0.25,2,nan,2,9,4\n"
    curves = read_curves(write(tmp_path, table))
    assert {name: [list(part) for part in points] for name, points in curves.items()} == {
        "mse": [[10, 20], [0.5, 0.25]],
        "label_kl": [[10, 20], [3, 2]],
        "label_kl/angle": [[10], [1]],
        "grad_norm": [[10, 20], [2, 2]],
        "effectiveness/angle": [[20], [9]],
        "new": [[20], [4]],
    }
    assert panels_of(list(curves)) == {
        "loss of the image": ["mse"],
        "labels and blocks (KL)": ["label_kl", "label_kl/angle"],
        "effectiveness: mean error of what was set, in its own unit": ["effectiveness/angle"],
        "norm of the gradient": ["grad_norm"],
        "others": ["new"],
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it holds no figures; nothing was logged yet"),
        (TABLE, "it holds no figures"),
        (TABLE + "10,nan,inf,,,,\n", "it holds no figures"),
        (TABLE + "10,0.5\n", "line 2 has 2 of 7 columns"),
        (TABLE + "10,half,1,1,1,1,1\n", "line 2: mse is 'half', no number"),
        ("no,table\n1,2\n", "`step` among them"),
        ('a"b\x00\n', "progress.csv"),
    ],
)
def test_damaged_tables(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        read_curves(write(tmp_path, text))
    assert_refused(run(SCRIPT, tmp_path), "progress.csv")
    assert not (tmp_path / "plots").exists()


def test_what_else_is_refused(tmp_path: Path) -> None:
    assert_refused(run(SCRIPT, tmp_path), "progress.csv", "the file is missing")
    write(tmp_path, TABLE + "10,0.5,3,1,2,1,4\n")
    assert_refused(run(SCRIPT, tmp_path, "--traverse", "True"), "it holds no checkpoint")
    assert_refused(run(SCRIPT, tmp_path, "--images", 0), "images: 0 given, 1..16 are allowed")


def test_running_median_ignores_a_spike() -> None:
    values = np.ones(100)
    values[50] = 1e6
    np.testing.assert_array_equal(running_median(values), 1.0)
    np.testing.assert_array_equal(running_median(np.array([3.0])), [3.0])


def test_curves_that_lie_on_each_other_are_one(tmp_path: Path) -> None:
    curves = read_curves(write(tmp_path, "step,mse,loss,val_mse\n10,0.5,0.5,0.5\n20,0.25,0.25,0.3\n"))
    assert without_twins(curves, list(curves)) == {"mse": "mse = loss", "val_mse": "val_mse"}


def test_a_single_figure_is_seen() -> None:
    """One value in a panel is a dot; an empty panel has only its frame, grid and text in grey and black."""
    picture = draw_curves({"effectiveness_angle": (np.array([100.0]), np.array([2.5]))}, "run").astype(int)
    blue = (picture[..., 2] - picture[..., 0] > 100).sum(axis=0)
    columns = np.flatnonzero(blue)
    assert columns.min() < 350, "the dot in the middle of the panel, not only the legend at its right"


def test_a_page_without_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, TABLE + "".join(f"{10 * i},{1 / i},3,1,2,1,4\n" for i in range(1, 30)))
    outcome = run(SCRIPT, tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    page = (tmp_path / "plots" / "run.html").read_text()
    assert page.count("<img") == 1 and "Causal graph" not in page and "the last at step 290" in page
    with Image.open(tmp_path / "plots" / "curves.png") as picture:
        assert picture.width == 1100


def test_traversals_of_a_model(tmp_path: Path) -> None:
    run_dir = tmp_path / "pendulum"
    shutil.copytree(REPO / "weights" / "pendulum_causaldae_mini", run_dir)
    outcome = run(SCRIPT, run_dir, "--traverse", "True", "--images", 2, "--steps", 3, "--out", tmp_path / "out")
    assert outcome.returncode == 0, outcome.stderr
    written = {Path(line).name for line in outcome.stdout.split()}
    names = ("angle", "light", "shadow_length", "shadow_position")
    assert written == {"curves.png", "run.html", "traversals.gif", *(f"traversal_{name}.png" for name in names)}
    page = (tmp_path / "out" / "run.html").read_text()
    assert "Causal graph of pendulum" in page and 'src="traversals.gif"' in page and "http" not in page
    with Image.open(tmp_path / "out" / "traversals.gif") as animation:
        assert animation.n_frames == 12  # 7 there, 5 back
        first = np.asarray(animation.convert("L")).astype(int)
        animation.seek(6)
        assert np.abs(np.asarray(animation.convert("L")).astype(int) - first).max() > 100


def test_variables_of_few_values_wait_in_the_animation(tmp_path: Path) -> None:
    few, many = ([np.full((1, 1, 4, 4), 50 * k, np.uint8) for k in range(count)] for count in (2, 5))
    with Image.open(write_gif(tmp_path / "a.gif", {"hat": ([0.0, 1.0], few), "age": ([0.0] * 5, many)})) as animation:
        assert animation.n_frames == 8
