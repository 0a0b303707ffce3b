"""Noise levels at fractional steps, conversions of model outputs, and thresholding, against formulas written here."""

import numpy as np
import pytest
import torch
from torch import Tensor

from causaldiffae.gaussian_diffusion import GaussianDiffusion, ModelMeanType, get_named_beta_schedule
from causaldiffae.guidance import thresholded
from causaldiffae.noise_schedule import NoiseSchedule, conversion
from causaldiffae.respace import SpacedDiffusion, space_timesteps

BETAS = get_named_beta_schedule("linear", 100)
KINDS = (ModelMeanType.EPSILON, ModelMeanType.START_X, ModelMeanType.VELOCITY)
X, NOISE = (torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
T = torch.tensor([0.0, 12.0, 40.5, 73.25, 99.0])


def schedule(kind: ModelMeanType = ModelMeanType.EPSILON, rescale: bool = False) -> NoiseSchedule:
    return GaussianDiffusion(betas=BETAS, model_mean_type=kind, rescale_timesteps=rescale).noise_schedule


def output(kind: ModelMeanType, x_start: Tensor, eps: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    return {
        ModelMeanType.EPSILON: eps,
        ModelMeanType.START_X: x_start,
        ModelMeanType.VELOCITY: signal * eps - noise * x_start,
    }[kind]


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_levels_on_the_device_are_those_of_the_solvers(name: str) -> None:
    """One interpolation of alpha-bar: guidance and solvers agree at whole and fractional steps."""
    betas = get_named_beta_schedule(name, 100)
    known, t = GaussianDiffusion(betas=betas).noise_schedule, torch.linspace(0, 99, 397, dtype=torch.float64)
    found, (signal, noise) = known.level(t, X), known.signal_and_noise(t.numpy())
    assert found.signal.shape == (397, 1, 1, 1) and found.signal.dtype == torch.float64
    np.testing.assert_allclose(found.signal.flatten(), signal, rtol=1e-12)
    np.testing.assert_allclose(found.noise.flatten(), noise, rtol=1e-12)
    whole = slice(0, None, 4)
    np.testing.assert_allclose(signal[whole] ** 2, np.cumprod(1 - betas), rtol=1e-12)


def test_a_process_of_one_step_has_a_level() -> None:
    level = NoiseSchedule(np.array([0.25])).level(torch.zeros(1), X)
    assert float(level.signal) == pytest.approx(0.5) and float(level.noise) == pytest.approx(0.75**0.5)


def test_levels_of_a_rescaled_and_of_a_respaced_process_are_those_of_the_base_process() -> None:
    torch.testing.assert_close(schedule(rescale=True).level(T * 10, X).signal, schedule().level(T, X).signal)
    spaced = SpacedDiffusion(use_timesteps=space_timesteps(100, "10"), betas=BETAS)
    torch.testing.assert_close(spaced.noise_schedule.level(T, X).noise, schedule().level(T, X).noise)


@pytest.mark.parametrize("given", KINDS)
@pytest.mark.parametrize("wanted", KINDS)
def test_conversions_between_predictions(given: ModelMeanType, wanted: ModelMeanType) -> None:
    level = schedule().level(T, X)
    x_t = level.signal * X + level.noise * NOISE
    of_x, of_given = conversion(given, wanted, *level)
    found = of_x * x_t + of_given * output(given, X, NOISE, *level)
    torch.testing.assert_close(found, output(wanted, X, NOISE, *level))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_stand_for_images(kind: ModelMeanType) -> None:
    known = schedule(kind)
    level = known.level(T, X)
    x_t = level.signal * X + level.noise * NOISE
    answer = output(kind, X, NOISE, level.signal, level.noise)
    torch.testing.assert_close(known.xstart(answer, x_t, level), X)
    torch.testing.assert_close(known.output_of_xstart(X, x_t, level), answer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_eps_is_a_change_of_the_output(kind: ModelMeanType) -> None:
    known = schedule(kind)
    level = known.level(T, X)
    x_t, change = level.signal * X + level.noise * NOISE, 0.3 * NOISE.flip(0)
    moved_start = (x_t - level.noise * (NOISE + change)) / level.signal
    before = output(kind, X, NOISE, level.signal, level.noise)
    after = output(kind, moved_start, NOISE + change, level.signal, level.noise)
    torch.testing.assert_close(known.output_of_eps_change(change, level), after - before)


@pytest.mark.parametrize("kind", KINDS)
def test_thresholding(kind: ModelMeanType) -> None:
    known = schedule(kind)
    level = known.level(T, X)
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


def test_thresholding_passes_a_learned_variance_on() -> None:
    known, variance = schedule(), torch.randn(5, 2, 4, 4)
    model = thresholded(lambda x, t: torch.cat([5 * X.float(), variance], dim=1), known, 0.9)
    found = model(X.float(), T)
    assert found.shape == (5, 4, 4, 4)
    assert torch.equal(found[:, 2:], variance)
