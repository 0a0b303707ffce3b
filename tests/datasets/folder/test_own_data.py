"""A folder of images, from the check to counterfactuals, with the documented commands."""

import csv
from pathlib import Path

from folders import make_folder
from paths import REPO
from running import assert_refused, run

TRAIN, TEST = REPO / "scripts" / "image_train.py", REPO / "scripts" / "image_causaldae_test.py"
MINI = ["--config", REPO / "configs" / "folder_causaldae_mini.yaml"]
SHORT = ["--image_size=8", "--channel_mult=1", "--attention_resolutions=", "--encoder_channels=8", "--batch_size=4"]
SHORT += ["--total_steps=2", "--log_interval=1", "--sample_interval=2", "--tensorboard=False"]


def test_from_a_folder_to_counterfactuals(tmp_path: Path) -> None:
    folder, run_dir, out = make_folder(tmp_path / "mine"), tmp_path / "run", tmp_path / "out"
    checked = run(REPO / "scripts" / "make_dataset.py", "check", folder)
    assert checked.returncode == 0 and "3 variables" in checked.stdout, checked.stderr
    trained = run(TRAIN, *MINI, *SHORT, "--data_dir", folder, "--run_dir", run_dir)
    assert trained.returncode == 0, trained.stderr
    assert "graph (('age', 'grey'),)" in trained.stdout
    again = run(TRAIN, *MINI, *SHORT, "--data_dir", folder, "--run_dir", run_dir, "--total_steps=3")
    assert again.returncode == 0 and (run_dir / "step_0000003").is_dir(), again.stderr
    (folder / "graph.yaml").unlink()  # the checkpoint holds it
    flags = ["--model_path", run_dir, "--data_dir", folder, "--out_dir", out, "--steps", 3]
    tested = run(TEST, *flags, "--do", "hat=straw,age=40", "--traverse", "age")
    assert tested.returncode == 0, tested.stderr
    rows = list(csv.DictReader((out / "counterfactuals.csv").open()))
    assert len(rows) == 4 * 3 and {row["do"] for row in rows} == {"do(hat=straw, age=40)"}
    assert {row["true"] for row in rows} == {""}, "there is no generator"
    assert {float(row["predicted"]) for row in rows if row["variable"] == "age"} == {40.0}
    assert (out / "traversal_age.png").is_file()
    usual = run(TEST, *flags)
    assert usual.returncode == 0 and "do(hat=2)" in usual.stdout and "do(grey=1)" in usual.stdout, usual.stderr
    assert_refused(run(TEST, *flags, "--do", "hat=crown"), "hat: expected one of", "none", "cap", "straw", "crown")
    refused = run(TRAIN, *MINI, *SHORT, "--data_dir", tmp_path / "nothing", "--run_dir", tmp_path / "no")
    assert_refused(refused, "nothing")


def test_the_graph_file_can_be_elsewhere(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "mine")
    (tmp_path / "other.yaml").write_text("edges: [[hat, age]]\nvariables: {grey: {}}\nimage_size: 8\n")
    flags = ["--data_dir", folder, "--run_dir", tmp_path / "run", "--graph", tmp_path / "other.yaml", "--dry_run=True"]
    described = run(TRAIN, *MINI, *SHORT, *flags)
    assert described.returncode == 0 and "graph (('hat', 'age'),)" in described.stdout, described.stderr
    refused = run(TRAIN, "--dataset=pendulum", *flags)
    assert_refused(refused, "graph", "pendulum")
