"""A folder of your own, from the check to the counterfactual, by the commands of the README."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import make_folder, paint, write_table
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

TRAIN, ASK = REPO / "scripts" / "image_train.py", REPO / "scripts" / "image_causaldae_test.py"
MINI = ["--config", REPO / "configs" / "folder_causaldae_mini.yaml"]
SHORT = ["--image_size=8", "--channel_mult=1", "--attention_resolutions=", "--encoder_channels=8", "--batch_size=4"]
SHORT += ["--total_steps=2", "--log_interval=1", "--sample_interval=2", "--tensorboard=False"]


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_from_a_folder_to_counterfactuals(tmp_path: Path) -> None:
    folder, run_dir, out = make_folder(tmp_path / "mine"), tmp_path / "run", tmp_path / "out"
    checked = run(REPO / "scripts" / "make_dataset.py", "check", folder)
    assert checked.returncode == 0 and "3 variables" in checked.stdout, checked.stderr
    trained = run(TRAIN, *MINI, *SHORT, "--data_dir", folder, "--run_dir", run_dir)
    assert trained.returncode == 0, trained.stderr
    assert "graph (('age', 'grey'),)" in trained.stdout
    again = run(TRAIN, *MINI, *SHORT, "--data_dir", folder, "--run_dir", run_dir, "--total_steps=3")
    assert again.returncode == 0 and (run_dir / "step_0000003").is_dir(), again.stderr
    (folder / "graph.yaml").unlink()  # the checkpoint knows it
    asking = ["--model_path", run_dir, "--data_dir", folder, "--out_dir", out, "--steps", 3]
    asked = run(ASK, *asking, "--do", "hat=straw,age=40", "--traverse", "age")
    assert asked.returncode == 0, asked.stderr
    rows = list(csv.DictReader((out / "counterfactuals.csv").open()))
    assert len(rows) == 4 * 3 and {row["do"] for row in rows} == {"do(hat=straw, age=40)"}
    assert {row["true"] for row in rows} == {""}, "nobody knows the truth of your images"
    assert {float(row["predicted"]) for row in rows if row["variable"] == "age"} == {40.0}
    assert (out / "traversal_age.png").is_file()
    usual = run(ASK, *asking)
    assert usual.returncode == 0 and "do(hat=2)" in usual.stdout and "do(grey=1)" in usual.stdout, usual.stderr
    assert_refused(run(ASK, *asking, "--do", "hat=crown"), "hat=crown", "none", "cap", "straw")
    refused = run(TRAIN, *MINI, *SHORT, "--data_dir", tmp_path / "nothing", "--run_dir", tmp_path / "no")
    assert_refused(refused, "nothing")


def test_a_graph_file_of_another_place(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "mine")
    (tmp_path / "other.yaml").write_text("edges: [[hat, age]]\nvariables: {grey: {}}\nimage_size: 8\n")
    flags = ["--data_dir", folder, "--run_dir", tmp_path / "run", "--graph", tmp_path / "other.yaml", "--dry_run=True"]
    described = run(TRAIN, *MINI, *SHORT, *flags)
    assert described.returncode == 0 and "graph (('hat', 'age'),)" in described.stdout, described.stderr
    refused = run(TRAIN, "--dataset=pendulum", *flags)
    assert_refused(refused, "graph", "pendulum")


def test_pendulum_as_a_folder_has_the_same_counterfactuals(tmp_path: Path) -> None:
    """Same image and same do() in, same counterfactual out, whichever form the data have."""
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
        asked = run(
            *(ASK, "--model_path", weights, "--data_dir", form, "--out_dir", out, "--steps", 3, "--do", "angle=30")
        )
        assert asked.returncode == 0, asked.stderr
        found.append(np.load(out / "counterfactuals.npz"))
    assert set(found[0].files) == set(found[1].files) and "truth_0" in found[0].files
    for name in found[0].files:
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_thirty_variables_and_sixty_edges(tmp_path: Path) -> None:
    names = [f"v{i:02d}" for i in range(30)]
    rng = np.random.default_rng(0)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    edges = [pairs[i] for i in sorted(rng.choice(len(pairs), 60, replace=False))]
    folder = tmp_path / "many"
    (folder / "im").mkdir(parents=True)
    for i in range(12):
        paint(i).save(folder / "im" / f"{i}.png")
    splits = ["train"] * 10 + ["val", "test"]
    values = rng.normal(size=(12, 30))
    write_table(
        folder,
        [
            {"file": f"im/{i}.png", **{name: f"{v:.3f}" for name, v in zip(names, values[i], strict=True)}, "split": s}
            for i, s in enumerate(splits)
        ],
    )
    (folder / "graph.yaml").write_text(json.dumps({"edges": edges, "variables": {n: {} for n in names}, "channels": 3}))
    config = parse_config([str(a) for a in [*MINI, *SHORT, "--data_dir", folder, "--run_dir", tmp_path / "run"]])
    data = read_split("folder", folder, "train", 8)
    loop = TrainLoop(config, data, Logger(tmp_path / "run", use_tensorboard=False))
    loop.run()
    loaded = load_model(str(tmp_path / "run"))
    for parameter in loaded.model.scm.parameters():  # after two steps the mechanisms are next to the zero they began as
        torch.nn.init.normal_(parameter, std=0.3)
    u = torch.randn(2, 30, 8)
    plain, moved = loaded.model.predict(u), loaded.model.predict(u, {names[0]: 2.0})
    graph = loaded.spec.graph
    for i, name in enumerate(names):
        same = torch.equal(plain[:, i], moved[:, i])
        assert same == (name != names[0] and name not in graph.descendants(names[0]))


def test_mechanisms_cost_what_their_edges_do() -> None:
    """Twice the variables with the edges of each unchanged cost twice the weights, not four times."""

    def cost(n: int) -> int:
        names = [f"v{i}" for i in range(n)]
        graph = CausalGraph(tuple(names), tuple((names[i - k], names[i]) for i in range(2, n) for k in (1, 2)))
        return sum(p.numel() for p in LatentSCM(graph, 8, width=64, depth=2).networks.parameters())

    assert cost(62) / cost(32) == pytest.approx(60 / 30, rel=0.01)
