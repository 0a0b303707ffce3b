"""Solvers of the probability-flow ODE in both directions: x_0 -> x_T (abduct) and x_T -> x_0 (predict).

With a = sqrt(abar_t), sigma = sqrt(1 - abar_t) and the log-SNR 2 l = log(a^2 / sigma^2), the flow of Song et al. (2021,
arXiv 2011.13456, eq. 13) reads d(x / sigma) / dl = e^l x_0(x, t), or d(x / a) = eps(x, t) d(sigma / a). Holding the
prediction over a step gives DDIM, an exponential integrator of first order. DPM-Solver++(2M) (Lu et al., 2022, arXiv
2211.01095, eq. 18) extrapolates x_0 from the step before: second order for the same evaluations. O-BELM (Wang et al.,
2024, arXiv 2410.07761) is a leapfrog in sigma / a, which two neighbouring states invert exactly.

Time is continuous: alpha-bar is interpolated between the steps that the network was trained on, and the network is
asked at fractional steps. A path has `steps` noise levels from step 0 to the noisiest one, and the clean image, where
log-SNR has no end, as one node more: the interval between the clean image and step 0 is always a DDIM step.

A decoding ends by reading x_0 off step 0. DPM-Solver++(2M) therefore corrects its encoding there, x += a (image - x_0),
by the evaluation that is made at step 0 in any case: what will be read off is then the image, to second order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion, ModelMeanType
from causaldiffae.nn import ModelFn
from causaldiffae.noise_schedule import NoiseSchedule

RHO = 7.0
CENTRE_WIDTH = 3.0
CLEAN = 0
MemberT = TypeVar("MemberT", bound=Enum)


class Solver(Enum):
    """DDIM, DPM-Solver++(2M), O-BELM."""

    DDIM = "ddim"
    DPMPP2M = "dpmpp2m"
    OBELM = "obelm"


class Grid(Enum):
    """What is spaced evenly: asinh(log(a / sigma) / CENTRE_WIDTH), which is log-SNR with more steps where signal and
    noise are alike; log-SNR; (sigma / a)^(1/7) (Karras et al., 2022, arXiv 2206.00364, eq. 5); the step t.
    """

    CENTRED = "centred"
    LOGSNR = "logsnr"
    RHO = "rho"
    UNIFORM = "uniform"


SPACED_EVENLY: dict[Grid, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    Grid.CENTRED: (lambda level: np.arcsinh(level / CENTRE_WIDTH), lambda even: CENTRE_WIDTH * np.sinh(even)),
    Grid.LOGSNR: (lambda level: level, lambda even: even),
    Grid.RHO: (lambda level: np.exp(-level / RHO), lambda even: -RHO * np.log(even)),
}
"""What the grids of noise levels space, as a function of log(a / sigma), and its inverse."""

FAINTEST = -6.0
"""log(a / sigma) below which nothing is seen of an image: 0.3 grey levels of it under noise of 127."""

# ---------------------------------------------------------------------- noise levels


@dataclass(frozen=True)
class Path:
    """Noise levels from clean to noisy, N + 1 nodes each; node 0 is the clean image.

    Attributes:
        t: steps of the process; the network is asked about the clean image as if at step 0.
        signal, noise: a and sigma of x = a x_0 + sigma eps.
    """

    t: np.ndarray
    signal: np.ndarray
    noise: np.ndarray

    @property
    def last(self) -> int:
        return len(self.t) - 1

    def half_logsnr(self, node: int) -> float:
        return float(np.log(self.signal[node] / self.noise[node]))

    def ratio(self, node: int) -> float:
        """sigma / a, 0 for the clean image."""
        return float(self.noise[node] / self.signal[node])


def noise_path(schedule: NoiseSchedule, grid: Grid, steps: int, stop: float = 1.0) -> Path:
    """The clean image and `steps` >= 2 noise levels, from step 0 to step stop * T - 1, spaced by `grid`.

    No step is spent where the signal is below exp(FAINTEST) of the noise, as it is at the end of a cosine schedule and
    of one that ends in pure noise: the path ends before.
    """
    end = stop * schedule.num_timesteps - 1.0
    cleanest, noisiest = schedule.half_logsnr(np.array([0.0, end])).tolist()
    if noisiest < FAINTEST:
        noisiest, end = FAINTEST, float(schedule.step_of(np.array(FAINTEST)))
    if grid is Grid.UNIFORM:
        t = np.linspace(0.0, end, steps)
    else:
        spaced, back = SPACED_EVENLY[grid]
        t = schedule.step_of(back(np.linspace(spaced(cleanest), spaced(noisiest), steps)))
    t[[0, -1]] = 0.0, end
    signal, noise = schedule.signal_and_noise(t)
    return Path(np.append(0.0, t), np.append(1.0, signal), np.append(0.0, noise))


# ---------------------------------------------------------------------- steps


@dataclass(frozen=True)
class Step:
    """One evaluation of the network and what becomes of it: x <- x_weight x + weight prediction + older_weight older.

    Attributes:
        node: where x is and the network is asked.
        predicts: the prediction that is weighted, eps or x_0.
        older_weight: weight of the step before: its prediction, or for O-BELM its state.
    """

    node: int
    predicts: ModelMeanType
    x_weight: float
    weight: float
    older_weight: float = 0.0


StepRule = Callable[[Path, "int | None", int, int], Step]


def ddim_step(path: Path, before: int | None, here: int, there: int) -> Step:
    """Holds eps (or x_0, which is the same) over the step; the only rule that leaves the clean image."""
    scale = float(path.signal[there] / path.signal[here])
    return Step(here, ModelMeanType.EPSILON, scale, float(path.noise[there] - scale * path.noise[here]))


def dpmpp2m_step(path: Path, before: int | None, here: int, there: int) -> Step:
    """Extrapolates x_0 linearly in log-SNR from nodes `before` and `here` to the middle of the step.

    Where `before` is missing or is the clean image, whose log-SNR is infinite, x_0 is held.
    """
    if here == CLEAN:
        return ddim_step(path, before, here, there)
    scale = float(path.noise[there] / path.noise[here])
    weight = float(path.signal[there] - scale * path.signal[here])
    extrapolated = 0.0
    if before is not None and before != CLEAN:
        l_before, l_here, l_there = (path.half_logsnr(node) for node in (before, here, there))
        extrapolated = (l_there - l_here) / (2 * (l_here - l_before))
    return Step(here, ModelMeanType.START_X, scale, weight * (1 + extrapolated), -weight * extrapolated)


def obelm_step(path: Path, before: int | None, here: int, there: int) -> Step:
    """The parabola in sigma / a through x / a at `before` and `here` with slope eps at `here`, read at `there`.

    Exchanging `before` and `there` gives the inverse, so the same rule encodes and decodes.
    """
    if before is None:
        return ddim_step(path, before, here, there)
    back, ahead = path.ratio(before) - path.ratio(here), path.ratio(there) - path.ratio(here)
    squared = (ahead / back) ** 2
    signal = path.signal[there]
    return Step(
        here,
        ModelMeanType.EPSILON,
        float(signal / path.signal[here] * (1 - squared)),
        float(signal * ahead * (1 - ahead / back)),
        float(signal / path.signal[before] * squared),
    )


STEP_RULES: dict[Solver, StepRule] = {
    Solver.DDIM: ddim_step,
    Solver.DPMPP2M: dpmpp2m_step,
    Solver.OBELM: obelm_step,
}


def plan(kind: Solver, path: Path, nodes: Sequence[int], before: int | None = None) -> list[Step]:
    """The steps through `nodes` in their order; `before` is the node of a state already known, behind the first."""
    rule = STEP_RULES[kind]
    behind = [before, *nodes[:-2]]
    return [rule(path, last, here, there) for last, (here, there) in zip(behind, pairwise(nodes), strict=True)]


def reading(output: ModelMeanType, wanted: ModelMeanType, signal: float, noise: float) -> tuple[float, float]:
    """How eps or x_0 is read off a network's output: wanted = first * x_t + second * output."""
    if output is wanted:
        return 0.0, 1.0
    if output is ModelMeanType.VELOCITY:
        return (noise, signal) if wanted is ModelMeanType.EPSILON else (signal, -noise)
    return (1 / noise, -signal / noise) if wanted is ModelMeanType.EPSILON else (1 / signal, -noise / signal)


# ---------------------------------------------------------------------- the solver


@dataclass(frozen=True)
class SolverState:
    """Where an encoding ended, and a decoding begins.

    Attributes:
        x_T: (B, C, H, W).
        x_before: (B, C, H, W), the state one level cleaner; O-BELM needs it to go back exactly. None for other solvers,
            or where x_T was drawn.
        stop: fraction of the process that lies below x_T.
    """

    x_T: Tensor
    x_before: Tensor | None = None
    stop: float = 1.0


class DdimLoops:
    """The process's own DDIM loops, step by step as published, under the solvers' interface: the reference.

    Args:
        diffusion: the steps to take, for instance `SpacedDiffusion` with 250 of 1000.
    """

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        self.diffusion = diffusion

    def _count(self, stop: float) -> int:
        if not 0 < stop <= 1:
            raise InputError(f"stop: {stop} given, a fraction above 0 and at most 1 is needed")
        return max(1, round(stop * self.diffusion.num_timesteps))

    def encode(self, score: ModelFn, x_start: Tensor, stop: float = 1.0) -> SolverState:
        """As `OdeSolver.encode`; of the steps, the fraction `stop` is taken."""
        return SolverState(self.diffusion.ddim_encode(score, x_start, stop=self._count(stop)), stop=stop)

    def decode(self, score: ModelFn, state: SolverState) -> Tensor:
        """As `OdeSolver.decode`."""
        return self.diffusion.ddim_sample_loop(score, state.x_T, start=self._count(state.stop))

    def noised(self, x_start: Tensor, noise: Tensor, stop: float = 1.0) -> SolverState:
        """Images with the noise of the level at which an encoding would have ended."""
        last = torch.full((len(x_start),), self._count(stop) - 1, device=x_start.device)
        return SolverState(self.diffusion.q_sample(x_start, last, noise), stop=stop)


class OdeSolver:
    """Solves the probability-flow ODE with a given number of network evaluations each way.

    Args:
        diffusion: the process of the network; of a `SpacedDiffusion` the process that it was taken from counts.
        kind: see `Solver`; a name is taken too.
        grid: see `Grid`; a name is taken too. Centred suits DPM-Solver++(2M), rho suits O-BELM.
        steps: evaluations, at least 2.

    Raises:
        InputError: for an unknown name, too few steps, or a process that has no flow to follow.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        kind: Solver | str = Solver.DPMPP2M,
        grid: Grid | str = Grid.CENTRED,
        steps: int = 25,
    ) -> None:
        self.kind, self.grid = _member(Solver, kind, "solver"), _member(Grid, grid, "grid")
        if steps < 2:
            raise InputError(f"steps: {steps} given, at least 2 are needed")
        if diffusion.model_mean_type is ModelMeanType.PREVIOUS_X:
            raise InputError("model_mean_type: previous_x given, epsilon, start_x or velocity is needed by the solvers")
        self.steps, self.diffusion = steps, diffusion
        self.schedule = NoiseSchedule.of(diffusion)

    def path(self, stop: float = 1.0) -> Path:
        """The noise levels between the clean image and the fraction `stop` of the process.

        Raises:
            InputError: unless 0 < stop <= 1 and more than one of the network's steps lies below.
        """
        if not 0 < stop <= 1:
            raise InputError(f"stop: {stop} given, a fraction above 0 and at most 1 is needed")
        total = self.schedule.num_timesteps
        if stop * total <= 1:
            raise InputError(f"stop: {stop} given, more than 1 of the {total} steps is needed")
        return noise_path(self.schedule, self.grid, self.steps, stop)

    @torch.no_grad()
    def encode(self, score: ModelFn, x_start: Tensor, stop: float = 1.0) -> SolverState:
        """Clean images to their noise, as `decode` would need it to give the images back.

        Args:
            score: called as score(x_t, t) with x_t (B, C, H, W) and fractional steps t (1,), float32 or finer, in the
                units that it was trained with; returns eps, x_0 or v as the process says, (B, C, H, W) or more
                channels, of which the first C count.
            x_start: (B, C, H, W) in [-1, 1]; nothing is clipped.
            stop: fraction of the process to encode through; 1 is all of it. All evaluations are spent below it.
        """
        path = self.path(stop)
        nodes = range(path.last + 1)
        x, older = self._run(score, path, plan(self.kind, path, nodes), x_start, None)
        return SolverState(x, older if self.kind is Solver.OBELM else None, stop)

    @torch.no_grad()
    def decode(self, score: ModelFn, state: SolverState) -> Tensor:
        """Noise to clean images (B, C, H, W), neither clipped nor rounded; `score` as in `encode`.

        With both states that `encode` returned, O-BELM inverts it exactly under the same score, and spends one
        evaluation less; with x_T alone its first step is DDIM's. The last step is DDIM's in every other case.
        """
        path = self.path(state.stop)
        nodes = range(path.last, CLEAN - 1, -1)
        if self.kind is Solver.OBELM and state.x_before is not None:
            steps = plan(self.kind, path, nodes[1:], before=path.last)
            return self._run(score, path, steps, state.x_before, state.x_T)[0]
        steps = [*plan(self.kind, path, nodes[:-1]), ddim_step(path, None, CLEAN + 1, CLEAN)]
        return self._run(score, path, steps, state.x_T, None)[0]

    def noised(self, x_start: Tensor, noise: Tensor, stop: float = 1.0) -> SolverState:
        """Images with the noise of the level at which an encoding would have ended."""
        path = self.path(stop)
        return SolverState(float(path.signal[-1]) * x_start + float(path.noise[-1]) * noise, stop=stop)

    def _run(
        self, score: ModelFn, path: Path, steps: Sequence[Step], x: Tensor, older: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Takes the steps from x; returns the last state and the history behind it.

        Coefficients are Python floats and times are filled on the device, so that nothing waits for the device.
        """
        channels, times = x.shape[1], self._times(path, x)
        image = x if self.kind is Solver.DPMPP2M and steps[0].node == CLEAN else None
        readings = [self._reading(path, step) for step in steps]
        for step, (from_x, from_output) in zip(steps, readings, strict=True):
            output = score(x, times[step.node])[:, :channels].to(x.dtype)
            # The product is a new tensor: CUDA graphs overwrite a network's output at its next call, not our history.
            prediction = output * from_output
            if from_x:
                prediction.add_(x, alpha=from_x)
            if image is not None and step.node == CLEAN + 1:  # what is read off this level is to be the image
                x = torch.add(x, image - prediction, alpha=float(path.signal[step.node]))
                prediction = image
            x_next = torch.add(x * step.x_weight, prediction, alpha=step.weight)
            if step.older_weight:
                assert older is not None
                x_next.add_(older, alpha=step.older_weight)
            x, older = x_next, x if self.kind is Solver.OBELM else prediction
        return x, older

    def _reading(self, path: Path, step: Step) -> tuple[float, float]:
        # Asked about the clean image, the network answers as at step 0: it knows no cleaner one.
        level = max(step.node, CLEAN + 1)
        signal, noise = float(path.signal[level]), float(path.noise[level])
        return reading(self.diffusion.model_mean_type, step.predicts, signal, noise)

    def _times(self, path: Path, x: Tensor) -> list[Tensor]:
        """The time (1,) of every node as the network sees it: in the whole process's steps, rescaled where asked.

        One for all images, so that a network embeds it once.
        """
        scale = 1000.0 / self.schedule.num_timesteps if self.diffusion.rescale_timesteps else 1.0
        dtype = torch.promote_types(x.dtype, torch.float32)
        return [torch.full((1,), float(t) * scale, dtype=dtype, device=x.device) for t in path.t]


def _member(allowed: type[MemberT], given: MemberT | str, name: str) -> MemberT:
    try:
        return allowed(given)
    except ValueError:
        names = ", ".join(str(member.value) for member in allowed)
        raise InputError(f"{name}: {given!r} given, allowed are {names}") from None
