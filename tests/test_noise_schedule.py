"""Levels at fractional steps, what outputs stand for, and thresholding, against formulas written here."""

import numpy as np
import pytest
import torch
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion, ModelMeanType, get_named_beta_schedule
from causaldiffae.noise_schedule import NoiseLevels, thresholded
from causaldiffae.respace import SpacedDiffusion, space_timesteps
from causaldiffae.solvers import NoiseSchedule

BETAS = get_named_beta_schedule("linear", 100)
KINDS = (ModelMeanType.EPSILON, ModelMeanType.START_X, ModelMeanType.VELOCITY)
X, NOISE = (torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
T = torch.tensor([0.0, 12.0, 40.5, 73.25, 99.0])


def levels(kind: ModelMeanType = ModelMeanType.EPSILON, rescale: bool = False) -> NoiseLevels:
    return NoiseLevels(GaussianDiffusion(betas=BETAS, model_mean_type=kind, rescale_timesteps=rescale))


def output(kind: ModelMeanType, x_start: Tensor, eps: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    return {
        ModelMeanType.EPSILON: eps,
        ModelMeanType.START_X: x_start,
        ModelMeanType.VELOCITY: signal * eps - noise * x_start,
    }[kind]


def test_levels_are_the_schedules_at_whole_steps_and_near_it_between() -> None:
    found, schedule = levels().at(T, X), NoiseSchedule(np.cumprod(1 - BETAS))
    signal, noise = schedule.signal_and_noise(T.numpy())
    assert found.signal.shape == (5, 1, 1, 1) and found.signal.dtype == torch.float64
    np.testing.assert_allclose(found.signal.flatten(), signal, rtol=2e-3)
    np.testing.assert_allclose(found.noise.flatten(), noise, rtol=2e-3)
    whole = [0, 1, 4]
    np.testing.assert_allclose(found.signal.flatten()[whole], signal[whole], rtol=1e-12)


def test_levels_of_a_rescaled_and_of_a_respaced_process_are_the_whole_ones() -> None:
    torch.testing.assert_close(levels(rescale=True).at(T * 10, X).signal, levels().at(T, X).signal)
    spaced = SpacedDiffusion(use_timesteps=space_timesteps(100, "10"), betas=BETAS)
    torch.testing.assert_close(NoiseLevels(spaced).at(T, X).noise, levels().at(T, X).noise)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_stand_for_images(kind: ModelMeanType) -> None:
    known = levels(kind)
    level = known.at(T, X)
    x_t = level.signal * X + level.noise * NOISE
    answer = output(kind, X, NOISE, level.signal, level.noise)
    torch.testing.assert_close(known.xstart(answer, x_t, level), X)
    torch.testing.assert_close(known.output_of_xstart(X, x_t, level), answer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_eps_is_a_change_of_the_output(kind: ModelMeanType) -> None:
    known = levels(kind)
    level = known.at(T, X)
    x_t, change = level.signal * X + level.noise * NOISE, 0.3 * NOISE.flip(0)
    moved_start = (x_t - level.noise * (NOISE + change)) / level.signal
    before = output(kind, X, NOISE, level.signal, level.noise)
    after = output(kind, moved_start, NOISE + change, level.signal, level.noise)
    torch.testing.assert_close(known.output_of_eps_change(change, level), after - before)


def test_a_network_that_predicts_the_previous_image_is_refused() -> None:
    with pytest.raises(InputError, match="model_mean_type: previous_x given"):
        levels(ModelMeanType.PREVIOUS_X)


@pytest.mark.parametrize("kind", KINDS)
def test_thresholding(kind: ModelMeanType) -> None:
    known = levels(kind)
    level = known.at(T, X)
    inside, outside = X / X.abs().max(), 3.0 * X
    for x_start in (inside, outside):
        x_t = level.signal * x_start + level.noise * NOISE
        score = thresholded(lambda x, t, s=x_start: output(kind, s, NOISE, level.signal, level.noise), known, 0.9)
        found = known.xstart(score(x_t, T), x_t, level)
        bound = torch.quantile(x_start.flatten(1).abs(), 0.9, dim=1).clamp(min=1).reshape(-1, 1, 1, 1)
        expected = torch.minimum(torch.maximum(x_start, -bound), bound) / bound
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.abs().max() <= 1 + 1e-5, "outside is brought inside, image by image"
    assert (bound > 1).any(), "the case is one where something happens"
