"""A folder of images, from the check to counterfactuals, with the documented commands."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import make_folder, write_table
from paths import REPO
from PIL import Image
from running import assert_refused, run
from tiny import randomise, small_config

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.generators import pendulum
from causaldiffae.graphs import CausalGraph
from causaldiffae.logger import Logger
from causaldiffae.scm import LatentSCM
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint, load_model, parse_config
from causaldiffae.train_util import TrainLoop

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


def test_both_layouts_of_a_data_set_have_the_same_counterfactuals(tmp_path: Path) -> None:
    built_in, own = tmp_path / "built_in", tmp_path / "own"
    rows = []
    for folder in (built_in / "test", own / "im"):
        folder.mkdir(parents=True)
    for angle, light in ((-20, 80), (0, 90), (30, 140)):
        length, position = (int(value) for value in pendulum.file_labels(np.array([angle]), np.array([light]))[0, 2:])
        name = f"a_{angle}_{light}_{length}_{position}.png"
        for path in (built_in / "test" / name, own / "im" / name):
            Image.fromarray(pendulum.render(angle, light)).save(path)
        labels = dict(zip(pendulum.GRAPH.names, (angle, light, length, position), strict=True))
        rows.append({"file": f"im/{name}", **labels, "split": "test"})
    write_table(own, rows)
    spec = dataset_spec("pendulum", 16, 3)
    config = small_config(dataset="pendulum", image_size=16, channels=3, rep_dim=8)
    torch.manual_seed(0)
    model = randomise(create_model_and_diffusion(config, spec)[0])
    weights = export_weights(tmp_path / "model", model.state_dict(), describe_checkpoint(config, spec))
    found = []
    for form in (built_in, own):
        out = tmp_path / f"{form.name}_out"
        tested = run(
            *(TEST, "--model_path", weights, "--data_dir", form, "--out_dir", out, "--steps", 3, "--do", "angle=30")
        )
        assert tested.returncode == 0, tested.stderr
        found.append(np.load(out / "counterfactuals.npz"))
    assert set(found[0].files) == set(found[1].files) and "truth_0" in found[0].files
    for name in found[0].files:
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_a_graph_of_thirty_variables_and_sixty_edges_is_trained(tmp_path: Path) -> None:
    names = [f"v{i:02d}" for i in range(30)]
    rng = np.random.default_rng(0)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    edges = [pairs[i] for i in sorted(rng.choice(len(pairs), 60, replace=False))]
    splits = ["train"] * 10 + ["val", "test"]
    rows = [{"file": f"im/{i}.png", **dict.fromkeys(names, ""), "split": split} for i, split in enumerate(splits)]
    for row in rows:
        row.update({name: f"{rng.normal():.3f}" for name in names})
    description = {"edges": edges, "variables": {name: {} for name in names}, "channels": 3}
    folder = make_folder(tmp_path / "many", rows, "")
    (folder / "graph.yaml").write_text(json.dumps(description))
    config = parse_config([str(a) for a in [*MINI, *SHORT, "--data_dir", folder, "--run_dir", tmp_path / "run"]])
    TrainLoop(config, read_split("folder", folder, "train", 8), Logger(tmp_path / "run", use_tensorboard=False)).run()
    loaded = load_model(str(tmp_path / "run"))
    for parameter in loaded.model.scm.parameters():  # after two steps the mechanisms are still almost zero
        torch.nn.init.normal_(parameter, std=0.3)
    u = torch.randn(2, 30, 8)
    plain, moved = loaded.model.predict(u), loaded.model.predict(u, {names[0]: 2.0})
    affected = {names[0], *loaded.spec.graph.descendants(names[0])}
    for i, name in enumerate(names):
        assert torch.equal(plain[:, i], moved[:, i]) == (name not in affected)


def test_mechanisms_cost_what_their_edges_do() -> None:
    """Twice the variables with the edges of each unchanged cost twice the weights, not four times."""

    def cost(n: int) -> int:
        names = [f"v{i}" for i in range(n)]
        graph = CausalGraph(tuple(names), tuple((names[i - k], names[i]) for i in range(2, n) for k in (1, 2)))
        return sum(p.numel() for p in LatentSCM(graph, 8, width=64, depth=2).networks.parameters())

    assert cost(62) / cost(32) == pytest.approx(60 / 30, rel=0.01)
