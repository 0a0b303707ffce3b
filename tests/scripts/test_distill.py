"""scripts/distill.py: a student of the shipped Pendulum model, and input that does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from paths import REPO
from running import assert_refused, run

from causaldiffae.generators import pendulum
from causaldiffae.script_util import load_model, parse_config

DISTILL, TEST = REPO / "scripts" / "distill.py", REPO / "scripts" / "image_causaldae_test.py"
TEACHER = REPO / "weights" / "pendulum_causaldae_mini"
FEW = ("--total_steps=1", "--batch_size=4", "--tensorboard=False", "--use_bf16=False", "--compile=False")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pendulum, "grid", lambda: (np.repeat([0, 4], 3), np.tile([61, 90, 110], 2)))
    pendulum.write_dataset(str(tmp_path / "data"), workers=1, progress=False)
    return tmp_path / "data"


def test_a_student_is_trained_and_tested_in_its_number_of_steps(data: Path, tmp_path: Path) -> None:
    student, out = tmp_path / "student", tmp_path / "out"
    steps = ("--few_steps=2", "--teacher_steps=5")
    trained = run(DISTILL, "--model_path", TEACHER, "--data_dir", data, "--run_dir", student, *steps, *FEW)
    assert trained.returncode == 0, trained.stderr
    arguments = ("--model_path", student, "--data_dir", data, "--out_dir", out, "--num_images=1", "--do", "angle=10")
    tested = run(TEST, *arguments, "--solver=few_step")
    assert tested.returncode == 0, tested.stderr
    assert json.loads((out / "summary.json").read_text())
    assert_refused(run(TEST, *arguments, "--solver=obelm"), "solver: expected few_step for a distilled model")
    assert_refused(run(TEST, *arguments, "--w=2"), "w: expected 1 for a distilled model")
    again = run(DISTILL, "--model_path", student, "--data_dir", data, "--run_dir", tmp_path / "other")
    assert_refused(again, "model_path: expected a model that is not distilled")


def test_refuses_missing_models_and_few_steps_without_a_student(data: Path, tmp_path: Path) -> None:
    assert_refused(run(DISTILL, "--data_dir", data), "model_path: expected the model to distil, got none")
    arguments = ("--model_path", TEACHER, "--data_dir", data, "--out_dir", tmp_path / "out", "--num_images=1")
    assert_refused(run(TEST, *arguments, "--solver=few_step"), "scripts/distill.py")
    steps = ("--few_steps=5", "--teacher_steps=4", *FEW)
    refused = run(DISTILL, "--model_path", TEACHER, "--data_dir", data, "--run_dir", tmp_path / "run", *steps)
    assert_refused(refused, "teacher_steps: expected more than few_steps (5), got 4")


def test_options_of_weak_supervision_and_the_graph_are_those_of_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPO / "scripts")
    flags_of = import_module("distill").flags_of
    loaded = load_model(str(TEACHER))
    train = replace(loaded.config.train, graph="graph.yaml")
    loss = replace(loaded.config.loss, masking=True, label_fraction=0.1)
    flags = flags_of(replace(loaded, config=replace(loaded.config, train=train, loss=loss)), "teacher", "4")
    assert flags["graph"] == "graph.yaml" and flags["few_step_start"] == 2.5
    config = parse_config([f"--{name}={value}" for name, value in flags.items() if name != "graph"])
    assert config.loss.label_fraction == 1.0 and config.diffusion.few_steps == 4
    assert flags_of(loaded, "teacher", "2")["few_step_start"] == 1.0


def test_a_noised_predictor_beside_a_diff_scm_is_no_part_of_the_teacher(tmp_path: Path) -> None:
    model, data = REPO / "weights" / "mnist_diffscm_mini", REPO / "assets" / "mnist_share"
    given = ("--model_path", model, "--data_dir", data, "--run_dir", tmp_path / "run", *FEW)
    trained = run(DISTILL, *given, "--few_steps=2", "--teacher_steps=3")
    assert trained.returncode == 0, trained.stderr
