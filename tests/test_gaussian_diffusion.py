"""The diffusion process against plain numpy, Bayes' rule, and Gaussian data, whose best eps has a closed form."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from closed_form import as_output, gaussian_eps
from tiny import normal
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
    enforce_zero_terminal_snr,
    extract,
    get_named_beta_schedule,
)
from causaldiffae.nn import ModelFn
from causaldiffae.respace import SpacedDiffusion, space_timesteps
from causaldiffae.solvers import OdeSolver, SolverState

BETAS = get_named_beta_schedule("linear", 1000)
ALPHA_BAR = np.cumprod(1 - BETAS)
MEAN, STD = 0.3, 0.5
X_START, NOISE = normal(3, 1, 3, 3), normal(3, 1, 3, 3, seed=1)
STEPS = torch.tensor([0, 20, 49])


def diffusion(steps: int = 50, **kwargs: Any) -> GaussianDiffusion:
    return GaussianDiffusion(betas=get_named_beta_schedule("linear", steps), **kwargs)


def spaced(count: int, **kwargs: Any) -> SpacedDiffusion:
    return SpacedDiffusion(space_timesteps(1000, [count]), betas=BETAS, **kwargs)


def levels(process: GaussianDiffusion, t: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise at steps t, (B, 1, 1, 1), by plain numpy."""
    bars = np.cumprod(1 - process.betas)[t.numpy()].reshape(-1, 1, 1, 1)
    return torch.from_numpy(bars**0.5), torch.from_numpy((1 - bars) ** 0.5)


def gaussian(x_t: Tensor, t: Tensor) -> Tensor:
    """The best eps for x_0 ~ N(MEAN, STD^2); t are indices into the 1000 steps of BETAS."""
    bars = torch.from_numpy(ALPHA_BAR)[t].reshape(-1, 1, 1, 1)
    return gaussian_eps(x_t, bars.sqrt(), (1 - bars).sqrt(), MEAN, STD)


# ---------------------------------------------------------------------- tables and posterior


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_tables_follow_their_formulas(schedule: str) -> None:
    betas = get_named_beta_schedule(schedule, 30)
    process, bars = GaussianDiffusion(betas=betas), [1.0]
    for beta in betas:
        bars.append(bars[-1] * (1 - beta))
    now, before, after = np.array(bars[1:]), np.array(bars[:-1]), np.array([*bars[2:], 0.0])
    expected = {
        "alphas_cumprod": now,
        "alphas_cumprod_prev": before,
        "alphas_cumprod_next": after,
        "sqrt_alphas_cumprod": now**0.5,
        "sqrt_one_minus_alphas_cumprod": (1 - now) ** 0.5,
        "sqrt_recip_alphas_cumprod": now**-0.5,
        "sqrt_recipm1_alphas_cumprod": ((1 - now) / now) ** 0.5,
        "posterior_variance": betas * (1 - before) / (1 - now),
        "posterior_mean_coef1": before**0.5 * betas / (1 - now),
        "posterior_mean_coef2": (1 - betas) ** 0.5 * (1 - before) / (1 - now),
    }
    for name, table in expected.items():
        assert getattr(process, name).dtype == np.float64
        np.testing.assert_allclose(getattr(process, name), table, rtol=1e-10, atol=1e-15, err_msg=name)
    log_variance = process.posterior_log_variance_clipped
    np.testing.assert_allclose(log_variance[1:], np.log(expected["posterior_variance"][1:]), rtol=1e-9)
    assert log_variance[0] == log_variance[1]


@pytest.mark.parametrize("t", [1, 7, 29])
def test_posterior_is_bayes_rule(t: int) -> None:
    """q(x_{t-1} | x_t, x_0) from the two densities, normalised by summing over a fine grid."""
    process, x_start, x_t = diffusion(30), -0.4, 0.9
    beta, before = process.betas[t], np.prod(1 - process.betas[:t])
    given = (torch.full((1, 1), value, dtype=torch.float64) for value in (x_start, x_t))
    mean, variance, log_variance = map(float, process.q_posterior_mean_variance(*given, torch.tensor([t])))
    grid = np.linspace(mean - 12 * variance**0.5, mean + 12 * variance**0.5, 4001)
    log_likelihood = -((x_t - (1 - beta) ** 0.5 * grid) ** 2) / (2 * beta)
    log_density = log_likelihood - (grid - before**0.5 * x_start) ** 2 / (2 * (1 - before))
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    assert abs((density * grid).sum() - mean) < 1e-10
    assert abs((density * (grid - mean) ** 2).sum() - variance) < 1e-10
    assert abs(log_variance - math.log(variance)) < 1e-10


def test_posterior_of_the_first_step_is_the_image() -> None:
    moments = diffusion().q_posterior_mean_variance(X_START, NOISE, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(moments.mean, X_START, rtol=0, atol=1e-12)
    assert not moments.variance.any()


def test_table_entries_take_the_dtype_of_the_images() -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        values = extract(np.array([1 / 3, 2 / 3]), torch.tensor([1, 0]), torch.zeros(2, 1, 2, 2, dtype=dtype))
        assert values.dtype == dtype and values.shape == (2, 1, 1, 1)
        torch.testing.assert_close(values.flatten(), torch.tensor([2 / 3, 1 / 3]).to(dtype))


def test_every_table_is_copied_to_a_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    process, copy = diffusion(), torch.as_tensor
    process.q_sample(X_START, STEPS, NOISE)
    monkeypatch.setattr(
        torch, "as_tensor", lambda data, **given: pytest.fail() if type(data) is np.ndarray else copy(data, **given)
    )
    process.q_sample(X_START, STEPS, NOISE)


# ---------------------------------------------------------------------- the forward process and predictions


def test_q_sample_is_its_formula_and_the_chain_of_single_steps() -> None:
    """Mean and variance of x_t, passed through x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) noise step by step."""
    process, one = diffusion(30), torch.ones(1, 1, dtype=torch.float64)
    mean, variance = 0.8, 0.0
    for step, beta in enumerate(process.betas):
        mean, variance, t = (1 - beta) ** 0.5 * mean, (1 - beta) * variance + beta, torch.tensor([step])
        assert abs(float(process.q_sample(0.8 * one, t, 0 * one)) - mean) < 1e-12
        assert abs(float(process.q_sample(0 * one, t, one)) ** 2 - variance) < 1e-12
    signal, noise = levels(process, torch.tensor([0, 20, 29]))
    sample = process.q_sample(X_START, torch.tensor([0, 20, 29]), NOISE)
    torch.testing.assert_close(sample, signal * X_START + noise * NOISE, rtol=1e-12, atol=1e-12)
    torch.manual_seed(0)
    drawn = process.q_sample(torch.zeros(1, 1, 200, 200), torch.tensor([29]))
    assert abs(float(drawn.var()) / variance - 1) < 0.03, "noise is drawn if it is not given"


@pytest.mark.parametrize("mean_type", ModelMeanType)
def test_every_kind_of_prediction_gives_the_same_reverse_step(mean_type: ModelMeanType) -> None:
    process = diffusion(model_mean_type=mean_type)
    x_t = process.q_sample(X_START, STEPS, NOISE)
    posterior = process.q_posterior_mean_variance(X_START, x_t, STEPS)
    output = as_output(mean_type, X_START, NOISE, *levels(process, STEPS))
    step = process.p_mean_variance(lambda x, t: output, x_t, STEPS, clip_denoised=False)
    for name, expected in (("pred_xstart", X_START), ("eps", NOISE), ("mean", posterior.mean)):
        torch.testing.assert_close(getattr(step, name), expected, rtol=1e-8, atol=1e-8)


def test_velocity_is_the_derivative_along_the_angle() -> None:
    """With x = cos(a) x_0 + sin(a) eps, v = dx / da."""
    process, h = diffusion(), 1e-5
    angle = math.acos(process.sqrt_alphas_cumprod[12])
    after, before = (math.cos(a) * X_START + math.sin(a) * NOISE for a in (angle + h, angle - h))
    found = process.velocity(X_START, torch.full((3,), 12), NOISE)
    torch.testing.assert_close(found, (after - before) / (2 * h), rtol=1e-8, atol=1e-8)


def test_clipping_the_image_keeps_eps_consistent() -> None:
    process, x, t = diffusion(), 5 * NOISE, torch.full((3,), 20)
    clipped, free = (process.p_mean_variance(lambda x, t: 0 * x, x, t, clip_denoised=clip) for clip in (True, False))
    assert clipped.pred_xstart.abs().max() == 1 and free.pred_xstart.abs().max() > 1
    torch.testing.assert_close(process.q_sample(clipped.pred_xstart, t, clipped.eps), x)


def test_fixed_variances_are_the_bounds_between_which_a_learned_one_interpolates() -> None:
    process, x, t = diffusion(), normal(50, 1, 1, 1), torch.arange(50)

    def log_variance(kind: ModelVarType, model: ModelFn) -> np.ndarray:
        return diffusion(model_var_type=kind).p_mean_variance(model, x, t).log_variance.flatten().numpy()

    low, high = process.posterior_log_variance_clipped, np.log(process.betas)
    small, large = (log_variance(ModelVarType(f"fixed_{size}"), lambda x, t: x) for size in ("small", "large"))
    np.testing.assert_allclose(small[1:], low[1:], rtol=1e-10)
    np.testing.assert_allclose(large[1:], high[1:], rtol=1e-10)
    assert small[0] == large[0]
    for v in (-1.0, 0.0, 1.0):
        learned = log_variance(ModelVarType.LEARNED_RANGE, lambda x, t, v=v: torch.cat([x, torch.full_like(x, v)], 1))
        np.testing.assert_allclose(learned, low + (high - low) * (v + 1) / 2, rtol=1e-10)


# ---------------------------------------------------------------------- sampling and encoding


def test_ancestral_steps_add_noise_except_the_last() -> None:
    process, t = diffusion(), torch.tensor([0, 30, 30])
    step = process.p_mean_variance(gaussian, X_START, t)
    drawn = process.p_sample(gaussian, X_START, t, noise=NOISE)
    torch.testing.assert_close(drawn, step.mean + (t > 0).reshape(-1, 1, 1, 1) * step.variance.sqrt() * NOISE)


@pytest.mark.parametrize("loop", [
    lambda process, x: process.p_sample_loop(gaussian, x, clip_denoised=False),
    lambda process, x: process.ddim_sample_loop(gaussian, x, eta=1.0),
], ids=["ancestral", "ddim eta=1"])  # fmt: skip
def test_stochastic_samples_of_gaussian_data_have_its_mean_and_deviation(loop: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    x = loop(spaced(250), torch.randn(1, 1, 80, 80, dtype=torch.float64))
    assert abs(float(x.mean()) - MEAN) < 0.03 and abs(float(x.std()) - STD) < 0.03


def test_ddim_noise_with_eta_one_has_the_posterior_variance() -> None:
    """Song et al., 2021, section 4.1; without eta the noise has no effect."""
    process, t, one = diffusion(), torch.full((3,), 17), torch.ones_like(X_START)
    args = (lambda x, t: 0.5 * x, X_START, t)
    with_noise, without = (process.ddim_sample(*args, eta=1.0, noise=noise) for noise in (one, 0 * one))
    torch.testing.assert_close(with_noise - without, one * process.posterior_variance[17] ** 0.5)
    assert torch.equal(process.ddim_sample(*args), process.ddim_sample(*args, noise=9 * one))


@pytest.mark.parametrize("mean_type", ModelMeanType)
@pytest.mark.parametrize("steps", [range(0, 1000, 50), range(1000)], ids=len)
def test_full_and_partial_round_trips_are_exact_for_constant_eps(mean_type: ModelMeanType, steps: range) -> None:
    process = SpacedDiffusion(steps, betas=BETAS, model_mean_type=mean_type)

    def model(x: Tensor, t: Tensor) -> Tensor:
        bars = torch.from_numpy(ALPHA_BAR)[t].reshape(-1, 1, 1, 1)
        signal, noise = bars.sqrt(), (1 - bars).sqrt()
        return as_output(mean_type, (x - noise * NOISE) / signal, NOISE, signal, noise)

    for stop in (7, len(steps)):
        x, (signal, noise) = process.ddim_encode(model, X_START, stop), levels(process, torch.tensor([stop - 1]))
        torch.testing.assert_close(x, signal * X_START + noise * NOISE, rtol=0, atol=1e-9)
        torch.testing.assert_close(process.ddim_sample_loop(model, x, start=stop), X_START, rtol=0, atol=1e-9)


def test_encoding_evaluates_the_network_at_the_noise_of_its_input() -> None:
    seen: list[int] = []
    process, model = spaced(5), lambda x, t: (seen.append(int(t[0])), x)[1]
    process.ddim_encode(model, X_START)
    process.ddim_sample_loop(model, X_START)
    assert seen == [0, 0, 250, 500, 749, 999, 749, 500, 250, 0]


def test_encoding_inverts_decoding_for_a_constant_image() -> None:
    """Decoding ends at the predicted image; encoding follows the straight path from any later point."""
    process, constant, zero = spaced(20, model_mean_type=ModelMeanType.START_X), NOISE, torch.zeros(3, dtype=torch.long)
    encoded = process.ddim_encode(lambda x, t: constant, X_START)
    first = process.q_sample(X_START, zero, process.predict_eps_from_xstart(X_START, zero, constant))
    (signal, noise), (signal_T, noise_T) = levels(process, zero), levels(process, zero + 19)
    expected = signal_T * constant + noise_T * (first - signal * constant) / noise
    torch.testing.assert_close(encoded, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(process.ddim_sample_loop(lambda x, t: constant, encoded), constant)


def test_reverse_sample_takes_one_step_up() -> None:
    process, t = diffusion(), torch.full((3,), 10)
    up = process.ddim_reverse_sample(lambda x, t: NOISE, process.q_sample(X_START, t, NOISE), t)
    torch.testing.assert_close(up, process.q_sample(X_START, t + 1, NOISE))
    looped = process.ddim_reverse_sample_loop(lambda x, t: 0 * x, X_START)
    torch.testing.assert_close(looped, 0 * X_START, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- losses


@pytest.mark.parametrize(
    ("mean_type", "var_type", "loss_type"), list(itertools.product(ModelMeanType, ModelVarType, LossType))
)
def test_every_loss_has_its_terms_and_a_finite_gradient(
    mean_type: ModelMeanType, var_type: ModelVarType, loss_type: LossType
) -> None:
    process = diffusion(30, model_mean_type=mean_type, model_var_type=var_type, loss_type=loss_type)
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    learned = var_type is ModelVarType.LEARNED_RANGE

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([weight * x, 0.1 * weight * x], 1) if learned else weight * x

    terms = process.training_losses(model, normal(30, 1, 4, 4).clamp(-1, 1), torch.arange(30))
    parts = set() if loss_type is LossType.RESCALED_KL else {"mse", *(["vb"] if learned else [])}
    assert set(terms) == {"loss"} | parts
    assert all(value.shape == (30,) and value.isfinite().all() for value in terms.values())
    terms["loss"].mean().backward()
    assert weight.grad is not None and weight.grad.isfinite() and weight.grad != 0


@pytest.mark.parametrize("mean_type", ModelMeanType)
def test_squared_error_is_that_of_the_predicted_quantity(mean_type: ModelMeanType) -> None:
    process = diffusion(model_mean_type=mean_type)
    target = as_output(mean_type, X_START, NOISE, *levels(process, STEPS))
    terms = process.training_losses(lambda x, t: target + 0.5, X_START, STEPS, noise=NOISE)
    torch.testing.assert_close(terms["mse"], torch.full((3,), 0.25).double())
    assert torch.equal(terms["loss"], terms["mse"])


def test_bound_is_zero_for_the_true_posterior_and_a_likelihood_at_the_first_step() -> None:
    process = diffusion(model_mean_type=ModelMeanType.START_X, model_var_type=ModelVarType.FIXED_SMALL)
    x_start, t = normal(50, 1, 3, 3).clamp(-1, 1), torch.arange(50)
    x_t = process.q_sample(x_start, t, normal(50, 1, 3, 3, seed=1))
    bound, worse = (process.vb_terms_bpd(lambda x, t, s=s: s * x_start, x_start, x_t, t) for s in (1, -1))
    torch.testing.assert_close(bound[1:], torch.zeros(49).double(), rtol=0, atol=1e-10)
    assert bound[0] > 0 and (worse[1:] > 0).all() and worse.isfinite().all()


def test_rescaled_losses_are_multiples_of_the_plain_ones() -> None:
    process = diffusion(model_var_type=ModelVarType.LEARNED_RANGE)
    x_start, model = X_START.clamp(-1, 1), lambda x, t: torch.cat([0.9 * x, 0.1 * x], 1)
    bound = process.vb_terms_bpd(model, x_start, process.q_sample(x_start, STEPS, NOISE), STEPS, clip_denoised=False)
    processes = [diffusion(model_var_type=ModelVarType.LEARNED_RANGE, loss_type=kind) for kind in LossType]
    mse, rescaled_mse, rescaled_kl = (p.training_losses(model, x_start, STEPS, noise=NOISE) for p in processes)
    torch.testing.assert_close(rescaled_kl["loss"], 50 * bound)
    torch.testing.assert_close(rescaled_mse["vb"], mse["vb"] * 50 / 1000)


def test_the_bound_trains_the_variance_only() -> None:
    process = diffusion(model_var_type=ModelVarType.LEARNED_RANGE)
    mean, variance = (torch.zeros_like(X_START, requires_grad=True) for _ in range(2))
    process.training_losses(lambda x, t: torch.cat([mean, variance], 1), X_START, STEPS)["vb"].sum().backward()
    assert mean.grad is None or not mean.grad.any()
    assert variance.grad is not None and variance.grad.any()


@pytest.mark.parametrize("mean_type", ModelMeanType)
def test_min_snr_weights_the_error_of_the_image_by_snr_up_to_gamma(mean_type: ModelMeanType) -> None:
    """Whatever is predicted: the same error of x_0 costs min(SNR, gamma) times its square."""
    process, plain = (diffusion(model_mean_type=mean_type, min_snr_gamma=gamma) for gamma in (5.0, 0.0))
    t, x_start, noise = torch.arange(50), normal(50, 1, 3, 3), normal(50, 1, 3, 3, seed=1)
    wrong = x_start + 0.1
    wrong_eps = process.predict_eps_from_xstart(process.q_sample(x_start, t, noise), t, wrong)
    output = as_output(mean_type, wrong, wrong_eps, *levels(process, t))
    terms, unweighted = (p.training_losses(lambda x, t: output, x_start, t, noise=noise) for p in (process, plain))
    snr = torch.from_numpy(process.alphas_cumprod / (1 - process.alphas_cumprod))
    assert (snr > 5).any() and (snr < 5).any()
    torch.testing.assert_close(terms["loss"] / terms["loss"][0], snr.clamp(max=5.0) / 5.0)
    assert torch.equal(terms["mse"], unweighted["mse"]) and torch.equal(unweighted["loss"], unweighted["mse"])
    assert process.loss_weights.mean() == pytest.approx(1.0), "other terms of the loss keep their weight"


# ---------------------------------------------------------------------- zero terminal SNR


@pytest.mark.parametrize("mean_type", [ModelMeanType.START_X, ModelMeanType.VELOCITY])
def test_a_last_step_of_pure_noise_has_finite_predictions_and_losses(mean_type: ModelMeanType) -> None:
    betas = enforce_zero_terminal_snr(get_named_beta_schedule("linear", 50))
    process = GaussianDiffusion(betas=betas, model_mean_type=mean_type, min_snr_gamma=5.0)
    x_start, noise, t = normal(50, 1, 3, 3), normal(50, 1, 3, 3, seed=1), torch.arange(50)
    x_t = process.q_sample(x_start, t, noise)
    assert torch.equal(x_t[-1], noise[-1])
    output = as_output(mean_type, x_start, noise, *levels(process, t))
    step = process.p_mean_variance(lambda x, t: output, x_t, t, clip_denoised=False)
    torch.testing.assert_close(step.pred_xstart, x_start)
    torch.testing.assert_close(step.eps, noise)
    assert step.mean.isfinite().all() and step.variance.isfinite().all()
    assert process.training_losses(lambda x, t: 0.9 * output, x_start, t, noise=noise)["loss"].isfinite().all()
    assert (process.loss_weights > 0).all(), "sampling starts at the last step, so it is trained"


def test_from_pure_noise_a_network_that_knows_the_image_decodes_it() -> None:
    process = SpacedDiffusion(
        space_timesteps(1000, [50]), betas=enforce_zero_terminal_snr(BETAS), model_mean_type=ModelMeanType.START_X
    )
    solver, model = OdeSolver(process, steps=10), lambda x, t: X_START
    torch.testing.assert_close(process.ddim_sample_loop(model, NOISE), X_START)
    torch.testing.assert_close(solver.decode(model, SolverState(NOISE)), X_START)
    for x_T in (process.ddim_encode(model, X_START), solver.encode(model, X_START).x_T):
        assert x_T.isfinite().all()


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(({"betas": np.array(betas)}, r"betas: expected a non-empty list of numbers in \(0, 1\]")
          for betas in ([], [0.0, 0.1], [0.1, 1.5], [[0.1]], [float("nan")])),
        ({"betas": enforce_zero_terminal_snr(BETAS)}, "zero_terminal_snr: .* add --predict_v"),
        ({"min_snr_gamma": -1.0}, "min_snr_gamma: expected 0 or more, and 0 with use_kl, got -1.0"),
        ({"min_snr_gamma": 5.0, "loss_type": LossType.RESCALED_KL}, "min_snr_gamma: .* got 5.0"),
    ],
)  # fmt: skip
def test_processes_that_are_not_defined_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GaussianDiffusion(**({"betas": BETAS} | arguments))


@pytest.mark.parametrize("use", ["p_mean_variance", "training_losses"])
def test_an_output_without_variance_is_refused_where_it_is_learned(use: str) -> None:
    process = diffusion(model_var_type=ModelVarType.LEARNED_RANGE)
    with pytest.raises(InputError, match="model output: expected 2 channels with a learned variance, got 1"):
        getattr(process, use)(lambda x, t: x, X_START, STEPS)
