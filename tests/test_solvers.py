"""The solvers on data whose eps and flow are known: Gaussians in closed form, mixtures by a fine Runge-Kutta method.

The process is the variance-preserving one with a linear rate, alpha-bar(u) = exp(-0.1 u - 9.95 u^2) for u in [0, 1], so
that levels at fractional steps are known without the code under test.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from closed_form import as_output, gaussian_eps, gaussian_flow, orders
from tiny import normal
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion, ModelMeanType, ModelVarType, get_named_beta_schedule
from causaldiffae.nn import ModelFn
from causaldiffae.noise_schedule import MIN_HALF_LOGSNR, betas_for_alpha_bar, enforce_zero_terminal_snr, noise_path
from causaldiffae.respace import SpacedDiffusion, space_timesteps
from causaldiffae.solvers import CLEANEST, ExactDdim, Grid, OdeSolver, Solver, SolverState

pytestmark = pytest.mark.filterwarnings("error")  # no 0 / 0 at the infinite log-SNR of the clean image
T = 1000
LINEAR = get_named_beta_schedule("linear", T)
MEAN, STD = 0.3, 0.5
ORDERED = [(kind, grid) for kind in Solver for grid in Grid if kind is Solver.DDIM or grid is not Grid.UNIFORM]
CENTRES, WIDTH = normal(4, 1, 1, 4, 4, seed=7), 0.3


def alpha_bar_of(u: float) -> float:
    return math.exp(-0.1 * u - 9.95 * u**2)


def level(t: float) -> tuple[float, float]:
    """Signal and noise at a fractional step."""
    alpha_bar = alpha_bar_of((t + 1) / T)
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


def half_logsnr(t: float) -> float:
    signal, noise = level(t)
    return math.log(signal / noise)


def process(**kwargs: Any) -> GaussianDiffusion:
    return GaussianDiffusion(betas=betas_for_alpha_bar(T, alpha_bar_of), **kwargs)


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def gaussian(x: Tensor, t: Tensor) -> Tensor:
    """E[eps | x_t] for x_0 ~ N(MEAN, STD^2)."""
    return gaussian_eps(x, *level(float(t[0])), MEAN, STD)


def mixture_eps(x: Tensor, signal: float, noise: float) -> Tensor:
    """E[eps | x_t] for four Gaussians of width WIDTH around CENTRES, for images (B, 1, 4, 4)."""
    variance = signal**2 * WIDTH**2 + noise**2
    distance = (x[None] - signal * CENTRES).flatten(2).square().sum(2)
    share = torch.softmax(-distance / (2 * variance), dim=0)[..., None, None, None]
    return (share * gaussian_eps(x[None], signal, noise, CENTRES, WIDTH)).sum(0)


def mixture(x: Tensor, t: Tensor) -> Tensor:
    return mixture_eps(x, *level(float(t[0])))


def mixture_images(count: int = 64) -> Tensor:
    return CENTRES[torch.arange(count) % len(CENTRES), 0] + WIDTH * normal(count, 1, 4, 4, seed=3)


def mixture_flow(x: Tensor, t_from: float, t_to: float, steps: int = 400) -> Tensor:
    """Runge-Kutta of order four for d(x / a) / d log s = s eps, with s = sigma / a."""

    def slope(y: Tensor, log_s: float) -> Tensor:
        s = math.exp(log_s)
        signal = 1 / math.hypot(1, s)
        return s * mixture_eps(signal * y, signal, signal * s)

    y = x / level(t_from)[0]
    for here, there in pairwise(np.linspace(-half_logsnr(t_from), -half_logsnr(t_to), steps + 1).tolist()):
        h = there - here
        k1 = slope(y, here)
        k2 = slope(y + h / 2 * k1, here + h / 2)
        k3 = slope(y + h / 2 * k2, here + h / 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, there))
    return y * level(t_to)[0]


def leave_clean(eps: ModelFn, x_start: Tensor, corrections: int = 0) -> Tensor:
    """The first step: x_0 = a x + sigma eps(x, 0), or with eps(x_0, 0) where it was corrected."""
    (signal, noise), x = level(0), x_start
    for _ in range(1 + corrections):
        x = signal * x_start + noise * eps(x, torch.zeros(1))
    return x


def reach_clean(eps: ModelFn, x: Tensor) -> Tensor:
    """The last step: x = (x_0 - sigma eps(x_0, 0)) / a."""
    signal, noise = level(0)
    return (x - noise * eps(x, torch.zeros(1))) / signal


def network_of(solver: OdeSolver, eps: ModelFn) -> ModelFn:
    """The network that predicts `eps`, with the kind of output of the solver's process."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        signal, noise = (float(each[0]) for each in solver.schedule.signal_and_noise(t[:1].numpy()))
        predicted = eps(x, t)
        return as_output(solver.schedule.mean_type, (x - noise * predicted) / signal, predicted, signal, noise)

    return network


# ---------------------------------------------------------------------- paths


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("sections", ["ddim10", "7", "5,3"])
def test_a_spaced_process_has_the_path_of_its_base_process(name: str, sections: str) -> None:
    betas = get_named_beta_schedule(name, 100)
    spaced, whole = SpacedDiffusion(space_timesteps(100, sections), betas=betas), GaussianDiffusion(betas=betas)
    path, expected = OdeSolver(spaced).path(), OdeSolver(whole).path()
    for values in ("t", "signal", "noise"):
        np.testing.assert_array_equal(getattr(path, values), getattr(expected, values))
    assert name == "cosine" or path.t[-1] == 99, "also where the spaced process ends before"


@pytest.mark.parametrize("grid", Grid)
@pytest.mark.parametrize("name", ["linear", "cosine", "zero snr"])
def test_a_path_ends_where_an_image_leaves_no_trace(name: str, grid: Grid) -> None:
    betas = get_named_beta_schedule("cosine", 1000) if name == "cosine" else LINEAR
    betas = enforce_zero_terminal_snr(betas) if name == "zero snr" else betas
    path = OdeSolver(GaussianDiffusion(betas=betas, model_mean_type=ModelMeanType.VELOCITY), grid=grid).path()
    if name == "linear":
        assert path.t[-1] == 999 and path.half_logsnr(path.last) > MIN_HALF_LOGSNR
    else:
        assert 900 < path.t[-1] < 999
        assert path.half_logsnr(path.last) == pytest.approx(MIN_HALF_LOGSNR, abs=1e-6)


@pytest.mark.parametrize("stop", [1.0, 0.35])
@pytest.mark.parametrize(
    ("grid", "measure"),
    [
        (Grid.CENTRED, lambda t: math.asinh(half_logsnr(t) / 3)),
        (Grid.LOGSNR, half_logsnr),
        (Grid.RHO, lambda t: math.exp(-half_logsnr(t) / 7)),
        (Grid.UNIFORM, lambda t: t),
    ],
)
def test_every_grid_is_even_in_its_own_measure(grid: Grid, measure: Callable[[float], float], stop: float) -> None:
    path = noise_path(process().noise_schedule, grid, 12, stop)
    assert len(path.t) == 13 and path.t[[0, 1, -1]].tolist() == [0.0, 0.0, stop * T - 1]
    assert (path.signal[0], path.noise[0]) == (1.0, 0.0) and (np.diff(path.noise) > 0).all()
    np.testing.assert_allclose(path.signal**2 + path.noise**2, 1.0, rtol=1e-12)
    gaps = np.diff([measure(t) for t in path.t[1:]])
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=2e-3)


# ---------------------------------------------------------------------- the steps against their formulas


@pytest.mark.parametrize("mean_type", ModelMeanType)
@pytest.mark.parametrize("steps", [10, 28])
def test_ddim_on_whole_steps_equals_the_ddim_loops(mean_type: ModelMeanType, steps: int) -> None:
    loops = SpacedDiffusion(range(0, T, 999 // (steps - 1)), betas=LINEAR, model_mean_type=mean_type)
    solver = OdeSolver(GaussianDiffusion(betas=LINEAR, model_mean_type=mean_type), "ddim", "uniform", steps)
    x = normal(2, 1, 4, 4)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x + t.double().reshape(-1, 1, 1, 1) / 300)

    torch.testing.assert_close(solver.encode(network, x).x_T, loops.ddim_encode(network, x), rtol=0, atol=1e-9)
    decoded = solver.decode(network, SolverState(x))
    torch.testing.assert_close(decoded, loops.ddim_sample_loop(network, x), rtol=0, atol=1e-9)


def dpmpp2m(x: Tensor, nodes: list[float], first: Tensor | None = None) -> Tensor:
    """DPM-Solver++(2M), algorithm 2 of Lu et al. (2022), through finite levels; `first` replaces the first x_0."""
    predictions: list[Tensor] = []
    for i, (here, there) in enumerate(pairwise(nodes)):
        (a_here, s_here), (a_there, s_there) = level(here), level(there)
        h = half_logsnr(there) - half_logsnr(here)
        prediction = (x - s_here * mixture_eps(x, a_here, s_here)) / a_here
        predictions.append(prediction if i or first is None else first)
        direction = predictions[-1]
        if i:
            r = (half_logsnr(here) - half_logsnr(nodes[i - 1])) / h
            direction = (1 + 1 / (2 * r)) * predictions[-1] - 1 / (2 * r) * predictions[-2]
        x = s_there / s_here * x - a_there * (math.exp(-h) - 1) * direction
    return x


def test_dpmpp2m_equals_its_published_algorithm_in_both_directions() -> None:
    solver, x = OdeSolver(process(), Solver.DPMPP2M, Grid.UNIFORM, 28), mixture_images(4)
    nodes = [37.0 * i for i in range(28)]
    encoded = dpmpp2m(leave_clean(mixture, x, corrections=1), nodes, first=x)
    torch.testing.assert_close(solver.encode(mixture, x).x_T, encoded, rtol=0, atol=1e-9)
    decoded = reach_clean(mixture, dpmpp2m(encoded, nodes[::-1]))
    torch.testing.assert_close(solver.decode(mixture, SolverState(encoded)), decoded, rtol=0, atol=1e-9)


def test_obelm_equals_its_published_recursion() -> None:
    """x_{i-1} from x_{i+1}, x_i and eps(x_i), with h_i = s_i - s_{i-1}; the clean image is x_{-1}."""
    levels = [level(37.0 * i) for i in range(28)]
    a, s = [1.0, *(signal for signal, _ in levels)], [0.0, *(noise / signal for signal, noise in levels)]
    before, x = normal(3, 1, 4, 4), normal(3, 1, 4, 4, seed=1)
    decoded = OdeSolver(process(), Solver.OBELM, Grid.UNIFORM, 28).decode(mixture, SolverState(before, x))
    for i in range(27, 0, -1):
        h, h_next = s[i] - s[i - 1], s[i + 1] - s[i]
        ratio = h / h_next
        new = ratio**2 * a[i - 1] / a[i + 1] * before + (1 - ratio**2) * a[i - 1] / a[i] * x
        before, x = x, new - h * (h + h_next) / h_next * a[i - 1] * mixture_eps(x, a[i], a[i] * s[i])
    torch.testing.assert_close(decoded, x, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------- order and accuracy


@pytest.mark.parametrize("stop", [1.0, 0.4])
@pytest.mark.parametrize(("kind", "grid"), ORDERED)
def test_error_falls_with_the_order_of_the_solver(kind: Solver, grid: Grid, stop: float) -> None:
    """Encoding and decoding against the exact flow of Gaussian data; in t, second order needs more steps than these."""
    order, bound = {Solver.DDIM: (1, 0.06), Solver.DPMPP2M: (2, 2e-3), Solver.OBELM: (2, 6e-3)}[kind]
    x_start, x_T = MEAN + STD * normal(1, 1, 8, 8), normal(1, 1, 8, 8, seed=1)
    start, end = level(0), level(stop * T - 1)
    first = leave_clean(gaussian, x_start, corrections=int(kind is Solver.DPMPP2M))
    encoded = gaussian_flow(first, start, end, MEAN, STD)
    decoded = reach_clean(gaussian, gaussian_flow(x_T, end, start, MEAN, STD))
    solvers = [OdeSolver(process(), kind, grid, count) for count in (40, 80, 160)]
    for errors in (
        [float((each.encode(gaussian, x_start, stop).x_T - encoded).abs().max()) for each in solvers],
        [float((each.decode(gaussian, SolverState(x_T, stop=stop)) - decoded).abs().max()) for each in solvers],
    ):
        assert orders(errors) == pytest.approx([order, order], abs=0.2) and errors[-1] < bound, errors


@pytest.mark.parametrize(("stop", "bounds"), [(1.0, (0.004, 0.007, 0.005)), (0.2, (0.001, 0.001, 0.001))])
def test_fifty_steps_of_dpmpp2m_follow_the_flow_of_a_mixture(stop: float, bounds: tuple[float, ...]) -> None:
    """Also compared with DDIM, with an even spacing of t, and with four times fewer steps."""
    x_start, end = mixture_images(), stop * T - 1
    first = leave_clean(mixture, x_start)
    x_T = mixture_flow(first, 0, end)
    torch.testing.assert_close(mixture_flow(x_T, end, 0), first, rtol=0, atol=1e-5)  # the oracle itself

    def errors(kind: Solver, grid: Grid = Grid.LOGSNR, steps: int = 50) -> np.ndarray:
        """Errors of encoding, of decoding and of the round trip."""
        solver = OdeSolver(process(), kind, grid, steps)
        encoded = solver.encode(mixture, x_start, stop).x_T
        decoded, returned = (solver.decode(mixture, SolverState(x, stop=stop)) for x in (x_T, encoded))
        return np.array([rms(encoded - x_T), rms(decoded - reach_clean(mixture, first)), rms(returned - x_start)])

    second = errors(Solver.DPMPP2M)
    assert (second < bounds).all() and (errors(Solver.OBELM)[:2] < (0.1, 0.007)).all()
    assert (errors(Solver.DDIM) > 10 * second).all() and (errors(Solver.DPMPP2M, Grid.UNIFORM) > 2 * second).all()
    assert errors(Solver.DDIM, steps=100)[2] > 5 * errors(Solver.DPMPP2M, steps=25)[2]


# ---------------------------------------------------------------------- exact cases


@pytest.mark.parametrize("kind", Solver)
@pytest.mark.parametrize("grid", Grid)
@pytest.mark.parametrize("stop", [1.0, 0.3])
def test_constant_eps_is_solved_exactly(kind: Solver, grid: Grid, stop: float) -> None:
    constant, x_start, (signal, noise) = normal(2, 3, 5, 5, seed=3), normal(2, 3, 5, 5), level(stop * T - 1)
    for steps in (2, 3, 20):
        solver = OdeSolver(process(), kind, grid, steps)
        state = solver.encode(lambda x, t: constant, x_start, stop)
        torch.testing.assert_close(state.x_T, signal * x_start + noise * constant, rtol=0, atol=1e-8)
        for given, tolerance in ((state, 1e-7), (SolverState(state.x_T, stop=stop), 1e-5)):
            torch.testing.assert_close(solver.decode(lambda x, t: constant, given), x_start, rtol=0, atol=tolerance)


@pytest.mark.parametrize("grid", Grid)
@pytest.mark.parametrize("mean_type", ModelMeanType)
def test_obelm_round_trip_is_exact_with_both_states(grid: Grid, mean_type: ModelMeanType) -> None:
    x_start = mixture_images(8)
    for steps, stop in ((2, 1.0), (10, 1.0), (25, 1.0), (25, 0.5)):
        solver = OdeSolver(process(model_mean_type=mean_type), Solver.OBELM, grid, steps)
        network = network_of(solver, mixture)
        state = solver.encode(network, x_start, stop)
        torch.testing.assert_close(solver.decode(network, state), x_start, rtol=0, atol=1e-10)
        assert steps < 25 or rms(solver.decode(network, SolverState(state.x_T, stop=stop)) - x_start) > 1e-3


def test_obelm_round_trip_is_near_exact_in_single_precision() -> None:
    solver, x_start = OdeSolver(process(), Solver.OBELM, Grid.RHO, 25), mixture_images().float()
    network = lambda x, t: mixture(x.double(), t).float()  # noqa: E731
    torch.testing.assert_close(solver.decode(network, solver.encode(network, x_start)), x_start, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", Solver)
def test_all_kinds_of_prediction_give_the_same_result(kind: Solver) -> None:
    x, results = mixture_images(4), []
    for mean_type in ModelMeanType:
        solver = OdeSolver(process(model_mean_type=mean_type), kind, Grid.LOGSNR, 12)
        network = network_of(solver, mixture)
        results.append(torch.cat([solver.encode(network, x).x_T, solver.decode(network, SolverState(x))]))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-10)


# ---------------------------------------------------------------------- the calls of the network


def times_seen(solver: OdeSolver, state: SolverState | None = None, stop: float = 1.0) -> list[float]:
    """The times at which encoding evaluates the network, or decoding of a state."""
    seen: list[float] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (1,) and t.dtype is torch.float64, "one time for all images, embedded once"
        seen.append(float(t[0]))
        return 0.1 * x

    _ = solver.encode(network, normal(3, 1, 2, 2), stop) if state is None else solver.decode(network, state)
    return seen


@pytest.mark.parametrize("kind", Solver)
def test_the_network_is_evaluated_once_per_step_at_the_fractional_level_of_its_input(kind: Solver) -> None:
    solver, x = OdeSolver(process(), kind, steps=6), normal(3, 1, 2, 2)
    levels = solver.path().t.tolist()
    assert any(abs(t - round(t)) > 0.1 for t in levels)
    assert times_seen(solver) == [0.0, 0.0, *levels[2:-1]]
    assert times_seen(solver, SolverState(x)) == levels[:0:-1]
    if kind is Solver.OBELM:
        assert times_seen(solver, SolverState(x, x)) == levels[-2:0:-1], "one evaluation less"


@pytest.mark.parametrize(("rescale", "stop", "expected"), [
    (False, 1.0, [0.0, 0.0, 83.0, 166.0]), (True, 1.0, [0.0, 0.0, 332.0, 664.0]), (False, 0.5, [0, 0, 124 / 3, 248 / 3])
])  # fmt: skip
def test_the_network_sees_steps_in_its_own_units(rescale: bool, stop: float, expected: list[float]) -> None:
    steps, betas = space_timesteps(250, "ddim25"), get_named_beta_schedule("linear", 250)
    solver = OdeSolver(SpacedDiffusion(steps, betas=betas, rescale_timesteps=rescale), grid=Grid.UNIFORM, steps=4)
    np.testing.assert_allclose(times_seen(solver, stop=stop), expected)


@pytest.mark.parametrize("mean_type", ModelMeanType)
def test_only_the_output_of_a_low_precision_network_is_rounded(mean_type: ModelMeanType) -> None:
    solver, x, dtypes = OdeSolver(process(model_mean_type=mean_type), steps=5), normal(2, 1, 3, 3).float(), set()

    def network(x: Tensor, t: Tensor) -> Tensor:
        dtypes.add((x.dtype, t.dtype))
        return (0.5 * x).bfloat16()

    state = solver.encode(network, x)
    assert state.x_T.dtype is solver.decode(network, state).dtype is torch.float32
    assert dtypes == {(torch.float32, torch.float32)}
    assert torch.equal(state.x_T, solver.encode(lambda x, t: network(x, t).float(), x).x_T)


def test_channels_of_a_learned_variance_are_ignored() -> None:
    learned, fixed = (
        OdeSolver(process(model_var_type=ModelVarType.LEARNED_RANGE), steps=5),
        OdeSolver(process(), steps=5),
    )
    x, twice = mixture_images(2), lambda x, t: torch.cat([mixture(x, t), torch.full_like(x, 9.0)], dim=1)
    assert torch.equal(learned.encode(twice, x).x_T, fixed.encode(mixture, x).x_T)
    assert torch.equal(learned.decode(twice, SolverState(x)), fixed.decode(mixture, SolverState(x)))


@pytest.mark.parametrize("kind", Solver)
@pytest.mark.parametrize("mean_type", ModelMeanType)
def test_the_network_may_overwrite_its_previous_output(kind: Solver, mean_type: ModelMeanType) -> None:
    """CUDA graphs do: every output is in the same memory."""
    solver, x = OdeSolver(process(model_mean_type=mean_type), kind, steps=8), mixture_images(4)
    network, buffer = network_of(solver, mixture), torch.empty_like(x)
    reused = lambda x, t: buffer.copy_(network(x, t))  # noqa: E731
    fresh, again = solver.encode(network, x), solver.encode(reused, x)
    assert torch.equal(again.x_T, fresh.x_T)
    assert torch.equal(solver.decode(reused, again), solver.decode(network, fresh))


@pytest.mark.parametrize("kind", Solver)
def test_inputs_are_not_changed_and_gradients_are_not_recorded(kind: Solver) -> None:
    solver, x = OdeSolver(process(), kind, steps=4), mixture_images(2)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    network = lambda x, t: weight * mixture(x, t)  # noqa: E731
    state = solver.encode(network, x)
    x_T = state.x_T.clone()
    decoded = solver.decode(network, state)
    assert torch.equal(x, mixture_images(2)) and torch.equal(state.x_T, x_T)
    assert not state.x_T.requires_grad and not decoded.requires_grad


@pytest.mark.parametrize("kind", Solver)
def test_nothing_is_read_back_from_the_device(kind: Solver) -> None:
    """Tensors on the meta device have no values, so that any read of one fails; on a GPU it would wait."""
    solver, x = OdeSolver(process(), kind, steps=6), torch.zeros(2, 1, 4, 4, device="meta")
    network = lambda x, t: x * t.reshape(-1, 1, 1, 1)  # noqa: E731
    for state in (solver.encode(network, x), SolverState(x)):
        assert solver.decode(network, state).device.type == "meta"


# ---------------------------------------------------------------------- exact DDIM


@pytest.mark.parametrize("mean_type", ModelMeanType)
@pytest.mark.parametrize(("steps", "stop"), [(2, 1.0), (5, 1.0), (15, 0.5), (3, 0.02)])
def test_exact_ddim_inverts_encoding_and_takes_as_many_evaluations_each_way(
    mean_type: ModelMeanType, steps: int, stop: float
) -> None:
    solver, x_start = ExactDdim(process(model_mean_type=mean_type), steps), mixture_images(8)
    network = network_of(solver, mixture)
    state = solver.encode(network, x_start, stop)
    assert state.corrections is not None and state.corrections.shape == (8, steps, *x_start.shape[1:])
    torch.testing.assert_close(solver.decode(network, state), x_start, rtol=0, atol=1e-12)
    levels = solver.path(stop).t.tolist()
    assert times_seen(solver, stop=stop) == levels[1:] and len(levels) == steps + 1
    assert times_seen(solver, solver.encode(lambda x, t: 0.1 * x, normal(3, 1, 2, 2), stop)) == levels[:0:-1]


def test_exact_ddim_is_exact_in_single_precision_and_for_random_networks() -> None:
    solver, x_start, weight = ExactDdim(process(), 4), mixture_images(4).float(), normal(4, 4, seed=5).float()
    for network in (lambda x, t: mixture(x.double(), t).float(), lambda x, t: torch.sin(x @ weight).bfloat16()):
        torch.testing.assert_close(solver.decode(network, solver.encode(network, x_start)), x_start, rtol=0, atol=1e-5)


def test_exact_ddim_starts_at_the_scaled_image_of_its_cleanest_level() -> None:
    solver, x_start, seen = ExactDdim(process(), 6), mixture_images(2), list[Tensor]()
    assert half_logsnr(solver.path().t[1]) == pytest.approx(CLEANEST) and solver.path().t[-1] == T - 1
    solver.encode(lambda x, t: seen.append(x) or mixture(x, t), x_start)
    torch.testing.assert_close(seen[0], level(solver.path().t[1])[0] * x_start)
    with_fewer = ExactDdim(process(), 6).path(0.01)  # ends at a cleaner level than CLEANEST
    assert with_fewer.t[1] == 0 and with_fewer.t[-1] == 9


def test_exact_ddim_follows_the_flow_to_first_order() -> None:
    """From the level where it starts, x_T converges to the flow, and so does decoding under another network."""
    x_start, ends = mixture_images(8), []
    shifted = lambda x, t: mixture(x - 0.2 * level(float(t[0]))[0], t)  # noqa: E731  # the centres moved by 0.2
    for steps in (20, 40, 80, 160):
        solver = ExactDdim(process(), steps)
        state = solver.encode(mixture, x_start)
        start = level(solver.path().t[1])[0] * x_start
        flow = mixture_flow(start, solver.path().t[1], T - 1)
        assert state.corrections is not None
        ends.append((rms(state.x_T - flow), rms(state.corrections[:, 1:].sum(1)), solver.decode(shifted, state)))
    errors = [error for error, _, _ in ends]
    assert all(coarse / fine == pytest.approx(2, rel=0.25) for coarse, fine in pairwise(errors))
    assert all(coarse > 1.7 * fine for coarse, fine in pairwise(size for _, size, _ in ends))
    changes = [rms(finer - coarser) for (_, _, coarser), (_, _, finer) in pairwise(ends)]
    assert all(coarse > 1.6 * fine for coarse, fine in pairwise(changes))


def test_corrections_are_added_under_another_network() -> None:
    """A network of constant x_0 = c decodes every noise to c; its correction adds what c lacks of the image."""
    solver, x_start = ExactDdim(process(model_mean_type=ModelMeanType.START_X), 5), normal(2, 1, 3, 3)
    constants = [torch.full_like(x_start, value) for value in (0.25, 0.75)]
    state = solver.encode(lambda x, t: constants[0], x_start)
    torch.testing.assert_close(solver.decode(lambda x, t: constants[1], state), x_start + 0.5)
    plain = solver.decode(lambda x, t: constants[1], SolverState(state.x_T))
    torch.testing.assert_close(plain, constants[1])


def test_exact_ddim_decodes_random_noise_by_the_second_order_method() -> None:
    x_T, mean = normal(6, 1, 4, 4, seed=9), rms
    solver = ExactDdim(process(), 15)
    start = mixture_flow(x_T, T - 1, solver.path().t[1])
    expected = (start - level(solver.path().t[1])[1] * mixture(start, torch.tensor([solver.path().t[1]]))) / level(
        solver.path().t[1]
    )[0]
    second, first = (
        mean(each.decode(mixture, SolverState(x_T)) - expected)
        for each in (solver, ExactDdim(process(), 15, kind="ddim"))
    )
    assert second < 0.3 * first


@pytest.mark.parametrize("what", ["buffer", "meta"])
def test_exact_ddim_copies_outputs_and_reads_nothing_back(what: str) -> None:
    solver, x = ExactDdim(process(), 6), mixture_images(4)
    if what == "meta":
        network, x = (lambda x, t: x * t.reshape(-1, 1, 1, 1)), x.to("meta")
        assert solver.decode(network, solver.encode(network, x)).device.type == "meta"
        return
    buffer = torch.empty_like(x)
    reused = lambda x, t: buffer.copy_(mixture(x, t))  # noqa: E731
    fresh, again = solver.encode(mixture, x), solver.encode(reused, x)
    assert torch.equal(again.x_T, fresh.x_T)
    assert torch.equal(solver.decode(reused, again), solver.decode(mixture, fresh))


def test_images_of_a_state_are_selected_with_all_its_tensors() -> None:
    state = SolverState(normal(2, 1, 3, 3), normal(2, 1, 3, 3, seed=1), 0.5, normal(2, 4, 1, 3, 3, seed=2))
    twice = state.select(torch.tensor([0, 1, 0, 1]))
    assert twice.stop == 0.5
    for name in ("x_T", "x_before", "corrections"):
        assert torch.equal(getattr(twice, name), torch.cat([getattr(state, name)] * 2))
        assert torch.equal(getattr(state.select(torch.tensor([False, True])), name), getattr(state, name)[1:])
    assert SolverState(state.x_T).select(torch.tensor([1])).corrections is None


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "heun"}, "solver: expected one of ddim, dpmpp2m, obelm, got 'heun'"),
        ({"grid": "karras"}, "grid: expected one of centred, logsnr, rho, uniform, got 'karras'"),
        *(({"steps": steps}, f"steps: expected at least 2, got {steps}") for steps in (1, 0, -3)),
        (
            {"diffusion": GaussianDiffusion(betas=np.array([0.1, 1e-20, 0.1]))},
            "diffusion: expected positive, strictly decreasing alpha-bar",
        ),
    ],
)
def test_unknown_names_too_few_steps_and_flat_schedules_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OdeSolver(**({"diffusion": process()} | arguments))


@pytest.mark.parametrize(("steps", "stop", "message"), [
    *((T, stop, r"expected a fraction in \(0, 1\]") for stop in (0.0, -0.5, 1.01, math.nan)),
    (T, 0.001, "expected more than 1 of the 1000 steps"), (1, 1.0, "expected more than 1 of the 1 steps"),
])  # fmt: skip
def test_fractions_without_a_step_are_refused(steps: int, stop: float, message: str) -> None:
    solver, x = OdeSolver(GaussianDiffusion(betas=LINEAR[:steps]), steps=2), normal(1, 1, 2, 2)
    for use in (lambda: solver.encode(mixture, x, stop), lambda: solver.decode(mixture, SolverState(x, stop=stop))):
        with pytest.raises(InputError, match=f"stop: {message}, got {stop}"):
            use()
