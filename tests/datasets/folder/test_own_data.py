"""A folder of images, from the check to counterfactuals, with the documented commands."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from folders import GRAPH, make_folder, paint, table_rows
from paths import REPO
from PIL import Image
from running import assert_refused, run
from tiny import small_config

from causaldiffae import CausalDiffAE
from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.datasets.folder.image_folder import folder_spec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.image_test import run_test
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint

TRAIN, TEST = REPO / "scripts" / "image_train.py", REPO / "scripts" / "image_causaldae_test.py"
MINI = ["--config", REPO / "configs" / "folder_causaldae_mini.yaml"]
FAST = ["--steps=2", "--cycles=2", "--cycle_images=2", "--chunk=3", "--dci_resamples=0"]
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
    assert usual.returncode == 0 and "do(hat=straw)" in usual.stdout and "do(grey=yes)" in usual.stdout, usual.stderr
    assert_refused(run(TEST, *flags, "--do", "hat=crown"), "hat: expected one of", "none", "cap", "straw", "crown")
    refused = run(TRAIN, *MINI, *SHORT, "--data_dir", tmp_path / "nothing", "--run_dir", tmp_path / "no")
    assert_refused(refused, "nothing")


def test_counterfactuals_of_a_folder_are_scored(tmp_path: Path) -> None:
    """With a predictor trained on the folder, and against the true counterfactuals in it."""
    folder, run_dir = make_folder(tmp_path / "mine"), tmp_path / "run"
    for i in range(2):
        paint(100 + i).save(folder / f"true_{i}.png")
    lines = ["file,do,true_file,grey", "im/16.png,age=30,true_0.png,no", "im/17.png,age=40,true_1.png,yes"]
    (folder / "counterfactuals.csv").write_text("\n".join(lines))
    trained = run(TRAIN, *MINI, *SHORT, "--data_dir", folder, "--run_dir", run_dir)
    assert trained.returncode == 0, trained.stderr
    flags = ["--model_path", run_dir, "--data_dir", folder, "--out", tmp_path / "found.json"]
    refused = run(REPO / "scripts" / "evaluate.py", *flags)
    assert_refused(refused, "predictor: expected a folder", "classifiers/folder_classifier.py")
    few = ["--steps=3", "--vae_steps=2", "--batch_size=4"]
    learned = run(REPO / "classifiers/folder_classifier.py", "--data_dir", folder, "--out", tmp_path / "p", *few)
    assert learned.returncode == 0 and "hat_accuracy" in learned.stdout, learned.stderr
    scored = run(REPO / "scripts" / "evaluate.py", *flags, "--predictor", tmp_path / "p", *FAST)
    assert scored.returncode == 0, scored.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["data"]["truth"].startswith("2 pairs in the folder")
    age, hat = (found["results"]["interventions"][name]["answers"] for name in ("age", "hat"))
    assert set(age) == {"model", "truth", "do_nothing", "nearest"} and set(hat) == {"model", "do_nothing"}
    assert age["truth"]["truth"]["l1"]["mean"] == 0 and age["truth"]["truth"]["l1"]["images"] == 2
    images = [np.asarray(Image.open(folder / name)).astype(float) for name in ("im/16.png", "im/17.png")]
    truth = [np.asarray(paint(100 + i)).astype(float) for i in range(2)]
    expected = np.mean([np.abs(a - b).mean() for a, b in zip(images, truth, strict=True)])
    np.testing.assert_allclose(age["do_nothing"]["truth"]["l1"]["mean"], expected, rtol=1e-6)
    assert age["do_nothing"]["truth"]["l1"]["left_out"] == 2, "the other test images have no known result"
    realism = age["model"]["realism"]
    assert realism["against"] == "truth" and realism["kid_own"]["left_out"] == 2
    assert hat["model"]["realism"]["against"] == "factual" and hat["model"]["realism"]["kid_own"]["left_out"] == 0
    assert age["model"]["effectiveness"]["predictor"]["grey"]["images"] == 2
    assert age["model"]["effectiveness"]["predictor"]["age"]["images"] == 4
    flags = ["--model_path", run_dir, "--data_dir", folder, "--steps", 2, "--label_predictor", tmp_path / "p"]
    tested = run(TEST, *flags, "--out_dir", tmp_path / "out", "--do", "age=30")
    assert tested.returncode == 0, tested.stderr
    rows = list(csv.DictReader((tmp_path / "out/counterfactuals.csv").open()))
    assert all(row["measured"] != "nan" for row in rows), "the predictor measures all labels"


def test_categories_named_by_numbers_are_those_of_the_table(tmp_path: Path) -> None:
    """In training, tests and evaluation, which pass the numbers of categories, in another order than their names."""
    rows = [{**row, "hat": (9, 5, 1)[i % 3]} for i, row in enumerate(table_rows())]
    graph = f"{GRAPH}".replace("hat: {}", "hat: {kind: categorical, categories: [9, 5, 1]}")
    folder, run_dir = make_folder(tmp_path / "mine", rows, graph), tmp_path / "run"
    few = ["--steps=3", "--vae_steps=2", "--batch_size=4"]
    learned = run(REPO / "classifiers/folder_classifier.py", "--data_dir", folder, "--out", tmp_path / "p", *few)
    assert learned.returncode == 0, learned.stderr
    flags = ["--data_dir", folder, "--run_dir", run_dir, "--label_predictor", tmp_path / "p"]
    trained = run(TRAIN, *MINI, *SHORT, *flags)
    assert trained.returncode == 0 and "do(hat)" in trained.stderr, trained.stderr
    flags = ["--model_path", run_dir, "--data_dir", folder]
    tested = run(TEST, *flags, "--out_dir", tmp_path / "out", "--steps", 2, "--traverse", "hat")
    assert tested.returncode == 0 and "do(hat=1)" in tested.stdout, tested.stderr
    given = ["--predictor", tmp_path / "p", "--out", tmp_path / "found.json", *FAST]
    scored = run(REPO / "scripts" / "evaluate.py", *flags, *given)
    assert scored.returncode == 0, scored.stderr
    model = CausalDiffAE.from_pretrained(run_dir, steps=2)
    of_names = [
        model.counterfactual([folder / "im/16.png"], do={"hat": each}).labels["hat"][0] for each in ("9", 5, 1.0)
    ]
    assert of_names == [0.0, 1.0, 2.0]
    each = model.counterfactual([folder / "im/16.png", folder / "im/17.png"], do={"hat": np.array(["9", "1"])})
    assert "do(hat=9, 1)" in repr(each)
    spec = model.spec
    assert spec.do_labels({"hat": 1, "age": np.array([30, 40])})["hat"] == 1.0
    assert spec.check_do({"hat": 1})["hat"] == 2.0


def test_the_graph_file_can_be_elsewhere(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "mine")
    (tmp_path / "other.yaml").write_text("edges: [[hat, age]]\nvariables: {grey: {}}\nimage_size: 8\n")
    flags = ["--data_dir", folder, "--run_dir", tmp_path / "run", "--graph", tmp_path / "other.yaml", "--dry_run=True"]
    described = run(TRAIN, *MINI, *SHORT, *flags)
    assert described.returncode == 0 and "graph (('hat', 'age'),)" in described.stdout, described.stderr
    refused = run(TRAIN, "--dataset=pendulum", *flags)
    assert_refused(refused, "graph", "pendulum")


def test_a_model_that_needs_labels_refuses_a_missing_one_by_image_and_variable(tmp_path: Path) -> None:
    rows = table_rows()
    rows[17]["age"] = ""
    folder = make_folder(tmp_path / "set", rows)
    spec = folder_spec(folder)
    for model_type in ("conditional", "causaldae"):
        config = small_config(model_type=model_type, dataset="folder", rep_dim=6, channel_mult="1")
        model, _ = create_model_and_diffusion(config, spec)
        path = tmp_path / model_type
        export_weights(path, model.state_dict(), describe_checkpoint(config, spec))
        flags = [f"--model_path={path}", f"--data_dir={folder}", f"--out_dir={tmp_path / 'out'}", "--steps=2"]
        flags.append("--do=age=30")
        if model_type == "conditional":
            with pytest.raises(InputError, match=r"^labels: image 1 \(im/17.png\) has no value of 'age'; this model"):
                run_test(flags, "", {}, model_type)
            assert not (tmp_path / "out").exists()
        else:  # the encoder reads the image
            assert "do(age=30)" in run_test(flags, "", {}, model_type)
