"""The solvers against data whose eps and flow are known: Gaussians in closed form, mixtures by a fine Runge-Kutta.

The process here is the variance-preserving one with a linear rate, alpha-bar(u) = exp(-0.1 u - 9.95 u^2) for u in
[0, 1]: what the network must say at a fractional step is known without asking the code under test.
"""

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
    ModelMeanType,
    ModelVarType,
    betas_for_alpha_bar,
    enforce_zero_terminal_snr,
    get_named_beta_schedule,
)
from causaldiffae.nn import ModelFn
from causaldiffae.respace import SpacedDiffusion, space_timesteps
from causaldiffae.solvers import (
    MIN_HALF_LOGSNR,
    Grid,
    OdeSolver,
    Solver,
    SolverState,
    noise_path,
    obelm_step,
)

pytestmark = pytest.mark.filterwarnings("error")  # no 0 / 0 at the clean image's infinite log-SNR
T = 1000
LINEAR = get_named_beta_schedule("linear", T)
MEAN, STD = 0.3, 0.5
PREDICTIONS = (ModelMeanType.EPSILON, ModelMeanType.START_X, ModelMeanType.VELOCITY)


def alpha_bar_of(t: float) -> float:
    u = (t + 1) / T
    return math.exp(-0.1 * u - 9.95 * u**2)


def signal_and_noise(t: float) -> tuple[float, float]:
    alpha_bar = alpha_bar_of(t)
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


def half_logsnr(t: float) -> float:
    return math.log(alpha_bar_of(t) / (1 - alpha_bar_of(t))) / 2


def process(**kwargs: object) -> GaussianDiffusion:
    betas = betas_for_alpha_bar(T, lambda u: math.exp(-0.1 * u - 9.95 * u**2))
    return GaussianDiffusion(betas=betas, **kwargs)  # type: ignore[arg-type]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def orders(errors: list[float]) -> list[float]:
    """By how many halvings the error falls when the number of steps is doubled."""
    return [math.log2(before / after) for before, after in itertools.pairwise(errors)]


# ---------------------------------------------------------------------- data whose noise is known


def gaussian(x: Tensor, t: Tensor) -> Tensor:
    """E[eps | x_t] for x_0 ~ N(MEAN, STD^2)."""
    signal, noise = signal_and_noise(float(t[0]))
    return noise * (x - signal * MEAN) / (signal**2 * STD**2 + noise**2)


def gaussian_flow(x: Tensor, t_from: float, t_to: float) -> Tensor:
    """The flow's solution for the same data: the standardised variable stays what it is."""
    (a, s), (b, r) = signal_and_noise(t_from), signal_and_noise(t_to)
    stretch = ((b**2 * STD**2 + r**2) / (a**2 * STD**2 + s**2)) ** 0.5
    return b * MEAN + stretch * (x - a * MEAN)


CENTRES, WIDTH = images(4, 1, 1, 4, 4, seed=7), 0.3


def mixture_noise(x: Tensor, signal: float, noise: float) -> Tensor:
    """E[eps | x_t] for four Gaussians of width WIDTH around CENTRES, for images (B, 1, 4, 4)."""
    variance = signal**2 * WIDTH**2 + noise**2
    away = x[None] - signal * CENTRES
    share = torch.softmax(-away.flatten(2).square().sum(2) / (2 * variance), dim=0)[..., None, None, None]
    return noise * (share * away).sum(0) / variance


def mixture(x: Tensor, t: Tensor) -> Tensor:
    return mixture_noise(x, *signal_and_noise(float(t[0])))


def mixture_images(count: int = 64) -> Tensor:
    which = torch.arange(count) % len(CENTRES)
    return CENTRES[which, 0] + WIDTH * images(count, 1, 4, 4, seed=3)


def mixture_flow(x: Tensor, t_from: float, t_to: float, steps: int = 400) -> Tensor:
    """Runge-Kutta of order four for d(x / a) / d log s = s eps, with s = sigma / a."""

    def slope(y: Tensor, log_s: float) -> Tensor:
        s = math.exp(log_s)
        signal = 1 / math.hypot(1, s)
        return s * mixture_noise(signal * y, signal, signal * s)

    y = x / signal_and_noise(t_from)[0]
    grid = np.linspace(-half_logsnr(t_from), -half_logsnr(t_to), steps + 1).tolist()
    for here, there in itertools.pairwise(grid):
        h = there - here
        k1 = slope(y, here)
        k2 = slope(y + h / 2 * k1, here + h / 2)
        k3 = slope(y + h / 2 * k2, here + h / 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, there))
    return y * signal_and_noise(t_to)[0]


def leave_clean(eps: ModelFn, x_start: Tensor, corrections: int = 0) -> Tensor:
    """The agreed first step: x_0 = a x + sigma eps(x, 0), or with eps(x_0, 0) where it was corrected."""
    (signal, noise), x = signal_and_noise(0), x_start
    for _ in range(1 + corrections):
        x = signal * x_start + noise * eps(x, torch.zeros(1))
    return x


def reach_clean(eps: ModelFn, x: Tensor) -> Tensor:
    """The agreed last step: x = (x_0 - sigma eps(x_0, 0)) / a."""
    signal, noise = signal_and_noise(0)
    return (x - noise * eps(x, torch.zeros(1))) / signal


def says(solver: OdeSolver, eps: ModelFn) -> ModelFn:
    """The network that knows `eps`, in the way of speaking of the solver's process."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        signal, noise = (float(level[0]) for level in solver.schedule.signal_and_noise(t[:1].numpy()))
        predicted = eps(x, t)
        x_start = (x - noise * predicted) / signal
        return {
            ModelMeanType.EPSILON: predicted,
            ModelMeanType.START_X: x_start,
            ModelMeanType.VELOCITY: signal * predicted - noise * x_start,
        }[solver.diffusion.model_mean_type]

    return network


# ---------------------------------------------------------------------- the schedule and the grids


def test_schedule_meets_every_step_and_falls_in_between() -> None:
    for betas in (LINEAR, get_named_beta_schedule("cosine", 100), get_named_beta_schedule("linear", 50)):
        diffusion = GaussianDiffusion(betas=betas)
        schedule, steps = diffusion.noise_schedule, np.arange(len(betas))
        signal, noise = schedule.signal_and_noise(steps)
        np.testing.assert_allclose(signal, diffusion.sqrt_alphas_cumprod, rtol=1e-12)
        np.testing.assert_allclose(noise, diffusion.sqrt_one_minus_alphas_cumprod, rtol=1e-10)
        fine = np.linspace(0, len(betas) - 1, 7919)
        levels = schedule.half_logsnr(fine)
        assert (np.diff(levels) < 0).all()
        np.testing.assert_allclose(schedule.step_of(levels), fine, rtol=0, atol=1e-7)


def test_schedule_between_steps() -> None:
    schedule, steps = process().noise_schedule, [0.0, 0.25, 0.5, 3.7, 500.5, 998.4, 999.0]
    expected = [half_logsnr(t) for t in steps]
    np.testing.assert_allclose(schedule.half_logsnr(np.array(steps)), expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(schedule.half_logsnr(np.array(steps[3:])), expected[3:], rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("sections", ["ddim10", "7", "5,3"])
def test_spaced_process_stands_for_the_process_it_was_taken_from(name: str, sections: str) -> None:
    betas = get_named_beta_schedule(name, 100)
    spaced = SpacedDiffusion(space_timesteps(100, sections), betas=betas)
    solver, whole = OdeSolver(spaced), OdeSolver(GaussianDiffusion(betas=betas))
    assert solver.schedule.num_timesteps == 100
    for values in ("t", "signal", "noise"):
        np.testing.assert_array_equal(getattr(solver.path(), values), getattr(whole.path(), values))
    if name == "linear":
        assert solver.path().t[-1] == 99, "also where the spaced process ends before"


@pytest.mark.parametrize("grid", Grid)
@pytest.mark.parametrize("name", ["linear", "cosine", "to noise"])
def test_no_step_is_spent_where_nothing_is_seen(name: str, grid: Grid) -> None:
    betas = get_named_beta_schedule("cosine" if name == "cosine" else "linear", 1000)
    betas = enforce_zero_terminal_snr(betas) if name == "to noise" else betas
    path = OdeSolver(GaussianDiffusion(betas=betas, model_mean_type=ModelMeanType.VELOCITY), grid=grid).path()
    if name == "linear":
        assert path.t[-1] == 999 and path.half_logsnr(path.last) > MIN_HALF_LOGSNR
    else:
        assert 900 < path.t[-1] < 999
        assert path.half_logsnr(path.last) == pytest.approx(MIN_HALF_LOGSNR, abs=1e-6)


def test_grids_space_evenly_what_they_name() -> None:
    schedule = process().noise_schedule
    measures: dict[Grid, Callable[[float], float]] = {
        Grid.CENTRED: lambda t: math.asinh(half_logsnr(t) / 3),
        Grid.LOGSNR: half_logsnr,
        Grid.RHO: lambda t: math.exp(-half_logsnr(t) / 7),
        Grid.UNIFORM: lambda t: t,
    }
    for grid, measure in measures.items():
        for stop in (1.0, 0.35):
            path = noise_path(schedule, grid, 12, stop)
            assert len(path.t) == 13
            assert path.t[[0, 1, -1]].tolist() == [0.0, 0.0, stop * T - 1]
            assert (path.signal[0], path.noise[0]) == (1.0, 0.0)
            gaps = np.diff([measure(t) for t in path.t[1:]])
            np.testing.assert_allclose(gaps, gaps.mean(), rtol=2e-3, err_msg=f"{grid}, {stop}")
            np.testing.assert_allclose(path.signal**2 + path.noise**2, 1.0, rtol=1e-12)
            assert (np.diff(path.noise) > 0).all()


# ---------------------------------------------------------------------- the steps against their formulas


@pytest.mark.parametrize("mean_type", PREDICTIONS)
@pytest.mark.parametrize("steps", [10, 28])
def test_ddim_on_whole_steps_is_the_ddim_loop(mean_type: ModelMeanType, steps: int) -> None:
    loops = SpacedDiffusion(range(0, T, 999 // (steps - 1)), betas=LINEAR, model_mean_type=mean_type)
    solver = OdeSolver(GaussianDiffusion(betas=LINEAR, model_mean_type=mean_type), "ddim", "uniform", steps)
    x = images(2, 1, 4, 4)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x + t.double().reshape(-1, 1, 1, 1) / 300)

    torch.testing.assert_close(solver.encode(network, x).x_T, loops.ddim_encode(network, x), rtol=0, atol=1e-9)
    decoded = solver.decode(network, SolverState(x))
    torch.testing.assert_close(decoded, loops.ddim_sample_loop(network, x), rtol=0, atol=1e-9)


def plain_dpmpp2m(x: Tensor, nodes: list[float], first: Tensor | None = None) -> Tensor:
    """DPM-Solver++(2M), algorithm 2 of Lu et al. (2022), through finite levels: first order once, then second.

    `first`: what stands for the first prediction of x_0.
    """
    predictions: list[Tensor] = []
    for i, (here, there) in enumerate(itertools.pairwise(nodes)):
        (a_here, s_here), (a_there, s_there) = signal_and_noise(here), signal_and_noise(there)
        h = half_logsnr(there) - half_logsnr(here)
        predictions.append((x - s_here * mixture_noise(x, a_here, s_here)) / a_here)
        if first is not None and not i:
            predictions = [first]
        direction = predictions[-1]
        if i:
            r = (half_logsnr(here) - half_logsnr(nodes[i - 1])) / h
            direction = (1 + 1 / (2 * r)) * predictions[-1] - 1 / (2 * r) * predictions[-2]
        x = s_there / s_here * x - a_there * (math.exp(-h) - 1) * direction
    return x


def test_dpmpp2m_is_its_algorithm_both_ways() -> None:
    solver, x = OdeSolver(process(), Solver.DPMPP2M, Grid.UNIFORM, 28), mixture_images(4)
    levels = [37.0 * i for i in range(28)]
    encoded = plain_dpmpp2m(leave_clean(mixture, x, corrections=1), levels, first=x)
    torch.testing.assert_close(solver.encode(mixture, x).x_T, encoded, rtol=0, atol=1e-9)
    decoded = reach_clean(mixture, plain_dpmpp2m(encoded, levels[::-1]))
    torch.testing.assert_close(solver.decode(mixture, SolverState(encoded)), decoded, rtol=0, atol=1e-9)


def test_obelm_is_its_recursion() -> None:
    """x_{i-1} from x_{i+1}, x_i and eps(x_i), with h_i = s_i - s_{i-1}; the clean image is x_{-1}."""
    solver = OdeSolver(process(), Solver.OBELM, Grid.UNIFORM, 28)
    levels = [signal_and_noise(37.0 * i) for i in range(28)]
    a = [1.0, *(signal for signal, _ in levels)]
    s = [0.0, *(noise / signal for signal, noise in levels)]
    before, x = images(3, 1, 4, 4), images(3, 1, 4, 4, seed=1)
    state = SolverState(before, x)
    for i in range(27, 0, -1):
        h, h_next = s[i] - s[i - 1], s[i + 1] - s[i]
        ratio = h / h_next
        new = ratio**2 * a[i - 1] / a[i + 1] * before + (1 - ratio**2) * a[i - 1] / a[i] * x
        new = new - h * (h + h_next) / h_next * a[i - 1] * mixture_noise(x, a[i], a[i] * s[i])
        before, x = x, new
    torch.testing.assert_close(solver.decode(mixture, state), x, rtol=1e-9, atol=1e-9)


def test_obelm_step_undoes_itself() -> None:
    path = noise_path(process().noise_schedule, Grid.RHO, 9)
    up, down = obelm_step(path, 3, 4, 5), obelm_step(path, 5, 4, 3)
    lower, here, eps = 0.7, -0.2, 1.3
    upper = up.x_weight * here + up.weight * eps + up.older_weight * lower
    assert abs(down.x_weight * here + down.weight * eps + down.older_weight * upper - lower) < 1e-12


# ---------------------------------------------------------------------- order and accuracy


def gaussian_errors(kind: Solver, grid: Grid, counts: tuple[int, ...], stop: float = 1.0) -> list[list[float]]:
    """Largest errors of encoding and of decoding against the exact flow between step 0 and the end."""
    x_start, x_T, end = MEAN + STD * images(1, 1, 8, 8), images(1, 1, 8, 8, seed=1), stop * T - 1
    encoded = gaussian_flow(leave_clean(gaussian, x_start, corrections=int(kind is Solver.DPMPP2M)), 0, end)
    decoded = reach_clean(gaussian, gaussian_flow(x_T, end, 0))
    solvers = [OdeSolver(process(), kind, grid, count) for count in counts]
    encoding = [float((s.encode(gaussian, x_start, stop).x_T - encoded).abs().max()) for s in solvers]
    decoding = [float((s.decode(gaussian, SolverState(x_T, stop=stop)) - decoded).abs().max()) for s in solvers]
    return [encoding, decoding]


@pytest.mark.parametrize("stop", [1.0, 0.4])
@pytest.mark.parametrize("grid", [Grid.LOGSNR, Grid.RHO])
def test_ddim_has_order_one(grid: Grid, stop: float) -> None:
    for errors in gaussian_errors(Solver.DDIM, grid, (40, 80, 160), stop):
        assert all(0.85 < order < 1.15 for order in orders(errors)), errors
        assert errors[-1] < 0.06


@pytest.mark.parametrize("stop", [1.0, 0.4])
@pytest.mark.parametrize("grid", [Grid.CENTRED, Grid.LOGSNR, Grid.RHO])
def test_dpmpp2m_has_order_two(grid: Grid, stop: float) -> None:
    for errors in gaussian_errors(Solver.DPMPP2M, grid, (40, 80, 160), stop):
        assert all(1.8 < order < 2.2 for order in orders(errors)), errors
        assert errors[-1] < 2e-3


@pytest.mark.parametrize("stop", [1.0, 0.4])
@pytest.mark.parametrize("grid", [Grid.LOGSNR, Grid.RHO])
def test_obelm_has_order_two(grid: Grid, stop: float) -> None:
    for errors in gaussian_errors(Solver.OBELM, grid, (40, 80, 160), stop):
        assert all(1.8 < order < 2.2 for order in orders(errors)), errors
        assert errors[-1] < 6e-3


def test_few_steps_are_near_the_flow_of_a_mixture() -> None:
    x_start = mixture_images()
    x_T = mixture_flow(leave_clean(mixture, x_start), 0, T - 1)
    again = mixture_flow(x_T, T - 1, 0)
    torch.testing.assert_close(again, leave_clean(mixture, x_start), rtol=0, atol=1e-5)  # the oracle itself
    decoded = reach_clean(mixture, again)

    def errors(kind: Solver, grid: Grid) -> tuple[float, float]:
        solver = OdeSolver(process(), kind, grid, 50)
        encoded = solver.encode(mixture, x_start).x_T
        return rms(encoded - x_T), rms(solver.decode(mixture, SolverState(x_T)) - decoded)

    for kind, encoding in ((Solver.DPMPP2M, 0.004), (Solver.OBELM, 0.1)):
        found = errors(kind, Grid.LOGSNR)
        assert found[0] < encoding
        assert found[1] < 0.007
    assert min(errors(Solver.DDIM, Grid.LOGSNR)) > 0.04
    assert min(errors(Solver.DPMPP2M, Grid.UNIFORM)) > 0.02, "the grid matters too"


def test_round_trips_of_a_mixture() -> None:
    """What 2M loses in 25 steps is less than DDIM loses in 100."""
    x_start = mixture_images()

    def lost(kind: Solver, grid: Grid, steps: int) -> float:
        solver = OdeSolver(process(), kind, grid, steps)
        return rms(solver.decode(mixture, SolverState(solver.encode(mixture, x_start).x_T)) - x_start)

    second = lost(Solver.DPMPP2M, Grid.LOGSNR, 25)
    assert second < 0.02
    assert second < lost(Solver.DDIM, Grid.LOGSNR, 25) / 10
    assert second < lost(Solver.DDIM, Grid.UNIFORM, 25) / 5
    assert second < lost(Solver.DDIM, Grid.LOGSNR, 100) / 5
    assert second < lost(Solver.DPMPP2M, Grid.UNIFORM, 25) / 1.5


def test_partial_encoding_of_a_mixture() -> None:
    x_start = mixture_images()
    solver = OdeSolver(process(), steps=25)
    state = solver.encode(mixture, x_start, stop=0.2)
    assert state.stop == 0.2
    expected = mixture_flow(leave_clean(mixture, x_start), 0, 199)
    assert rms(state.x_T - expected) < 3e-3
    assert rms(solver.decode(mixture, state) - x_start) < 2e-3
    ddim = OdeSolver(process(), Solver.DDIM, steps=25)
    assert rms(ddim.encode(mixture, x_start, stop=0.2).x_T - expected) > 10 * rms(state.x_T - expected)


# ---------------------------------------------------------------------- exact cases


@pytest.mark.parametrize("kind", Solver)
@pytest.mark.parametrize("grid", Grid)
@pytest.mark.parametrize("stop", [1.0, 0.3])
def test_constant_noise_is_solved_exactly(kind: Solver, grid: Grid, stop: float) -> None:
    constant, x_start = images(2, 3, 5, 5, seed=3), images(2, 3, 5, 5)
    for steps in (2, 3, 20):
        solver = OdeSolver(process(), kind, grid, steps)
        state = solver.encode(lambda x, t: constant, x_start, stop)
        signal, noise = signal_and_noise(stop * T - 1)
        torch.testing.assert_close(state.x_T, signal * x_start + noise * constant, rtol=0, atol=1e-8)
        torch.testing.assert_close(solver.decode(lambda x, t: constant, state), x_start, rtol=0, atol=1e-7)
        alone = SolverState(state.x_T, stop=stop)
        torch.testing.assert_close(solver.decode(lambda x, t: constant, alone), x_start, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", Grid)
@pytest.mark.parametrize("mean_type", PREDICTIONS)
def test_obelm_round_trip_is_exact_with_both_states(grid: Grid, mean_type: ModelMeanType) -> None:
    x_start = mixture_images(8)
    for steps, stop in ((2, 1.0), (10, 1.0), (25, 1.0), (25, 0.5)):
        solver = OdeSolver(process(model_mean_type=mean_type), Solver.OBELM, grid, steps)
        network = says(solver, mixture)
        state = solver.encode(network, x_start, stop)
        torch.testing.assert_close(solver.decode(network, state), x_start, rtol=0, atol=1e-10)
        if steps == 25:
            assert rms(solver.decode(network, SolverState(state.x_T, stop=stop)) - x_start) > 1e-3


def test_obelm_round_trip_in_single_precision() -> None:
    x_start = mixture_images().float()
    solver = OdeSolver(process(), Solver.OBELM, Grid.RHO, 25)
    network = lambda x, t: mixture(x.double(), t).float()  # noqa: E731
    state = solver.encode(network, x_start)
    torch.testing.assert_close(solver.decode(network, state), x_start, rtol=0, atol=1e-4)


def test_obelm_keeps_the_state_one_level_cleaner() -> None:
    x_start = mixture_images(4)
    solver = OdeSolver(process(), Solver.OBELM, Grid.UNIFORM, 28)
    state = solver.encode(mixture, x_start)
    shorter = OdeSolver(process(), Solver.OBELM, Grid.UNIFORM, 27)
    assert state.x_before is not None
    torch.testing.assert_close(state.x_before, shorter.encode(mixture, x_start, stop=0.963).x_T, rtol=0, atol=1e-9)
    for kind in (Solver.DDIM, Solver.DPMPP2M):
        assert OdeSolver(process(), kind).encode(mixture, x_start).x_before is None


@pytest.mark.parametrize("kind", Solver)
def test_predictions_agree(kind: Solver) -> None:
    x, results = mixture_images(4), []
    for mean_type in PREDICTIONS:
        solver = OdeSolver(process(model_mean_type=mean_type), kind, Grid.LOGSNR, 12)
        network = says(solver, mixture)
        results.append((solver.encode(network, x).x_T, solver.decode(network, SolverState(x))))
    for encoded, decoded in results[1:]:
        torch.testing.assert_close(encoded, results[0][0], rtol=0, atol=1e-10)
        torch.testing.assert_close(decoded, results[0][1], rtol=0, atol=1e-10)


# ---------------------------------------------------------------------- what the network sees


def times_seen(solver: OdeSolver, state: SolverState | None = None, stop: float = 1.0) -> list[float]:
    seen: list[float] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (1,), "one time for all images, embedded once"
        assert t.dtype is torch.float64
        seen.append(float(t[0]))
        return 0.1 * x

    x = images(3, 1, 2, 2)
    _ = solver.encode(network, x, stop) if state is None else solver.decode(network, state)
    return seen


def test_network_sees_fractional_steps_where_its_image_is() -> None:
    solver = OdeSolver(process(), steps=6)
    levels = [float(t) for t in solver.path().t]
    assert any(abs(t - round(t)) > 0.1 for t in levels)
    x = images(3, 1, 2, 2)
    assert times_seen(solver) == [0.0, 0.0, *levels[2:-1]]
    assert times_seen(solver, SolverState(x)) == levels[:0:-1]
    obelm = OdeSolver(process(), Solver.OBELM, steps=6)
    assert times_seen(obelm) == [0.0, 0.0, *levels[2:-1]]
    assert times_seen(obelm, SolverState(x)) == levels[:0:-1]
    assert times_seen(obelm, SolverState(x, x)) == levels[-2:0:-1], "one evaluation less"


def test_network_sees_steps_in_its_own_units() -> None:
    betas = get_named_beta_schedule("linear", 250)
    plain, rescaled = (
        SpacedDiffusion(space_timesteps(250, "ddim25"), betas=betas, rescale_timesteps=rescale)
        for rescale in (False, True)
    )
    grid = Grid.UNIFORM
    assert times_seen(OdeSolver(plain, grid=grid, steps=4)) == [0.0, 0.0, 83.0, 166.0]
    np.testing.assert_allclose(times_seen(OdeSolver(rescaled, grid=grid, steps=4)), [0.0, 0.0, 332.0, 664.0])
    np.testing.assert_allclose(times_seen(OdeSolver(plain, grid=grid, steps=4), stop=0.5), [0, 0, 124 / 3, 248 / 3])


@pytest.mark.parametrize("mean_type", PREDICTIONS)
def test_single_precision_and_low_precision_networks(mean_type: ModelMeanType) -> None:
    """Only what the network says is rounded to its precision, not what is made of it."""
    solver = OdeSolver(process(model_mean_type=mean_type), steps=5)
    x, dtypes = images(2, 1, 3, 3).float(), set()

    def network(x: Tensor, t: Tensor) -> Tensor:
        dtypes.add((x.dtype, t.dtype))
        return (0.5 * x).bfloat16()

    state = solver.encode(network, x)
    assert state.x_T.dtype is solver.decode(network, state).dtype is torch.float32
    assert dtypes == {(torch.float32, torch.float32)}
    assert torch.equal(state.x_T, solver.encode(lambda x, t: network(x, t).float(), x).x_T)


def test_learned_variance_is_left_aside() -> None:
    learned = OdeSolver(process(model_var_type=ModelVarType.LEARNED_RANGE), steps=5)
    fixed, x = OdeSolver(process(), steps=5), mixture_images(2)
    twice = lambda x, t: torch.cat([mixture(x, t), torch.full_like(x, 9.0)], dim=1)  # noqa: E731
    assert torch.equal(learned.encode(twice, x).x_T, fixed.encode(mixture, x).x_T)
    assert torch.equal(learned.decode(twice, SolverState(x)), fixed.decode(mixture, SolverState(x)))


@pytest.mark.parametrize("kind", Solver)
@pytest.mark.parametrize("mean_type", PREDICTIONS)
def test_network_may_overwrite_what_it_returned(kind: Solver, mean_type: ModelMeanType) -> None:
    """As CUDA graphs do: every call answers in the same memory."""
    solver, x = OdeSolver(process(model_mean_type=mean_type), kind, steps=8), mixture_images(4)
    network, buffer = says(solver, mixture), torch.empty_like(x)
    reused = lambda x, t: buffer.copy_(network(x, t))  # noqa: E731
    fresh, again = solver.encode(network, x), solver.encode(reused, x)
    assert torch.equal(again.x_T, fresh.x_T)
    assert torch.equal(solver.decode(reused, again), solver.decode(network, fresh))


@pytest.mark.parametrize("kind", Solver)
def test_inputs_are_left_alone_and_gradients_are_not_kept(kind: Solver) -> None:
    solver, x = OdeSolver(process(), kind, steps=4), mixture_images(2)
    weight, before = torch.ones((), dtype=torch.float64, requires_grad=True), x.clone()
    network = lambda x, t: weight * mixture(x, t)  # noqa: E731
    state = solver.encode(network, x)
    x_T = state.x_T.clone()
    decoded = solver.decode(network, state)
    assert torch.equal(x, before)
    assert torch.equal(state.x_T, x_T)
    assert not state.x_T.requires_grad
    assert not decoded.requires_grad


@pytest.mark.parametrize("kind", Solver)
def test_nothing_is_read_back_from_the_device(kind: Solver) -> None:
    """Tensors on the meta device have no values: whoever asks for one, and so would wait for a GPU, fails."""
    solver, x = OdeSolver(process(), kind, steps=6), torch.zeros(2, 1, 4, 4, device="meta")
    network = lambda x, t: x * t.reshape(-1, 1, 1, 1)  # noqa: E731
    state = solver.encode(network, x)
    assert solver.decode(network, state).device.type == "meta"
    assert solver.decode(network, SolverState(x)).shape == x.shape


# ---------------------------------------------------------------------- messages


def test_messages_about_the_solver() -> None:
    with pytest.raises(InputError, match="solver: expected one of ddim, dpmpp2m, obelm, got 'heun'"):
        OdeSolver(process(), "heun")
    with pytest.raises(InputError, match="grid: expected one of centred, logsnr, rho, uniform, got 'karras'"):
        OdeSolver(process(), grid="karras")
    for steps in (1, 0, -3):
        with pytest.raises(InputError, match=f"steps: expected at least 2, got {steps}"):
            OdeSolver(process(), steps=steps)


def test_messages_about_the_process() -> None:
    odd = OdeSolver(SpacedDiffusion(range(0, 100, 10), betas=np.full(100, 0.01)))
    whole = OdeSolver(GaussianDiffusion(betas=np.full(100, 0.01)))
    np.testing.assert_array_equal(odd.path().signal, whole.path().signal)  # any process knows what it was taken from
    for betas in ([0.1, 1.0, 0.5], [0.1, 1e-20, 0.1]):
        with np.errstate(divide="ignore"):
            diffusion = GaussianDiffusion(betas=np.array(betas))
        with pytest.raises(InputError, match="diffusion: expected alpha-bar to decrease at every step"):
            OdeSolver(diffusion)


def test_messages_about_where_to_stop() -> None:
    solver, x = OdeSolver(process(), steps=2), images(1, 1, 2, 2)
    for stop in (0.0, -0.5, 1.01, math.nan):
        with pytest.raises(InputError, match=rf"stop: expected a fraction in \(0, 1\], got {stop}"):
            solver.encode(mixture, x, stop)
        with pytest.raises(InputError, match=f"got {stop}"):
            solver.decode(mixture, SolverState(x, stop=stop))
    with pytest.raises(InputError, match="stop: expected more than 1 of the 1000 steps, got 0.001"):
        solver.encode(mixture, x, 0.001)
    with pytest.raises(InputError, match="stop: expected more than 1 of the 1 steps, got 1.0"):
        OdeSolver(GaussianDiffusion(betas=np.array([0.1]))).encode(mixture, x)
