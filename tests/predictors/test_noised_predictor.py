"""The predictor on noised images: its likelihoods, its gradient, its files, its training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPO
from running import assert_refused, run
from tiny import squares_spec
from torch.distributions import Categorical, Normal

from causaldiffae.config import DiffusionConfig
from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.predictors.noised_predictor import (
    NoisedPredictor,
    NoisedPredictorConfig,
    load_noised_predictor,
    save_noised_predictor,
)
from causaldiffae.script_util import create_gaussian_diffusion
from causaldiffae.training.noised_predictor import (
    NoisedTraining,
    figures_by_level,
    levels_table,
    train_noised_predictor,
    validation_loss,
)

SHARE = REPO / "assets" / "mnist_share"
SCRIPT = REPO / "classifiers" / "noised_classifier.py"
TINY = NoisedPredictorConfig(classifier_width=32, channel_mult="1,1", patch_size=2, num_head_channels=32)
DIFFUSION = DiffusionConfig(diffusion_steps=100)


def mixed_spec() -> DatasetSpec:
    """A continuous variable, a category of three names, and a binary one of two numbers."""
    spec = squares_spec()
    return replace(
        spec,
        graph=type(spec.graph)(("size", "colour", "tall"), ()),
        shift=(4.0, 1.0, 3.0),
        scale=(2.0, 0.8, 2.0),
        low=(1.0, 0.0, 2.0),
        high=(7.0, 2.0, 6.0),
        kinds=("continuous", "categorical", "binary"),
        categories=((), ("red", "green", "blue"), ()),
    )


def predictor(spec: DatasetSpec | None = None, config: NoisedPredictorConfig = TINY) -> NoisedPredictor:
    torch.manual_seed(0)
    net = NoisedPredictor(spec or mixed_spec(), replace(config, patch_size=1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return net.eval()


def test_log_prob_is_that_of_the_distributions() -> None:
    net, spec = predictor(), mixed_spec()
    outputs = torch.randn(4, 2 + 3 + 2, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[1.5, 0.0, 2.0], [7.0, 2.0, 6.0], [4.0, 1.0, 6.0], [2.0, 2.0, 2.0]])
    found = net.log_prob(outputs, spec.normalise(labels))
    std = TINY.min_std + torch.log1p(outputs[:, 1].exp())
    torch.testing.assert_close(found[:, 0], Normal(outputs[:, 0], std).log_prob((labels[:, 0] - 4) / 2))
    torch.testing.assert_close(found[:, 1], Categorical(logits=outputs[:, 2:5]).log_prob(labels[:, 1]))
    torch.testing.assert_close(found[:, 2], Categorical(logits=outputs[:, 5:]).log_prob((labels[:, 2] > 3).float()))
    read = spec.denormalise(net.read(outputs))
    torch.testing.assert_close(read[:, 0], 2 * outputs[:, 0] + 4)
    torch.testing.assert_close(read[:, 1], outputs[:, 2:5].argmax(1).float())
    torch.testing.assert_close(read[:, 2], 2 + 4 * outputs[:, 5:].argmax(1).float())


def test_the_gradient_is_that_of_the_log_likelihood_also_in_inference_mode() -> None:
    net, spec = predictor(), mixed_spec()
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    t, labels = torch.tensor([3.0, 60.5]), spec.normalise(torch.tensor([[2.0, 1.0, 6.0], [5.0, 0.0, 2.0]]))
    with torch.inference_mode():
        found = net.gradient(x.clone(), t.clone(), labels.clone())
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))

    def along(step: float) -> torch.Tensor:
        return net.log_prob(net(x + step * direction, t), labels).sum(dim=1)

    with torch.no_grad():
        slope = (along(5e-3) - along(-5e-3)) / 1e-2
    torch.testing.assert_close((found * direction).flatten(1).sum(1), slope, rtol=1e-2, atol=1e-3)
    assert found.abs().flatten(1).sum(1).gt(0).all()
    assert all(parameter.grad is None for parameter in net.parameters()), "nothing is left behind"


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial"])
@pytest.mark.parametrize("side", [28, 12, 10])
def test_pools_serve_sides_that_do_not_halve_evenly(pool: str, side: int) -> None:
    spec = replace(mixed_spec(), image_size=side)
    net = NoisedPredictor(
        spec, NoisedPredictorConfig(channel_mult="1,1,2,2", pool=pool, attention_resolutions=str(side))
    )
    assert net(torch.zeros(2, 1, side, side), torch.zeros(2)).shape == (2, 7)


def test_patches_must_fit() -> None:
    with pytest.raises(InputError, match="patch_size: 3 given, a divisor of the image size 8"):
        NoisedPredictor(mixed_spec(), NoisedPredictorConfig(patch_size=3))


# ---------------------------------------------------------------------- files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_noised_predictor(tmp_path / "predictor", predictor(), DIFFUSION, {"note": 1})


def test_a_saved_predictor_reads_as_before(folder: Path) -> None:
    net, again = predictor(), load_noised_predictor(folder, mixed_spec(), DIFFUSION)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.0, 50.0])
    torch.testing.assert_close(again(x, t), net(x, t), rtol=2e-2, atol=2e-2)  # weights are stored in half precision
    assert not again.training


@pytest.mark.parametrize(
    ("spec", "diffusion", "message"),
    [
        ({}, {"noise_schedule": "cosine"}, "was trained for noise_schedule 'linear', the model has 'cosine'"),
        ({}, {"diffusion_steps": 1000}, "was trained for diffusion_steps 100, the model has 1000"),
        ({"image_size": 16}, {}, "is for image_size 8, the model has 16"),
        ({"categories": ((), ("red", "green", "grey"), ())}, {}, "is for categories"),
        ({"shift": (0.0, 1.0, 3.0)}, {}, "is for shift"),
        ({"graph": ("size", "hue", "tall")}, {}, "reads size, colour, tall, not size, hue, tall"),
    ],
)
def test_a_predictor_of_something_else_is_refused(
    folder: Path, spec: dict[str, Any], diffusion: dict[str, Any], message: str
) -> None:
    if "graph" in spec:
        spec = {"graph": type(mixed_spec().graph)(spec["graph"], ())}
    with pytest.raises(InputError, match=message):
        load_noised_predictor(folder, replace(mixed_spec(), **spec), replace(DIFFUSION, **diffusion))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "predictor"}, "a 'predictor' model, a noised predictor is needed"),
        ({"network": None}, "network is None"),
        ({"network": {"classifier_width": 32}}, "are needed"),
        ({"schedule": 3}, "was trained for diffusion_steps None"),
    ],
)
def test_a_damaged_description_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load_noised_predictor(folder, mixed_spec(), DIFFUSION)


@pytest.mark.parametrize(
    ("key", "value"), [("classifier_width", 10**6), ("channel_mult", "0"), ("min_std", 0.0), ("pool", 3)]
)
def test_hostile_sizes_are_refused(folder: Path, key: str, value: Any) -> None:
    path = folder / "config.json"
    description = json.loads(path.read_text())
    description["network"][key] = value
    path.write_text(json.dumps(description))
    with pytest.raises(DataError):
        load_noised_predictor(folder, mixed_spec(), DIFFUSION)


# ---------------------------------------------------------------------- training


def test_training_learns_to_read_and_is_blind_in_noise() -> None:
    train, test = (read_split("mnist", SHARE, split) for split in ("train", "test"))
    diffusion = create_gaussian_diffusion(DIFFUSION)
    config = NoisedTraining("mnist", "here", "there", iterations=120, batch_size=32, lr=4e-3)
    untrained, _ = train_noised_predictor(replace(config, iterations=1, lr=1e-9), TINY, diffusion, train, test)
    net, best = train_noised_predictor(config, TINY, diffusion, train, test)
    assert best == pytest.approx(validation_loss(net, diffusion, test)), "the best weights are kept"
    assert best < 0.9 * validation_loss(untrained, diffusion, test)
    clean, noisy = figures_by_level(net, diffusion, test, (0.0, 1.0))
    assert clean["digit_accuracy"] > 0.5 > 0.3 > noisy["digit_accuracy"]
    assert clean["log_prob"] > noisy["log_prob"] and noisy["level"] == 1.0
    assert "digit_accuracy" in levels_table([clean, noisy], train.spec)
    again, _ = train_noised_predictor(config, TINY, diffusion, train, test)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_script_takes_the_score_networks_data_and_schedule(tmp_path: Path) -> None:
    score = tmp_path / "score.yaml"
    score.write_text("dataset: pendulum\nimage_size: 16\nchannels: 3\ndiffusion_steps: 50\nnoise_schedule: cosine\n")
    outcome = run(
        SCRIPT, f"--score_config={score}", "--dataset=mnist", "--channels=1", f"--data_dir={SHARE}",
        f"--out={tmp_path / 'p'}", "--iterations=2", "--batch_size=4", "--channel_mult=1,1",
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    spec = dataset_spec("mnist", 16)
    config = DiffusionConfig(diffusion_steps=50, noise_schedule="cosine")
    assert load_noised_predictor(tmp_path / "p", spec, config).spec == spec
    assert "digit_accuracy" in outcome.stdout and "100%" in outcome.stderr
    figures = json.loads((tmp_path / "p" / "config.json").read_text())["figures"]
    assert len(figures["by_level"]) == 10 and np.isfinite(figures["validation_loss"])


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    assert_refused(run(SCRIPT, "--dataset=mnist", "--out=x"), "data_dir: expected a value, got none")
    base = ["--dataset=mnist", f"--data_dir={SHARE}", f"--out={tmp_path / 'p'}"]
    assert_refused(run(SCRIPT, *base, "--iterations=0"), "iterations: expected 1 or more, got 0")
    assert_refused(run(SCRIPT, *base, "--pool=mean"), "pool: 'mean' given")
    assert_refused(run(SCRIPT, *base, "--noise_schedule=square"), "noise_schedule: 'square' given")
    assert_refused(run(SCRIPT, *base, "--patch_size=5"), "patch_size: 5 given")
