"""Tools that measure for minutes, at their smallest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import REPO
from running import assert_refused, run

from causaldiffae.training.responses import FILE, read_responses

TOOLS = REPO / "tools"


def measured(tool: str, *arguments: object) -> list[str]:
    """The lines that a tool prints."""
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=800, check=True
    ).stdout.splitlines()


def test_mechanisms_are_compared_on_every_effect() -> None:
    arguments = ("--datasets", "morphomnist", "pendulum", "--num_train", 200)
    short, long = (run(TOOLS / "compare_mechanisms.py", *arguments, "--steps", steps) for steps in (1, 300))
    assert short.returncode == long.returncode == 0, long.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in long.stdout.splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        ["morphomnist", "thickness", "intensity"],
        *(["pendulum", cause, f"shadow_{effect}"] for cause in ("angle", "light") for effect in ("length", "position")),
    ]
    before = [line.split("|")[4:-1] for line in short.stdout.splitlines()[2:]]
    assert all(float(x) < 0.7 * float(y) for x, y in zip(rows[0][3:], before[0], strict=True)), "it has learned"


def test_mechanisms_of_a_model_are_compared_with_and_without_its_encoder(circuit_dir: Path, tmp_path: Path) -> None:
    model = REPO / "weights" / "circuit_causaldae_mini"
    done = run(TOOLS / "compare_mechanisms.py", "--model_path", model, "--data_dir", circuit_dir)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    pairs = [("arm", "blue"), ("arm", "green"), ("arm", "red"), ("blue", "red"), ("green", "red")]
    assert [tuple(row[1:3]) for row in rows] == pairs
    by_labels, by_encoder, by_truth = np.array([row[3:] for row in rows], float).T
    assert (by_labels < 0.1).all() and (by_encoder > 0).all()
    assert by_truth.mean() < by_encoder.mean(), "true mechanisms add no error of their own"
    other = REPO / "weights" / "mnist_diffscm_mini"
    refused = run(TOOLS / "compare_mechanisms.py", "--model_path", other, "--data_dir", circuit_dir)
    assert_refused(refused, "model_path: expected a CausalDiffAE of the pixels of")


def test_batches_are_timed_in_every_way_of_reading_them() -> None:
    sizes = ("--images", 48, "--size", 16, "--batch_size", 4, "--steps", 2, "--rounds", 1, "--step_ms", 1)
    head, *rows = measured("data_throughput.py", *sizes)
    assert head.split() == ["images/s", "no", "step", "1", "ms", "steps"]
    assert [row[:24].strip() for row in rows] == [
        "memory", "warm map", "warm map, main thread", "cold map", "cold map, main thread",
    ]  # fmt: skip
    assert all(float(value) > 0 for row in rows for value in row[24:].split())


@pytest.mark.slow
@pytest.mark.timeout(900)  # trains a model of size mini, which may be compiled
def test_the_overhead_of_saving_is_measured_by_two_clocks(pendulum_dir: Path) -> None:
    lines = measured("save_overhead.py", "--data_dir", pendulum_dir, "--steps", 1, "--rounds", 1)
    kinds = [line[:31].split() for line in lines if "for 1 steps" in line]
    assert [words[-1] for words in kinds] == ["none", "background", "between"] * 2


@pytest.mark.slow
def test_unusual_images_are_called_so(pendulum_dir: Path) -> None:
    done = run(TOOLS / "unusual_inputs.py", "--model_path", REPO / "weights" / "pendulum_causaldae_mini",
               "--data_dir", pendulum_dir)  # fmt: skip
    assert done.returncode == 0, done.stderr
    shares = {line[:36].strip(): line[36:].split()[1] for line in done.stdout.splitlines() if "%" in line[36:]}
    assert shares["test images"] == "0.00%" and shares["pixels shuffled"] == "100.00%"


def test_responses_are_measured_again(pendulum_dir: Path, tmp_path: Path) -> None:
    model = shutil.copytree(REPO / "weights" / "pendulum_causaldae_mini", tmp_path / "model")
    (model / FILE).unlink()
    flags = ("--model_path", model, "--data_dir", pendulum_dir, "--num_images", 4)
    lines = measured("measure_responses.py", *flags, "--dry_run")
    assert not (model / FILE).exists() and "4 images, labels measured" in lines[0]
    assert measured("measure_responses.py", *flags)[:-1] == lines
    found = read_responses(model)
    assert list(found) == ["angle", "light", "shadow_length", "shadow_position"]
    assert [f"  {each.text(f'do({name})')}" for name, each in found.items()] == lines[1:5]
    assert found["angle"].share.mean > 0.9 and found["angle"].share.images == 4
