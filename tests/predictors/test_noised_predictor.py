"""The predictor on noised images: likelihoods, gradient and model folders."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import squares_spec
from torch.distributions import Categorical, Normal

from causaldiffae.config import DiffusionConfig
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.predictors.noised_predictor import (
    NoisedPredictor,
    NoisedPredictorConfig,
    load_noised_predictor,
    save_noised_predictor,
)

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


def test_the_gradient_is_that_of_the_log_likelihood_in_inference_mode_too() -> None:
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
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial"])
@pytest.mark.parametrize("side", [28, 12, 10])
def test_pools_accept_sides_that_do_not_halve_evenly(pool: str, side: int) -> None:
    spec = replace(mixed_spec(), image_size=side)
    net = NoisedPredictor(
        spec, NoisedPredictorConfig(channel_mult="1,1,2,2", pool=pool, attention_resolutions=str(side))
    )
    assert net(torch.zeros(2, 1, side, side), torch.zeros(2)).shape == (2, 7)


def test_patches_must_fit() -> None:
    with pytest.raises(InputError, match="patch_size: expected a divisor of the image size 8, got 3"):
        NoisedPredictor(mixed_spec(), NoisedPredictorConfig(patch_size=3))


# ---------------------------------------------------------------------- files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_noised_predictor(tmp_path / "predictor", predictor(), DIFFUSION, {"note": 1})


def test_a_saved_predictor_has_the_same_outputs(folder: Path) -> None:
    net, again = predictor(), load_noised_predictor(folder, mixed_spec(), DIFFUSION)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.0, 50.0])
    torch.testing.assert_close(again(x, t), net(x, t), rtol=2e-2, atol=2e-2)  # weights are stored in half precision
    assert not again.training


@pytest.mark.parametrize(
    ("spec", "diffusion", "message"),
    [
        ({}, {"noise_schedule": "cosine"}, "expected noise_schedule 'cosine', as the model, got 'linear'"),
        ({}, {"diffusion_steps": 1000}, "expected diffusion_steps 1000, as the model, got 100"),
        ({"image_size": 16}, {}, "expected image_size 16, as the model, got 8"),
        ({"categories": ((), ("red", "green", "grey"), ())}, {}, "expected categories"),
        ({"shift": (0.0, 1.0, 3.0)}, {}, "expected shift"),
        ({"graph": ("size", "hue", "tall")}, {}, "expected the variables size, hue, tall, got size, colour, tall"),
    ],
)
def test_a_predictor_of_other_data_is_refused(
    folder: Path, spec: dict[str, Any], diffusion: dict[str, Any], message: str
) -> None:
    if "graph" in spec:
        spec = {"graph": type(mixed_spec().graph)(spec["graph"], ())}
    with pytest.raises(InputError, match=message):
        load_noised_predictor(folder, replace(mixed_spec(), **spec), replace(DIFFUSION, **diffusion))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "predictor"}, "expected a model of type 'noised_predictor' .*, got 'predictor'"),
        ({"network": None}, "network: expected classifier_width, .*, got None"),
        ({"network": {"classifier_width": 32}}, "network: expected classifier_width, "),
        ({"schedule": 3}, "expected diffusion_steps 100, as the model, got None"),
    ],
)
def test_damaged_descriptions_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load_noised_predictor(folder, mixed_spec(), DIFFUSION)


@pytest.mark.parametrize(
    ("key", "value"),
    [("classifier_width", 10**6), ("channel_mult", "0"), ("channel_mult", "1,99999999"), ("min_std", 0.0), ("pool", 3)],
)
def test_invalid_sizes_are_refused(folder: Path, key: str, value: Any) -> None:
    path = folder / "config.json"
    description = json.loads(path.read_text())
    description["network"][key] = value
    path.write_text(json.dumps(description))
    with pytest.raises(DataError):
        load_noised_predictor(folder, mixed_spec(), DIFFUSION)
