"""The page of a run: curves and graph, traversals as images and animation, and what the script refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from folders import make_folder
from paths import REPO
from PIL import Image
from running import assert_refused, run
from tiny import small_config

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.evaluation.run_page import write_gif
from causaldiffae.metrics.intervals import Figure
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint
from causaldiffae.training.responses import Response, write_responses

SCRIPT = REPO / "scripts" / "plot_run.py"
LOG = "step,mse,grad_norm\n" + "".join(f"{10 * i},{1 / i},3\n" for i in range(1, 30))


@pytest.mark.parametrize(
    ("log", "arguments", "words"),
    [
        (None, (), "progress.csv"),
        ("", (), "progress.csv"),
        (LOG, ("--traverse", "True"), "checkpoint"),
        (LOG, ("--images", 0), "images: "),
    ],
)
def test_refusals(tmp_path: Path, log: str | None, arguments: tuple[object, ...], words: str) -> None:
    if log is not None:
        (tmp_path / "progress.csv").write_text(log)
    assert_refused(run(SCRIPT, tmp_path, *arguments), words)
    assert not (tmp_path / "plots").exists()


def test_a_page_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "progress.csv").write_text(LOG)
    write_responses(tmp_path, {"size": Response(Figure(0.12, None, None, 8), "measured")})
    outcome = run(SCRIPT, tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    page = (tmp_path / "plots" / "run.html").read_text()
    assert page.count("<img") == 1 and "Causal graph" not in page and "last logged at step 290" in page
    assert "do(size): 12% of the requested change, hardly followed\n  counterfactuals of size are not reliable" in page
    with Image.open(tmp_path / "plots" / "curves.png") as image:
        assert image.width == 1100


def test_traversals_of_a_model(tmp_path: Path) -> None:
    run_dir = tmp_path / "<pendulum>"
    shutil.copytree(REPO / "weights" / "pendulum_causaldae_mini", run_dir)
    outcome = run(SCRIPT, run_dir, "--traverse", "True", "--images", 2, "--steps", 3, "--out", tmp_path / "out")
    assert outcome.returncode == 0, outcome.stderr
    written = {Path(line).name for line in outcome.stdout.split()}
    names = ("angle", "light", "shadow_length", "shadow_position")
    assert written == {"curves.png", "run.html", "traversals.gif", *(f"traversal_{name}.png" for name in names)}
    page = (tmp_path / "out" / "run.html").read_text()
    assert "Causal graph of pendulum" in page and 'src="traversals.gif"' in page and "http" not in page
    assert "&lt;pendulum&gt;" in page and "<pendulum>" not in page
    with Image.open(tmp_path / "out" / "traversals.gif") as animation:
        assert animation.n_frames == 12  # 7 values up, 5 down
        first = np.asarray(animation.convert("L")).astype(int)
        animation.seek(6)
        assert np.abs(np.asarray(animation.convert("L")).astype(int) - first).max() > 100


def test_a_run_on_a_folder_traverses_the_images_of_that_folder(tmp_path: Path) -> None:
    folder, run_dir = make_folder(tmp_path / "my_images"), tmp_path / "run"
    spec = dataset_spec("folder", data_dir=str(folder))
    config = small_config(dataset="folder", data_dir=str(folder), rep_dim=6)
    model, _ = create_model_and_diffusion(config, spec)
    export_weights(run_dir, model.state_dict(), describe_checkpoint(config, spec))
    (run_dir / "progress.csv").write_text(LOG)
    arguments = (run_dir, "--traverse", "True", "--images", 3, "--steps", 2)
    outcome = run(SCRIPT, *arguments)
    assert outcome.returncode == 0, outcome.stderr
    with Image.open(run_dir / "plots" / "traversals.gif") as animation:
        assert animation.width >= 3 * 2 * spec.image_size, "three of the four test images"
    folder = folder.rename(tmp_path / "moved")
    assert_refused(run(SCRIPT, *arguments), "data_dir: expected", "my_images", "set --data_dir")
    assert run(SCRIPT, *arguments, "--data_dir", folder).returncode == 0


def test_variables_with_few_values_change_more_slowly_in_the_animation(tmp_path: Path) -> None:
    few, many = ([np.full((1, 1, 4, 4), 50 * k, np.uint8) for k in range(count)] for count in (2, 5))
    with Image.open(write_gif(tmp_path / "a.gif", {"hat": ([0.0, 1.0], few), "age": ([0.0] * 5, many)})) as animation:
        assert animation.n_frames == 8
