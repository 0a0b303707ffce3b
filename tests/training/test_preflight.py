"""Warnings before training and interventions; each says what to do."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import make_folder
from paths import REPO
from processes import plain_environment
from running import run
from tiny import small_config, squares

from causaldiffae import train_util
from causaldiffae.graphs import CausalGraph
from causaldiffae.training.preflight import (
    intervention_warnings,
    option_warnings,
    out_of_memory_message,
    training_warnings,
)

SCRIPTS = [REPO / "scripts" / "image_train.py", *sorted((REPO / "classifiers").glob("*_classifier.py"))]
TRAIN = small_config(batch_size=8).train


def test_labels_outside_the_range() -> None:
    data = squares()
    assert training_warnings(TRAIN, data) == []
    data.labels[3, 1], data.labels[5, 1], data.labels[6, 1] = 900.0, 10.0, float("nan")
    assert training_warnings(TRAIN, data) == [
        "grey: expected labels in 50..250, got 2 of 8 outside in split train, such as 900 for 3; check the unit or "
        "correct the range"
    ]


def test_a_batch_larger_than_the_data() -> None:
    assert training_warnings(replace(TRAIN, batch_size=6), squares(), world=2) == [
        "batch_size: expected at most the 8 training images per step, got 12; --batch_size 4 is faster and "
        "equally effective"
    ]


def test_variables_without_edges() -> None:
    data = squares()
    data = replace(data, spec=replace(data.spec, graph=CausalGraph(("size", "grey"), ())))
    (warning,) = training_warnings(TRAIN, data)
    assert "graph: size, grey: no parents and no descendants" in warning and "add edges to the graph" in warning


def test_variables_without_labels_and_mechanisms_that_are_never_seen() -> None:
    data = squares()
    data.labels[:4, 0], data.labels[4:, 1] = np.nan, np.nan
    (warning,) = training_warnings(TRAIN, data)
    assert "labels: grey (of size): no training image has the labels of the variable and all its parents" in warning
    assert "likelihood" in warning
    apart, incomplete = training_warnings(TRAIN, data, needs_all_labels=True)
    assert apart == warning and "labels: expected training images with all labels" in incomplete
    data.labels[:, 1] = np.nan
    (warning,) = training_warnings(TRAIN, data)
    assert "labels: grey: expected labels of training images, got none" in warning
    assert training_warnings(TRAIN, replace(squares(), labelled=np.zeros(8, bool))) == [], "hidden on purpose"


def test_interventions_without_descendants() -> None:
    graph = squares().spec.graph
    assert intervention_warnings(graph, [{"size": 2.0}, {"size": 2.0, "grey": 90.0}]) == []
    (warning,) = intervention_warnings(graph, [{"grey": 90.0}, {"size": 2.0}, {"grey": 100.0}])
    assert "do: grey: no descendants in the graph" in warning and "add edges to the graph and train again" in warning
    lone = CausalGraph(("digit",), ())
    assert intervention_warnings(lone, [{"digit": 3.0}]) == [], "a single variable cannot have descendants"


@pytest.mark.parametrize(
    ("microbatch", "words"),
    [(0, "batch_size: 8 images of 32x32"), (4, "--microbatch 2 splits the batch"), (1, "use a smaller configuration")],
)
def test_a_batch_that_exceeds_the_memory(microbatch: int, words: str) -> None:
    assert words in out_of_memory_message(replace(TRAIN, microbatch=microbatch), 32)


def test_images_on_the_device_can_be_moved_to_host_memory() -> None:
    advice = "; --data_on_device never keeps the training images in host memory"
    assert out_of_memory_message(TRAIN, 32).endswith(advice)
    assert advice not in out_of_memory_message(replace(TRAIN, data_on_device="never"), 32)


def test_the_scripts_print_the_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, run_dir = make_folder(tmp_path / "mine"), tmp_path / "run"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    script, config = REPO / "scripts" / "image_train.py", REPO / "configs" / "folder_causaldae_mini.yaml"
    arguments = [f"--config={config}", f"--data_dir={data}", f"--run_dir={run_dir}", "--image_size=8"]
    arguments += ["--channel_mult=1", "--attention_resolutions=", "--encoder_channels=8", "--batch_size=20"]
    arguments += ["--log_interval=1", "--tensorboard=False"]
    trained = run(script, *arguments, "--total_steps=1")
    assert trained.returncode == 0, trained.stderr
    assert "warning: batch_size: expected at most the 12 training images" in trained.stderr
    assert "warning: graph: hat: no parents and no descendants" in trained.stderr
    base = ["--model_path", run_dir, "--data_dir", data, "--out_dir", tmp_path / "out", "--steps", 2]
    tested = run(REPO / "scripts" / "image_causaldae_test.py", *base, "--do", "grey=yes")
    assert tested.returncode == 0, tested.stderr
    assert "warning: do: grey: no descendants in the graph" in tested.stderr

    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train_util.TrainLoop, "run_step", too_large)
    refused = run(script, *arguments, "--total_steps=2")
    assert refused.returncode == 2
    assert "error: batch_size: 20 images of 8x8" in refused.stderr and "--microbatch 10" in refused.stderr


WINDOWS = """
import os, platform, signal, sys

del signal.SIGUSR1
from running import Path, run

platform.system = lambda: "Windows"
for script in sys.argv[1:]:
    outcome = run(Path(script), "--dataset=pendulum", "--data_dir=none", "--run_dir=none")
    print(outcome.returncode, outcome.stderr, end="")
"""


def test_training_on_windows_is_refused_in_one_line() -> None:
    """Python has no SIGUSR1 there."""
    command = [sys.executable, "-c", WINDOWS, *map(str, SCRIPTS)]
    process = subprocess.run(command, env=plain_environment(), capture_output=True, text=True, check=True)
    line = "2 error: training: expected Linux or macOS, got Windows; run it in WSL (wsl --install)"
    assert len(SCRIPTS) > 4 and process.stdout.splitlines() == [line] * len(SCRIPTS)


def test_options_that_do_not_go_together_are_named() -> None:
    assert option_warnings(small_config(total_steps=6, lr_anneal_steps=6)) == []
    (late,) = option_warnings(small_config(total_steps=6, lr_anneal_steps=7))
    assert late.startswith("lr_anneal_steps: expected at most the 6 steps of the run, got 7")
    diff_scm = {"model_type": "diffscm", "label_cond": True, "lr_anneal_steps": 0}
    (null,) = option_warnings(small_config(**diff_scm, drop_prob=0.0))
    assert null.startswith("drop_prob: expected a number above 0 with label_cond")
    assert option_warnings(small_config(**diff_scm, drop_prob=0.1)) == []
