"""The diffusion process against plain numpy, Bayes' rule, and Gaussian data, whose best eps has a closed form."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
    betas_for_alpha_bar,
    enforce_zero_terminal_snr,
    extract,
    get_named_beta_schedule,
)
from causaldiffae.nn import ModelFn
from causaldiffae.respace import SpacedDiffusion, space_timesteps
from causaldiffae.solvers import OdeSolver, SolverState

BETAS = get_named_beta_schedule("linear", 1000)
MEAN, STD = 0.3, 0.5


def diffusion(steps: int = 50, **kwargs: object) -> GaussianDiffusion:
    return GaussianDiffusion(betas=get_named_beta_schedule("linear", steps), **kwargs)  # type: ignore[arg-type]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_eps(x_t: Tensor, t: Tensor) -> Tensor:
    """E[eps | x_t] for x_0 ~ N(MEAN, STD^2); t are indices into the 1000 steps of BETAS."""
    alpha_bar = torch.as_tensor(np.cumprod(1 - BETAS))[t].reshape(-1, 1, 1, 1)
    return (1 - alpha_bar).sqrt() * (x_t - alpha_bar.sqrt() * MEAN) / (alpha_bar * STD**2 + 1 - alpha_bar)


def exact_flow(x: Tensor, alpha_bar_from: float, alpha_bar_to: float) -> Tensor:
    """The probability-flow ODE's solution for the same data: the standardised variable stays what it is."""
    before = (alpha_bar_from * STD**2 + 1 - alpha_bar_from) ** 0.5
    after = (alpha_bar_to * STD**2 + 1 - alpha_bar_to) ** 0.5
    return alpha_bar_to**0.5 * MEAN + after * (x - alpha_bar_from**0.5 * MEAN) / before


def spaced(count: int) -> SpacedDiffusion:
    return SpacedDiffusion(space_timesteps(1000, [count]), betas=BETAS)


# ---------------------------------------------------------------------- schedules and tables


def test_linear_schedule() -> None:
    np.testing.assert_allclose(BETAS[[0, 1, -1]], [1e-4, 1e-4 + 0.0199 / 999, 0.02], rtol=1e-13)
    np.testing.assert_allclose(get_named_beta_schedule("linear", 250)[[0, -1]], [4e-4, 0.08], rtol=1e-13)
    assert BETAS.dtype == np.float64


def test_cosine_schedule() -> None:
    betas = get_named_beta_schedule("cosine", 40)
    f = np.cos((np.arange(41) / 40 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(np.cumprod(1 - betas)[:-1], f[1:-1] / f[0], rtol=1e-10)
    assert betas[-1] == 0.999
    assert betas_for_alpha_bar(4, lambda t: 1 - t, max_beta=0.4).max() == 0.4


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_tables(schedule: str) -> None:
    betas = get_named_beta_schedule(schedule, 30)
    process = GaussianDiffusion(betas=betas)
    alpha_bar = [1.0]
    for beta in betas:
        alpha_bar.append(alpha_bar[-1] * (1 - beta))
    now, before = np.array(alpha_bar[1:]), np.array(alpha_bar[:-1])
    after = np.array([*alpha_bar[2:], 0.0])
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
    assert process.posterior_log_variance_clipped[0] == process.posterior_log_variance_clipped[1]
    np.testing.assert_allclose(
        process.posterior_log_variance_clipped[1:], np.log(expected["posterior_variance"][1:]), rtol=1e-9
    )


@pytest.mark.parametrize("t", [1, 7, 29])
def test_posterior_is_bayes_rule(t: int) -> None:
    """q(x_{t-1} | x_t, x_0) from the two densities, normalised by summing over a fine grid."""
    process, x_start, x_t = diffusion(30), -0.4, 0.9
    beta, before = process.betas[t], np.prod(1 - process.betas[:t])
    moments = process.q_posterior_mean_variance(
        *(torch.full((1, 1), v, dtype=torch.float64) for v in (x_start, x_t)), torch.tensor([t])
    )
    mean, variance = float(moments.mean), float(moments.variance)
    grid = np.linspace(mean - 12 * variance**0.5, mean + 12 * variance**0.5, 4001)
    log_density = -((x_t - (1 - beta) ** 0.5 * grid) ** 2) / (2 * beta) - (grid - before**0.5 * x_start) ** 2 / (
        2 * (1 - before)
    )
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    assert abs((density * grid).sum() - mean) < 1e-10
    assert abs((density * (grid - mean) ** 2).sum() - variance) < 1e-10
    assert abs(float(moments.log_variance) - math.log(variance)) < 1e-10


def test_first_step_posterior_is_the_image() -> None:
    x_start = images(2, 1, 3, 3)
    moments = diffusion().q_posterior_mean_variance(
        x_start, images(2, 1, 3, 3, seed=1), torch.zeros(2, dtype=torch.long)
    )
    torch.testing.assert_close(moments.mean, x_start, rtol=0, atol=1e-12)
    assert not moments.variance.any()


# ---------------------------------------------------------------------- the forward process


def test_q_sample_is_its_formula_per_image() -> None:
    process, x_start, noise, t = diffusion(), images(3, 2, 4, 4), images(3, 2, 4, 4, seed=1), torch.tensor([0, 20, 49])
    for i in range(3):
        alpha_bar = np.prod(1 - process.betas[: int(t[i]) + 1])
        expected = alpha_bar**0.5 * x_start[i] + (1 - alpha_bar) ** 0.5 * noise[i]
        torch.testing.assert_close(process.q_sample(x_start, t, noise)[i], expected, rtol=1e-12, atol=1e-12)


def test_q_sample_is_the_chain_of_single_steps() -> None:
    """Mean and variance of x_t, pushed through x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) noise one step at a time."""
    process, mean, variance = diffusion(30), 0.8, 0.0
    x_start, zero = torch.full((1, 1), 0.8, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for step, beta in enumerate(process.betas):
        mean, variance, t = (1 - beta) ** 0.5 * mean, (1 - beta) * variance + beta, torch.tensor([step])
        assert abs(float(process.q_sample(x_start, t, zero)) - mean) < 1e-12
        assert abs(float(process.q_sample(zero, t, zero + 1)) ** 2 - variance) < 1e-12
    noise = process.q_sample(torch.zeros(1, 1, 200, 200), torch.tensor([29]))
    assert abs(float(noise.var()) / variance - 1) < 0.03, "noise is drawn if not given"


def test_a_device_gets_each_table_once(monkeypatch: pytest.MonkeyPatch) -> None:
    process, x, t = diffusion(), images(2, 1, 3, 3), torch.tensor([3, 4])
    process.q_sample(x, t, x)
    copied = torch.as_tensor
    monkeypatch.setattr(
        torch, "as_tensor", lambda data, **given: pytest.fail() if type(data) is np.ndarray else copied(data, **given)
    )
    process.q_sample(x, t, x)


def test_tables_take_the_images_dtype() -> None:
    table = np.array([1 / 3, 2 / 3])
    for dtype in (torch.float16, torch.float32, torch.float64):
        values = extract(table, torch.tensor([1, 0]), torch.zeros(2, 1, 2, 2, dtype=dtype))
        assert values.dtype == dtype
        assert values.shape == (2, 1, 1, 1)
        torch.testing.assert_close(values.flatten(), torch.tensor([2 / 3, 1 / 3]).to(dtype))


# ---------------------------------------------------------------------- predictions


def test_predictions_invert_each_other() -> None:
    process, x_start, noise, t = (
        diffusion(),
        images(4, 1, 3, 3),
        images(4, 1, 3, 3, seed=1),
        torch.tensor([0, 1, 30, 49]),
    )
    x_t = process.q_sample(x_start, t, noise)
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(process.predict_xstart_from_eps(x_t, t, noise), x_start, **close)
    torch.testing.assert_close(process.predict_eps_from_xstart(x_t, t, x_start), noise, **close)


@pytest.mark.parametrize("mean_type", ModelMeanType)
def test_every_prediction_gives_the_same_step(mean_type: ModelMeanType) -> None:
    process = diffusion(model_mean_type=mean_type)
    x_start, noise, t = images(3, 1, 3, 3).clamp(-1, 1), images(3, 1, 3, 3, seed=1), torch.tensor([0, 10, 49])
    x_t = process.q_sample(x_start, t, noise)
    posterior = process.q_posterior_mean_variance(x_start, x_t, t)
    output = {
        ModelMeanType.EPSILON: noise,
        ModelMeanType.START_X: x_start,
        ModelMeanType.VELOCITY: process.velocity(x_start, t, noise),
    }[mean_type]
    step = process.p_mean_variance(lambda x, t: output, x_t, t, clip_denoised=False)
    for name, expected in (("pred_xstart", x_start), ("eps", noise), ("mean", posterior.mean)):
        torch.testing.assert_close(getattr(step, name), expected, rtol=1e-8, atol=1e-8)


def test_clipping_clips_the_image_and_keeps_eps_in_agreement() -> None:
    process, t = diffusion(), torch.tensor([20])
    x = 5 * images(1, 1, 4, 4)
    step = process.p_mean_variance(lambda x, t: torch.zeros_like(x), x, t)
    assert step.pred_xstart.abs().max() == 1
    torch.testing.assert_close(process.q_sample(step.pred_xstart, t, step.eps), x)
    assert (
        process.p_mean_variance(lambda x, t: torch.zeros_like(x), x, t, clip_denoised=False).pred_xstart.abs().max() > 1
    )


def test_fixed_variances() -> None:
    x, t = images(50, 1, 1, 1), torch.arange(50)
    small, large = (
        diffusion(model_var_type=kind).p_mean_variance(lambda x, t: x, x, t).variance.flatten().numpy()
        for kind in (ModelVarType.FIXED_SMALL, ModelVarType.FIXED_LARGE)
    )
    process = diffusion()
    np.testing.assert_allclose(small[1:], process.posterior_variance[1:], rtol=1e-10)
    np.testing.assert_allclose(large[1:], process.betas[1:], rtol=1e-10)
    assert small[0] == large[0] > 0


def test_learned_range_stays_between_its_bounds() -> None:
    process, t = diffusion(model_var_type=ModelVarType.LEARNED_RANGE), torch.arange(50)
    x = images(50, 1, 3, 3)
    low, high = process.posterior_log_variance_clipped, np.log(process.betas)
    for v, expected in ((-1.0, low), (1.0, high), (0.0, (low + high) / 2)):
        step = process.p_mean_variance(lambda x, t, v=v: torch.cat([x, torch.full_like(x, v)], 1), x, t)
        np.testing.assert_allclose(step.log_variance[:, 0, 0, 0].numpy(), expected, rtol=1e-10)
    step = process.p_mean_variance(lambda x, t: torch.cat([x, torch.tanh(x)], 1), x, t)
    inside = step.log_variance.flatten(1).numpy()
    assert (inside >= np.minimum(low, high)[:, None] - 1e-12).all()
    assert (inside <= np.maximum(low, high)[:, None] + 1e-12).all()


def test_the_model_sees_rescaled_steps() -> None:
    seen = []
    process = diffusion(rescale_timesteps=True)
    process.p_mean_variance(lambda x, t: (seen.append(t.tolist()), x)[1], images(2, 1, 2, 2), torch.tensor([1, 49]))
    assert seen == [[20.0, 980.0]] and process.max_timestep == 1000.0


def test_velocity_is_the_derivative_along_the_angle() -> None:
    """With x = cos(a) x_0 + sin(a) eps, v = dx / da."""
    process, t = diffusion(), torch.tensor([12])
    x_start, noise = images(1, 1, 3, 3), images(1, 1, 3, 3, seed=1)
    angle, h = math.acos(process.sqrt_alphas_cumprod[12]), 1e-5
    ahead, behind = (math.cos(a) * x_start + math.sin(a) * noise for a in (angle + h, angle - h))
    torch.testing.assert_close(process.velocity(x_start, t, noise), (ahead - behind) / (2 * h), rtol=1e-8, atol=1e-8)


# ---------------------------------------------------------------------- sampling


def test_p_sample_adds_noise_except_in_the_last_step() -> None:
    process, x, t = diffusion(), images(2, 1, 3, 3), torch.tensor([0, 30])
    noise = images(2, 1, 3, 3, seed=1)
    step = process.p_mean_variance(gaussian_eps, x, t)
    drawn = process.p_sample(gaussian_eps, x, t, noise=noise)
    assert torch.equal(drawn[0], step.mean[0])
    torch.testing.assert_close(drawn[1], step.mean[1] + step.variance[1].sqrt() * noise[1])


def test_ancestral_sampling_of_gaussian_data() -> None:
    torch.manual_seed(0)
    process = spaced(250)
    x = process.p_sample_loop(gaussian_eps, torch.randn(1, 1, 80, 80, dtype=torch.float64), clip_denoised=False)
    assert abs(float(x.mean()) - MEAN) < 0.03
    assert abs(float(x.std()) - STD) < 0.03


def test_ddim_with_eta_one_of_gaussian_data() -> None:
    torch.manual_seed(0)
    x = spaced(250).ddim_sample_loop(gaussian_eps, torch.randn(1, 1, 80, 80, dtype=torch.float64), eta=1.0)
    assert abs(float(x.mean()) - MEAN) < 0.03
    assert abs(float(x.std()) - STD) < 0.03


def test_ddim_variance_of_eta() -> None:
    """With eta = 1 the step's noise has the variance of q(x_{t-1} | x_t, x_0) (Song et al., 2021, section 4.1)."""
    process, x, t, zero = diffusion(), images(1, 1, 3, 3), torch.tensor([17]), torch.zeros(1, 1, 3, 3).double()
    args = (lambda x, t: 0.5 * x, x, t)
    moved = process.ddim_sample(*args, eta=1.0, noise=zero + 1) - process.ddim_sample(*args, eta=1.0, noise=zero)
    torch.testing.assert_close(moved, zero + process.posterior_variance[17] ** 0.5)
    assert torch.equal(process.ddim_sample(*args), process.ddim_sample(*args, noise=zero + 9))


def says(process: GaussianDiffusion, constant: Tensor) -> ModelFn:
    """A network for the 1000 steps of BETAS that says `constant` is the noise, in the process's own way of speaking."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        i = torch.as_tensor(np.searchsorted(process.timestep_map, t.numpy()))
        x_start = process.predict_xstart_from_eps(x, i, constant)
        return {
            ModelMeanType.EPSILON: lambda: constant,
            ModelMeanType.START_X: lambda: x_start,
            ModelMeanType.VELOCITY: lambda: process.velocity(x_start, i, constant),
        }[process.model_mean_type]()

    return model


@pytest.mark.parametrize("mean_type", ModelMeanType)
def test_round_trip_is_exact_for_constant_eps(mean_type: ModelMeanType) -> None:
    constant, x_start = images(2, 3, 5, 5, seed=3), images(2, 3, 5, 5)
    for steps in (range(0, 1000, 50), range(1000)):
        process = SpacedDiffusion(steps, betas=BETAS, model_mean_type=mean_type)
        model = says(process, constant)
        x_T = process.ddim_encode(model, x_start)
        torch.testing.assert_close(process.ddim_sample_loop(model, x_T), x_start, rtol=0, atol=1e-9)
        alpha_bar = process.alphas_cumprod[-1]
        expected = alpha_bar**0.5 * x_start + (1 - alpha_bar) ** 0.5 * constant
        torch.testing.assert_close(x_T, expected, rtol=0, atol=1e-9)


def test_partial_round_trip() -> None:
    constant, x_start, process = images(1, 1, 3, 3, seed=3), images(1, 1, 3, 3), spaced(20)
    x = process.ddim_encode(lambda x, t: constant, x_start, stop=7)
    alpha_bar = process.alphas_cumprod[6]
    torch.testing.assert_close(x, alpha_bar**0.5 * x_start + (1 - alpha_bar) ** 0.5 * constant)
    torch.testing.assert_close(process.ddim_sample_loop(lambda x, t: constant, x, start=7), x_start)


def test_encoding_asks_the_network_at_the_images_noise() -> None:
    encoding: list[int] = []
    decoding: list[int] = []
    process, x = spaced(5), images(1, 1, 2, 2)
    process.ddim_encode(lambda x, t: (encoding.append(int(t)), x)[1], x)
    process.ddim_sample_loop(lambda x, t: (decoding.append(int(t)), x)[1], x)
    assert decoding == [999, 749, 500, 250, 0]
    assert encoding == [0, 0, 250, 500, 749], "each step is asked at the noise that its image has"


def test_encoding_undoes_decoding_where_the_network_predicts_the_image() -> None:
    """A constant x_0: decoding ends there, and encoding follows the straight path back from any later point."""
    constant = images(1, 1, 3, 3, seed=3)
    process = SpacedDiffusion(range(0, 1000, 50), betas=BETAS, model_mean_type=ModelMeanType.START_X)
    x_start = images(1, 1, 3, 3)
    encoded = process.ddim_encode(lambda x, t: constant, x_start)
    zero = torch.tensor([0])
    first = process.q_sample(x_start, zero, process.predict_eps_from_xstart(x_start, zero, constant))
    eps = (first - process.alphas_cumprod[0] ** 0.5 * constant) / (1 - process.alphas_cumprod[0]) ** 0.5
    last = process.alphas_cumprod[-1]
    torch.testing.assert_close(encoded, last**0.5 * constant + (1 - last) ** 0.5 * eps, rtol=0, atol=1e-9)
    torch.testing.assert_close(process.ddim_sample_loop(lambda x, t: constant, encoded), constant)


def _orders(errors: list[float]) -> list[float]:
    return [math.log2(before / after) for before, after in itertools.pairwise(errors)]


def test_decoding_has_order_one() -> None:
    x_T, errors = images(1, 1, 8, 8), []
    for count in (25, 50, 100):
        process = spaced(count)
        true = exact_flow(x_T, process.alphas_cumprod[-1], 1.0)
        errors.append(float((process.ddim_sample_loop(gaussian_eps, x_T) - true).abs().max()))
    assert all(0.8 < order < 1.3 for order in _orders(errors)), errors
    assert errors[-1] < 0.05


def test_encoding_has_order_one() -> None:
    x_start, encoded, returned = MEAN + STD * images(1, 1, 8, 8), [], []
    for count in (50, 100, 200):
        process = spaced(count)
        x_T = process.ddim_encode(gaussian_eps, x_start)
        encoded.append(float((x_T - exact_flow(x_start, 1.0, process.alphas_cumprod[-1])).abs().max()))
        returned.append(float((process.ddim_sample_loop(gaussian_eps, x_T) - x_start).abs().max()))
    assert all(0.8 < order < 1.3 for order in _orders(encoded)), encoded
    assert all(0.8 < order < 1.6 for order in _orders(returned)), returned


def test_decoded_gaussian_data_have_the_right_mean_and_variance() -> None:
    """Decoding is affine here, so two points give the whole distribution."""
    process = spaced(500)
    ends = process.ddim_sample_loop(gaussian_eps, torch.tensor([0.0, 1.0]).double().reshape(2, 1, 1, 1)).flatten()
    slope, alpha_bar = float(ends[1] - ends[0]), process.alphas_cumprod[-1]
    assert abs(float(ends[0]) + slope * alpha_bar**0.5 * MEAN - MEAN) < 0.01
    assert abs(slope * (alpha_bar * STD**2 + 1 - alpha_bar) ** 0.5 - STD) < 0.01


def test_reverse_sample_goes_one_step_up() -> None:
    process, x, constant = diffusion(), images(1, 1, 3, 3), images(1, 1, 3, 3, seed=1)
    t = torch.tensor([10])
    x_t = process.q_sample(x, t, constant)
    up = process.ddim_reverse_sample(lambda x, t: constant, x_t, t)
    torch.testing.assert_close(up, process.q_sample(x, t + 1, constant))
    looped = process.ddim_reverse_sample_loop(lambda x, t: torch.zeros_like(x), x)
    torch.testing.assert_close(looped, torch.zeros_like(x), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- losses


@pytest.mark.parametrize(
    ("mean_type", "var_type", "loss_type"), list(itertools.product(ModelMeanType, ModelVarType, LossType))
)
def test_every_loss_is_finite(mean_type: ModelMeanType, var_type: ModelVarType, loss_type: LossType) -> None:
    process = diffusion(30, model_mean_type=mean_type, model_var_type=var_type, loss_type=loss_type)
    x_start = images(30, 1, 4, 4).clamp(-1, 1)
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    learned, bound = var_type is ModelVarType.LEARNED_RANGE, loss_type is LossType.RESCALED_KL

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([weight * x, 0.1 * weight * x], 1) if learned else weight * x

    terms = process.training_losses(model, x_start, torch.arange(30))
    keys = {"loss"} if bound else {"loss", "mse", *(["vb"] if learned else [])}
    assert set(terms) == keys
    assert all(value.shape == (30,) and value.isfinite().all() for value in terms.values())
    terms["loss"].mean().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite()
    assert weight.grad != 0


@pytest.mark.parametrize("mean_type", ModelMeanType)
def test_the_true_target_has_no_loss(mean_type: ModelMeanType) -> None:
    process, t = diffusion(model_mean_type=mean_type), torch.tensor([0, 10, 49])
    x_start, noise = images(3, 1, 3, 3), images(3, 1, 3, 3, seed=1)
    x_t = process.q_sample(x_start, t, noise)
    target = {
        ModelMeanType.EPSILON: noise,
        ModelMeanType.START_X: x_start,
        ModelMeanType.VELOCITY: process.velocity(x_start, t, noise),
    }[mean_type]
    terms = process.training_losses(lambda x, t: target + 0.5, x_start, t, noise=noise)
    torch.testing.assert_close(terms["mse"], torch.full((3,), 0.25).double())
    assert torch.equal(terms["loss"], terms["mse"])


def test_bound_is_zero_for_the_true_posterior_and_a_likelihood_at_the_end() -> None:
    process = diffusion(model_mean_type=ModelMeanType.START_X, model_var_type=ModelVarType.FIXED_SMALL)
    x_start, t = images(50, 1, 3, 3).clamp(-1, 1), torch.arange(50)
    x_t = process.q_sample(x_start, t, images(50, 1, 3, 3, seed=1))
    bound = process.vb_terms_bpd(lambda x, t: x_start, x_start, x_t, t)
    torch.testing.assert_close(bound[1:], torch.zeros(49).double(), rtol=0, atol=1e-10)
    assert bound[0] > 0
    worse = process.vb_terms_bpd(lambda x, t: -x_start, x_start, x_t, t)
    assert (worse[1:] > 0).all()
    assert worse.isfinite().all()


@pytest.mark.parametrize("mean_type", [ModelMeanType.EPSILON, ModelMeanType.START_X, ModelMeanType.VELOCITY])
def test_min_snr_counts_an_error_of_the_image_up_to_gamma(mean_type: ModelMeanType) -> None:
    """Whatever is predicted: the same error of x_0 costs min(SNR, gamma) times its square."""
    process, plain = (diffusion(model_mean_type=mean_type, min_snr_gamma=gamma) for gamma in (5.0, 0.0))
    t, x_start, noise = torch.arange(50), images(50, 1, 3, 3), images(50, 1, 3, 3, seed=1)
    wrong = x_start + 0.1
    x_t = process.q_sample(x_start, t, noise)
    output = {
        ModelMeanType.EPSILON: process.predict_eps_from_xstart(x_t, t, wrong),
        ModelMeanType.START_X: wrong,
        ModelMeanType.VELOCITY: process.velocity(wrong, t, process.predict_eps_from_xstart(x_t, t, wrong)),
    }[mean_type]
    terms = process.training_losses(lambda x, t: output, x_start, t, noise=noise)
    snr = torch.from_numpy(process.alphas_cumprod / (1 - process.alphas_cumprod))
    assert (snr > 5).any() and (snr < 5).any()
    torch.testing.assert_close(terms["loss"] / terms["loss"][0], snr.clamp(max=5.0) / 5.0)
    unweighted = plain.training_losses(lambda x, t: output, x_start, t, noise=noise)
    assert torch.equal(terms["mse"], unweighted["mse"]) and torch.equal(unweighted["loss"], unweighted["mse"])
    assert process.loss_weights.mean() == pytest.approx(1.0), "the loss's other terms keep their weight"


# ---------------------------------------------------------------------- a last step of pure noise


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_zero_terminal_snr_keeps_the_start_and_ends_in_noise(schedule: str) -> None:
    betas = get_named_beta_schedule(schedule, 200)
    before, after = np.sqrt(np.cumprod(1 - betas)), np.sqrt(np.cumprod(1 - enforce_zero_terminal_snr(betas)))
    assert after[-1] == 0
    np.testing.assert_allclose(after[0], before[0], rtol=1e-12)
    np.testing.assert_allclose(np.diff(after) / np.diff(before), after[0] / (before[0] - before[-1]), rtol=1e-6)
    left = GaussianDiffusion(
        betas=enforce_zero_terminal_snr(betas), model_mean_type=ModelMeanType.START_X
    ).base_alphas_cumprod
    assert 0 < left[-1] < 1e-3 and (np.diff(left) < 0).all(), "solvers find a finite log-SNR everywhere"


@pytest.mark.parametrize("mean_type", [ModelMeanType.START_X, ModelMeanType.VELOCITY])
def test_zero_terminal_snr_has_every_table_it_needs(mean_type: ModelMeanType) -> None:
    betas = enforce_zero_terminal_snr(get_named_beta_schedule("linear", 50))
    process = GaussianDiffusion(betas=betas, model_mean_type=mean_type, min_snr_gamma=5.0)
    x_start, noise, t = images(50, 1, 3, 3), images(50, 1, 3, 3, seed=1), torch.arange(50)
    x_t = process.q_sample(x_start, t, noise)
    assert torch.equal(x_t[-1], noise[-1])
    output = process.velocity(x_start, t, noise) if mean_type is ModelMeanType.VELOCITY else x_start
    step = process.p_mean_variance(lambda x, t: output, x_t, t, clip_denoised=False)
    torch.testing.assert_close(step.pred_xstart, x_start)
    torch.testing.assert_close(step.eps, noise)
    assert step.mean.isfinite().all() and step.variance.isfinite().all()
    assert process.training_losses(lambda x, t: 0.9 * output, x_start, t, noise=noise)["loss"].isfinite().all()
    assert (process.loss_weights > 0).all(), "sampling starts at the last step, so that it is trained too"


def test_zero_terminal_round_trip() -> None:
    """A network that knows the one image there is: whatever the noise, x_0 comes back and x_T is the noise."""
    betas = enforce_zero_terminal_snr(BETAS)
    process = SpacedDiffusion(space_timesteps(1000, [50]), betas=betas, model_mean_type=ModelMeanType.START_X)
    constant, x_start = images(2, 1, 3, 3, seed=3), images(2, 1, 3, 3)
    x_T = process.ddim_encode(lambda x, t: x_start, x_start + 0.0 * constant)
    assert x_T.isfinite().all()
    torch.testing.assert_close(process.ddim_sample_loop(lambda x, t: x_start, constant), x_start)
    solver = OdeSolver(process, steps=10)
    torch.testing.assert_close(solver.decode(lambda x, t: x_start, SolverState(constant)), x_start)
    assert solver.encode(lambda x, t: x_start, x_start).x_T.isfinite().all()


def test_rescaled_losses() -> None:
    x_start, t, noise = images(4, 1, 3, 3).clamp(-1, 1), torch.tensor([0, 3, 30, 49]), images(4, 1, 3, 3, seed=1)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([0.9 * x, 0.1 * x], 1)

    def terms(loss_type: LossType) -> dict[str, Tensor]:
        process = diffusion(model_var_type=ModelVarType.LEARNED_RANGE, loss_type=loss_type)
        return process.training_losses(model, x_start, t, noise=noise)

    process = diffusion(model_var_type=ModelVarType.LEARNED_RANGE)
    bound = process.vb_terms_bpd(model, x_start, process.q_sample(x_start, t, noise), t, clip_denoised=False)
    torch.testing.assert_close(terms(LossType.RESCALED_KL)["loss"], 50 * bound)
    torch.testing.assert_close(terms(LossType.RESCALED_MSE)["vb"], terms(LossType.MSE)["vb"] * 50 / 1000)


def test_the_bound_does_not_train_the_mean() -> None:
    process = diffusion(model_var_type=ModelVarType.LEARNED_RANGE)
    mean, variance = (torch.zeros(2, 1, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    terms = process.training_losses(
        lambda x, t: torch.cat([mean, variance], 1), images(2, 1, 3, 3), torch.tensor([5, 9])
    )
    terms["vb"].sum().backward()
    assert mean.grad is None or not mean.grad.any()
    assert variance.grad is not None
    assert variance.grad.any()


# ---------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: get_named_beta_schedule("sine", 10), "noise_schedule: expected one of linear, cosine, got 'sine'"),
        (lambda: get_named_beta_schedule("linear", 0), "diffusion_steps: expected at least 1, got 0"),
        (lambda: get_named_beta_schedule("linear", 20), "diffusion_steps: expected more than 20 for the linear"),
        *((lambda betas=betas: GaussianDiffusion(betas=np.array(betas)), r"betas: expected .* numbers in \(0, 1\]")
          for betas in ([], [0.0, 0.1], [0.1, 1.5], [[0.1]], [float("nan")])),
        (lambda: GaussianDiffusion(betas=enforce_zero_terminal_snr(BETAS)), "zero_terminal_snr: .* add --predict_v"),
        (lambda: enforce_zero_terminal_snr(np.array([0.5])), "zero_terminal_snr: expected at least 2 diffusion_steps"),
        (lambda: diffusion(min_snr_gamma=-1.0), "min_snr_gamma: expected 0 or more, and 0 with use_kl, got -1.0"),
        (lambda: diffusion(min_snr_gamma=5.0, loss_type=LossType.RESCALED_KL), "min_snr_gamma: .* got 5.0"),
    ],
)  # fmt: skip
def test_messages(act: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        act()


def test_a_network_without_a_variance_is_refused_where_one_is_learned() -> None:
    x, t = images(1, 1, 2, 2), torch.tensor([0])
    process = diffusion(model_var_type=ModelVarType.LEARNED_RANGE)
    for use in (process.p_mean_variance, process.training_losses):
        with pytest.raises(InputError, match="model output: expected 2 channels with a learned variance, got 1"):
            use(lambda x, t: x, x, t)
