"""tools/convert_model.py: the same decoder with a separate embedding or other mechanisms."""

from pathlib import Path

import pytest
import torch
from paths import REPO
from running import Outcome, assert_refused, run
from tiny import randomise

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.config import Config, ModelConfig, TrainConfig
from causaldiffae.datasets.images import model_inputs
from causaldiffae.datasets.registry import dataset_spec, read_split
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
    data = read_split("circuit", str(circuit_dir), "train", spec=after.spec)
    labels = after.spec.normalise(torch.from_numpy(data.labels).float())
    with torch.no_grad():
        errors = [
            (each.model.read_labels(each.model.predict(each.model.abduct(model_inputs(data, "cpu")[0]))) - labels)
            .square()
            .mean()
            for each in (before, after)  # type: ignore[union-attr]
        ]
    assert errors[1] < 0.3 * errors[0], errors


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ({}, ["--separate_embeddings"], "separate_embeddings: expected a model with cond_hidden"),
        ({"cond_hidden": 16, "separate_embeddings": True}, ["--separate_embeddings"], "mechanism: expected another"),
        ({}, ["--mechanism", "additive"], "mechanism: expected another"),
        ({}, ["--mechanism", "cubic"], "mechanism: expected"),
        ({"model_type": "conditional"}, ["--mechanism", "spline"], "model_path: expected model_type causaldae"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    tmp_path: Path, circuit_dir: Path, model: dict[str, object], options: list[str], words: str
) -> None:
    assert_refused(convert(write_model(tmp_path / "old", **model), circuit_dir, *options), words)
    assert not (tmp_path / "new").exists()
