"""Beta schedules, alpha-bar at fractional steps and conversions of model outputs, against formulas in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from closed_form import as_output
from tiny import normal

from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion
from causaldiffae.noise_schedule import (
    ModelMeanType,
    NoiseSchedule,
    betas_for_alpha_bar,
    conversion,
    enforce_zero_terminal_snr,
    get_named_beta_schedule,
)
from causaldiffae.respace import SpacedDiffusion, space_timesteps

BETAS = get_named_beta_schedule("linear", 100)
X, NOISE, T = normal(5, 2, 4, 4), normal(5, 2, 4, 4, seed=1), torch.tensor([0.0, 12.0, 40.5, 73.25, 99.0])


def schedule(mean_type: ModelMeanType = ModelMeanType.EPSILON, rescale: bool = False) -> NoiseSchedule:
    return GaussianDiffusion(betas=BETAS, model_mean_type=mean_type, rescale_timesteps=rescale).noise_schedule


# ---------------------------------------------------------------------- betas


def test_linear_schedule_is_that_of_1000_steps_rescaled() -> None:
    betas = get_named_beta_schedule("linear", 1000)
    assert betas.dtype == np.float64
    np.testing.assert_allclose(betas[[0, 1, -1]], [1e-4, 1e-4 + 0.0199 / 999, 0.02], rtol=1e-13)
    np.testing.assert_allclose(get_named_beta_schedule("linear", 250)[[0, -1]], [4e-4, 0.08], rtol=1e-13)


def test_cosine_schedule_follows_its_alpha_bar() -> None:
    betas = get_named_beta_schedule("cosine", 40)
    f = np.cos((np.arange(41) / 40 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(np.cumprod(1 - betas)[:-1], f[1:-1] / f[0], rtol=1e-10)
    assert betas[-1] == 0.999
    assert betas_for_alpha_bar(4, lambda t: 1 - t, max_beta=0.4).max() == 0.4


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_zero_terminal_snr_keeps_the_first_step_and_ends_in_pure_noise(name: str) -> None:
    betas = get_named_beta_schedule(name, 200)
    zero_snr = enforce_zero_terminal_snr(betas)
    before, after = (np.sqrt(np.cumprod(1 - each)) for each in (betas, zero_snr))
    assert after[-1] == 0
    np.testing.assert_allclose(after[0], before[0], rtol=1e-12)
    np.testing.assert_allclose(np.diff(after) / np.diff(before), after[0] / (before[0] - before[-1]), rtol=1e-6)
    bars = GaussianDiffusion(betas=zero_snr, model_mean_type=ModelMeanType.START_X).base_alphas_cumprod
    assert 0 < bars[-1] < 1e-3 and (np.diff(bars) < 0).all(), "log-SNR is finite everywhere"


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (get_named_beta_schedule, ("sine", 10), "noise_schedule: expected one of linear, cosine, got 'sine'"),
        (get_named_beta_schedule, ("linear", 0), "diffusion_steps: expected at least 1, got 0"),
        (get_named_beta_schedule, ("linear", 20), "diffusion_steps: expected more than 20 for the linear schedule"),
        (enforce_zero_terminal_snr, ([0.5],), "zero_terminal_snr: expected at least 2 diffusion_steps, got 1"),
        *((NoiseSchedule, (np.array(bars),), "diffusion: expected positive, strictly decreasing alpha-bar")
          for bars in ([0.9, 0.9, 0.5], [0.5, 0.6], [0.9, 0.5, 0.0])),
    ],
)  # fmt: skip
def test_schedules_that_are_not_defined_are_refused(make: Callable[..., Any], arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(*arguments)


# ---------------------------------------------------------------------- alpha-bar at integer and fractional steps


@pytest.mark.parametrize(("name", "steps"), [("linear", 1000), ("linear", 50), ("cosine", 100)])
def test_alpha_bar_is_exact_at_whole_steps_and_decreases_in_between(name: str, steps: int) -> None:
    betas = get_named_beta_schedule(name, steps)
    known, bars = GaussianDiffusion(betas=betas).noise_schedule, np.cumprod(1 - betas)
    signal, noise = known.signal_and_noise(np.arange(steps))
    np.testing.assert_allclose(signal, bars**0.5, rtol=1e-12)
    np.testing.assert_allclose(noise, (1 - bars) ** 0.5, rtol=1e-10)
    fine = np.linspace(0, steps - 1, 7919)
    levels = known.half_logsnr(fine)
    assert (np.diff(levels) < 0).all()
    np.testing.assert_allclose(known.step_of(levels), fine, rtol=0, atol=1e-7)


def test_alpha_bar_between_steps_is_that_of_the_continuous_process() -> None:
    """Its rate is linear: alpha-bar(u) = exp(-0.1 u - 9.95 u^2) for u = (t + 1) / 1000."""
    known = NoiseSchedule(np.exp([-0.1 * u - 9.95 * u**2 for u in np.arange(1, 1001) / 1000]))
    steps = np.array([0.0, 0.25, 0.5, 3.7, 500.5, 998.4, 999.0])
    u = (steps + 1) / 1000
    error = np.abs(known.half_logsnr(steps) + 0.5 * np.log(np.expm1(0.1 * u + 9.95 * u**2)))
    assert error.max() < 1e-3 and error[3:].max() < 2e-4


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_levels_on_the_device_equal_those_of_the_solvers(name: str) -> None:
    known = GaussianDiffusion(betas=get_named_beta_schedule(name, 100)).noise_schedule
    t = torch.linspace(0, 99, 397, dtype=torch.float64)
    found, (signal, noise) = known.level(t, X), known.signal_and_noise(t.numpy())
    assert found.signal.shape == (397, 1, 1, 1) and found.signal.dtype == torch.float64
    np.testing.assert_allclose(found.signal.flatten(), signal, rtol=1e-12)
    np.testing.assert_allclose(found.noise.flatten(), noise, rtol=1e-12)


def test_a_process_of_one_step_has_a_level() -> None:
    level = NoiseSchedule(np.array([0.25])).level(torch.zeros(1), X)
    assert float(level.signal) == pytest.approx(0.5) and float(level.noise) == pytest.approx(0.75**0.5)


def test_rescaled_and_respaced_processes_have_the_levels_of_the_base_process() -> None:
    torch.testing.assert_close(schedule(rescale=True).level(T * 10, X).signal, schedule().level(T, X).signal)
    spaced = SpacedDiffusion(use_timesteps=space_timesteps(100, "10"), betas=BETAS)
    torch.testing.assert_close(spaced.noise_schedule.level(T, X).noise, schedule().level(T, X).noise)


# ---------------------------------------------------------------------- model outputs


@pytest.mark.parametrize("given", ModelMeanType)
@pytest.mark.parametrize("target", ModelMeanType)
def test_every_prediction_converts_to_every_other(given: ModelMeanType, target: ModelMeanType) -> None:
    level = schedule().level(T, X)
    x_t = level.signal * X + level.noise * NOISE
    of_x, of_given = conversion(given, target, *level)
    found = of_x * x_t + of_given * as_output(given, X, NOISE, *level)
    torch.testing.assert_close(found, as_output(target, X, NOISE, *level))


@pytest.mark.parametrize("mean_type", ModelMeanType)
def test_outputs_convert_to_images_and_a_change_of_eps_to_a_change_of_the_output(mean_type: ModelMeanType) -> None:
    known = schedule(mean_type)
    level = known.level(T, X)
    x_t, change = level.signal * X + level.noise * NOISE, 0.3 * NOISE.flip(0)
    output = as_output(mean_type, X, NOISE, *level)
    torch.testing.assert_close(known.xstart(output, x_t, level), X)
    torch.testing.assert_close(known.output_of_xstart(X, x_t, level), output)
    moved_start = (x_t - level.noise * (NOISE + change)) / level.signal
    moved = as_output(mean_type, moved_start, NOISE + change, *level)
    torch.testing.assert_close(known.output_of_eps_change(change, level), moved - output)
