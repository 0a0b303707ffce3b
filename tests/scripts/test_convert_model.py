"""tools/convert_model.py: the same decoder with a separate embedding or other mechanisms."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import REPO
from running import Outcome, assert_refused, run
from tiny import randomise

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.config import Config, ModelConfig, TrainConfig
from causaldiffae.datasets.images import model_inputs
from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.generators import circuit
from causaldiffae.graphs import CausalGraph
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint, load_model

TOOL = REPO / "tools" / "convert_model.py"
SMALL = {"num_channels": 32, "num_res_blocks": 1, "channel_mult": "1", "attention_resolutions": "", "rep_dim": 8}
SMALL |= {"mechanism_width": 16, "encoder_norm": "none"}


def write_model(folder: Path, **options: object) -> Path:
    spec = dataset_spec("circuit", 32)
    config = Config(
        model=ModelConfig(**{**SMALL, **options}),  # type: ignore[arg-type]
        train=TrainConfig(dataset="circuit", image_size=32),
    )
    model = create_model_and_diffusion(config, spec)[0]
    randomise(model.unet.up_emb, scale=0.3)  # type: ignore[union-attr]
    return export_weights(folder, model.state_dict(), describe_checkpoint(config, spec))


def convert(model: Path, data: Path, *options: object) -> Outcome:
    return run(TOOL, "--model_path", model, "--data_dir", data, "--out", model.parent / "new", *options)


def encoder_error(folder: Path, data_dir: Path) -> float:
    loaded = load_model(str(folder))
    data = read_split("circuit", str(data_dir), "train", spec=loaded.spec)
    labels = loaded.spec.normalise(torch.from_numpy(data.labels).float())
    with torch.no_grad():
        z = loaded.model.predict(loaded.model.abduct(model_inputs(data, "cpu")[0]))  # type: ignore[union-attr]
        return float((loaded.model.read_labels(z) - labels).square().mean())


def test_a_separate_embedding_is_near_the_old_one_and_the_rest_is_kept(tmp_path: Path, circuit_dir: Path) -> None:
    old = write_model(tmp_path / "old", cond_hidden=16, block_null=True)
    done = convert(old, circuit_dir, "--separate_embeddings", "--steps", 1000)
    assert done.returncode == 0, done.stderr
    before, after = load_model(str(old)), load_model(str(tmp_path / "new"))
    assert after.config.model.separate_embeddings and not before.config.model.separate_embeddings
    states = before.model.state_dict(), after.model.state_dict()
    for name in states[0].keys() - {name for name in states[0] if name.startswith("unet.up_emb")}:
        assert torch.equal(states[0][name], states[1][name]), name
    data = read_split("circuit", str(circuit_dir), "train", spec=after.spec)
    labels = after.spec.normalise(torch.from_numpy(data.labels).float())
    z = after.model.scm.label_blocks(labels).flatten(1)
    z += 0.05 * torch.randn(z.shape)
    with torch.no_grad():
        expected, found = (each.model.unet.up_emb(z) for each in (before, after))  # type: ignore[union-attr]
    error = (found - expected).square().mean() / expected.var(dim=0).mean()
    assert error < 0.3, float(error)  # an embedding that is not fitted has about 1


def test_other_mechanisms_are_fitted_with_an_encoder_for_them_and_the_network_is_kept(
    tmp_path: Path, circuit_dir: Path
) -> None:
    old = write_model(tmp_path / "old")
    done = convert(old, circuit_dir, "--mechanism", "spline", "--steps", 200, "--encoder_steps", 300)
    assert done.returncode == 0, done.stderr
    before, after = load_model(str(old)), load_model(str(tmp_path / "new"))
    assert after.config.model.mechanism == "spline"
    kept = after.model.state_dict()
    assert all(torch.equal(kept[k], v) for k, v in before.model.state_dict().items() if k.startswith("unet."))
    assert encoder_error(tmp_path / "new", circuit_dir) < 0.3 * encoder_error(old, circuit_dir)


def test_mechanisms_are_fitted_to_a_table_of_labels(tmp_path: Path, circuit_dir: Path) -> None:
    old = write_model(tmp_path / "old")
    spec = dataset_spec("circuit", 32)
    labels = circuit.predict(circuit.sample_noise(2000, np.random.default_rng(0)), {})
    shifted = labels.copy()
    shifted[:, 0] = 0.9 - 0.1 * labels[:, 1]  # another law of the arm than that of the images
    table = tmp_path / "labels.csv"
    names = [*reversed(spec.graph.names), "other"]
    rows = np.column_stack([shifted[:, ::-1], np.zeros(len(shifted))])
    np.savetxt(table, rows, delimiter=",", header=",".join(names), comments="")
    fitted = ["--mechanism", "additive", "--labels", table, "--steps", 600, "--encoder_steps", 2]
    done = convert(old, circuit_dir, *fitted)
    assert done.returncode == 0, done.stderr
    model = load_model(str(tmp_path / "new")).model
    with torch.no_grad():
        found = [-model.scm.label_nll(spec.normalise(torch.from_numpy(each).float()))[0] for each in (shifted, labels)]  # type: ignore[union-attr]
    assert found[0].sum(dim=-1).mean() > found[1].sum(dim=-1).mean() + 1.0


def test_mechanisms_get_another_size(tmp_path: Path, circuit_dir: Path) -> None:
    old = write_model(tmp_path / "old", mechanism="spline")
    sized = ["--mechanism_width", 24, "--mechanism_depth", 2, "--batch_size", 8, "--steps", 20, "--encoder_steps", 2]
    done = convert(old, circuit_dir, *sized)
    assert done.returncode == 0, done.stderr
    before, after = load_model(str(old)), load_model(str(tmp_path / "new"))
    assert after.config.model == replace(before.config.model, mechanism_width=24, mechanism_depth=2)
    states = before.model.state_dict(), after.model.state_dict()
    assert all(torch.equal(states[1][k], v) for k, v in states[0].items() if k.startswith("unet."))
    assert states[1]["scm.networks.3.2.weight"].shape == (24, 24)


def test_mechanisms_of_the_same_kind_and_size_are_trained_on(tmp_path: Path, circuit_dir: Path) -> None:
    old = write_model(tmp_path / "old", mechanism="spline")
    labels = circuit.predict(circuit.sample_noise(200, np.random.default_rng(0)), {})
    table = tmp_path / "labels.csv"
    np.savetxt(table, labels, delimiter=",", header="arm,blue,green,red", comments="")
    fitted = ("--labels", table, "--steps", 2, "--batch_size", 8, "--lr", 1e-9, "--encoder_steps", 2)
    done = convert(old, circuit_dir, *fitted)
    assert done.returncode == 0, done.stderr
    states = [load_model(str(tmp_path / name)).model.state_dict() for name in ("old", "new")]
    for key in (each for each in states[0] if each.startswith("scm.")):
        torch.testing.assert_close(states[1][key], states[0][key], atol=1e-6, rtol=0)


def test_the_encoder_alone_is_trained_on(tmp_path: Path, circuit_dir: Path) -> None:
    old = write_model(tmp_path / "old", mechanism="spline")
    done = convert(old, circuit_dir, "--encoder_steps", 150)
    assert done.returncode == 0, done.stderr
    before, after = (load_model(str(tmp_path / name)).model.state_dict() for name in ("old", "new"))
    changed = {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"encoder"}
    assert encoder_error(tmp_path / "new", circuit_dir) < 0.5 * encoder_error(old, circuit_dir)


def test_an_encoder_of_other_widths_is_trained(tmp_path: Path, circuit_dir: Path) -> None:
    old = write_model(tmp_path / "old", mechanism="spline")
    done = convert(old, circuit_dir, "--encoder_channels", "8,16", "--encoder_steps", 150)
    assert done.returncode == 0, done.stderr
    after = load_model(str(tmp_path / "new"))
    assert after.config.model.encoder_channels == "8,16"
    assert encoder_error(tmp_path / "new", circuit_dir) < 0.5 * encoder_error(old, circuit_dir)


def test_steps_of_the_model_are_kept(tmp_path: Path, circuit_dir: Path) -> None:
    old = write_model(tmp_path / "old", mechanism="spline")
    described = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(described | {"trained_steps": 77}))
    assert convert(old, circuit_dir, "--encoder_steps", 1).returncode == 0
    assert json.loads((tmp_path / "new" / "config.json").read_text())["trained_steps"] == 77


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(
            "arm,blue,green,red\n",
            "expected rows of 4 numbers below the header, got none",
            marks=pytest.mark.filterwarnings("ignore:.*Empty input"),
        ),
        ("arm,blue,green\n0.1,0.2,0.3\n", "expected a column 'red', got arm, blue, green"),
        ("arm,blue,green,red\n0.1,0.2,0.3,0.4\n0.1,no,0.3,0.4\n", "got another value in row 2 below the header"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, circuit_dir: Path, text: str, words: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    assert_refused(convert(write_model(tmp_path / "old"), circuit_dir, "--labels", tmp_path / "labels.csv"), words)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ({}, ["--separate_embeddings"], "separate_embeddings: expected a model with cond_hidden"),
        ({"cond_hidden": 16, "separate_embeddings": True}, ["--separate_embeddings"], "mechanism: expected another"),
        ({}, ["--mechanism", "additive"], "mechanism: expected another"),
        ({}, ["--encoder_steps", "0"], "mechanism: expected another"),
        ({}, ["--encoder_channels", "8", "--encoder_steps", "0"], "encoder_steps: expected 1 or more for an encoder"),
        ({}, ["--mechanism", "cubic"], "mechanism: expected"),
        ({}, ["--mechanism", "one_hop"], "mechanism: expected additive, affine, spline, got one_hop"),
        ({"model_type": "conditional"}, ["--mechanism", "spline"], "model_path: expected model_type causaldae"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    tmp_path: Path, circuit_dir: Path, model: dict[str, object], options: list[str], words: str
) -> None:
    assert_refused(convert(write_model(tmp_path / "old", **model), circuit_dir, *options), words)
    assert not (tmp_path / "new").exists()


def test_missing_labels_and_folders_with_checkpoints_are_refused_before_the_fit(
    tmp_path: Path, circuit_dir: Path
) -> None:
    (tmp_path / "new" / "step_0000001").mkdir(parents=True)
    (tmp_path / "new" / "step_0000001" / "manifest.json").write_text("{}")
    (tmp_path / "labels.csv").write_text("arm,blue,green,red\n0.1,,0.3,0.4\n")
    model = write_model(tmp_path / "old")
    arguments = ("--model_path", model, "--data_dir", circuit_dir, "--labels", tmp_path / "labels.csv")
    assert_refused(run(TOOL, *arguments, "--out", tmp_path / "new"), "expected a folder without checkpoints")
    assert_refused(run(TOOL, *arguments, "--out", tmp_path / "other"), "got another value in row 1 below the header")


def test_names_in_the_header_of_a_table_are_read_as_they_are(tmp_path: Path) -> None:
    module = importlib.import_module("convert_model")
    spec = replace(
        dataset_spec("circuit", 32), graph=CausalGraph(("arm", "blue", "a light", "x-pos"), (("arm", "blue"),))
    )
    (tmp_path / "labels.csv").write_text("x-pos,a light, arm,blue,note\n4,3,1,2,x\n8,7,5,6,\n")
    assert module.read_labels(tmp_path / "labels.csv", spec).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
