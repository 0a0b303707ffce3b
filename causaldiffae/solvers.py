"""Solvers of the probability-flow ODE in both directions: x_0 -> x_T (abduction) and x_T -> x_0 (prediction).

With a = sqrt(abar_t), sigma = sqrt(1 - abar_t) and l = log(a / sigma), the flow (Song et al., 2021, arXiv 2011.13456,
eq. 13) is d(x / sigma) / dl = e^l x_0(x, t), or d(x / a) = eps(x, t) d(sigma / a).

DDIM is an exponential integrator of first order, which keeps the prediction constant over a step. DPM-Solver++(2M) (Lu
et al., 2022, arXiv 2211.01095, eq. 18) extrapolates x_0 from the previous step: second order with as many evaluations.
O-BELM (Wang et al., 2024, arXiv 2410.07761) is a leapfrog method in sigma / a, which can be inverted exactly from two
adjacent states. `ExactDdim` keeps the error of every decoding step, so that DDIM is inverted exactly as well.

The network is evaluated at fractional steps, with alpha-bar from `noise_schedule.py`. A path consists of the clean
image and `steps` noise levels from step 0 to the noisiest one. log-SNR is infinite at the clean image, so the step
between it and step 0 is always a DDIM step.

Decoding ends with the prediction of x_0 at step 0. DPM-Solver++(2M) therefore corrects its encoding at step 0,
x += a (image - x_0), using the evaluation made there. Decoding then predicts the image to second order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import TypeVar, cast

import torch
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion
from causaldiffae.nn import ModelFn, TensorFields
from causaldiffae.noise_schedule import CLEAN, Grid, ModelMeanType, Path, conversion, noise_path

CLEANEST = 2.5
"""log(a / sigma) at which exact DDIM starts to encode by default, sigma = 0.08."""
CLEANEST_OF_FOLDERS = 5.0
"""The same for images of a user's folder, sigma = 0.007: corrections of a noisier start carry the edges of figures."""

MemberT = TypeVar("MemberT", bound=Enum)


def cleanest_level(dataset: str, latent: bool) -> float:
    """log(a / sigma) at which exact DDIM starts to encode images of a data set, or their codes in latent space."""
    return CLEANEST_OF_FOLDERS if dataset == "folder" and not latent else CLEANEST


class Solver(Enum):
    """DDIM, DPM-Solver++(2M), O-BELM."""

    DDIM = "ddim"
    DPMPP2M = "dpmpp2m"
    OBELM = "obelm"


# ---------------------------------------------------------------------- steps


@dataclass(frozen=True)
class Step:
    """One network evaluation and the update x <- x_weight x + weight prediction + older_weight older.

    Attributes:
        node: index of x in the path, at which the network is evaluated.
        predicts: type of the prediction in the update, eps or x_0.
        older_weight: weight of the previous step's prediction, or of its state for O-BELM.
    """

    node: int
    predicts: ModelMeanType
    x_weight: float
    weight: float
    older_weight: float = 0.0

    def update(self, x: Tensor, prediction: Tensor) -> Tensor:
        """The next state, without the older one."""
        return torch.add(x * self.x_weight, prediction, alpha=self.weight)


StepRule = Callable[[Path, "int | None", int, int], Step]
"""(path, previous node or None, current node, next node) -> the step from the current to the next node."""


def ddim_step(path: Path, before: int | None, here: int, there: int) -> Step:
    """Keeps eps, or equivalently x_0, constant; the only rule that can start at the clean image."""
    scale = float(path.signal[there] / path.signal[here])
    return Step(here, ModelMeanType.EPSILON, scale, float(path.noise[there] - scale * path.noise[here]))


def dpmpp2m_step(path: Path, before: int | None, here: int, there: int) -> Step:
    """Extrapolates x_0 linearly in log-SNR from nodes `before` and `here` to the middle of the step.

    Without `before`, or if it is the clean image, x_0 is kept constant.
    """
    if here == CLEAN:
        return ddim_step(path, before, here, there)
    scale = float(path.noise[there] / path.noise[here])
    weight = float(path.signal[there] - scale * path.signal[here])
    extrapolation = 0.0
    if before is not None and before != CLEAN:
        l_before, l_here, l_there = (path.half_logsnr(node) for node in (before, here, there))
        extrapolation = (l_there - l_here) / (2 * (l_here - l_before))
    return Step(here, ModelMeanType.START_X, scale, weight * (1 + extrapolation), -weight * extrapolation)


def obelm_step(path: Path, before: int | None, here: int, there: int) -> Step:
    """Evaluates at `there` the parabola in sigma / a through x / a at `before` and `here` with slope eps at `here`.

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
    """Returns the steps through `nodes`, in order; `before` is the node of a known state that precedes them."""
    rule = STEP_RULES[kind]
    previous = [before, *nodes][: len(nodes) - 1]
    return [rule(path, last, here, there) for last, (here, there) in zip(previous, pairwise(nodes), strict=True)]


# ---------------------------------------------------------------------- solvers


@dataclass(frozen=True, repr=False)
class SolverState(TensorFields):
    """The result of encoding, from which decoding starts.

    Attributes:
        x_T: (B, C, H, W).
        x_before: (B, C, H, W), the state one level cleaner, which O-BELM needs for an exact inverse; None for other
            solvers, or if x_T was sampled.
        stop: fraction of the process that x_T corresponds to.
        corrections: (B, K, C, H, W), the errors of the K steps of exact DDIM, cleanest first; None for other solvers.
    """

    x_T: Tensor
    x_before: Tensor | None = None
    stop: float = 1.0
    corrections: Tensor | None = None


class DdimLoops:
    """The published DDIM loops of a diffusion process, with the interface of `OdeSolver`.

    Args:
        diffusion: process that defines the steps, for instance a `SpacedDiffusion` with 250 of 1000.
    """

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        self.diffusion = diffusion

    def _count(self, stop: float) -> int:
        _check_stop(stop)
        return max(1, round(stop * self.diffusion.num_timesteps))

    def encode(self, model: ModelFn, x_start: Tensor, stop: float = 1.0) -> SolverState:
        """As `OdeSolver.encode`; takes the fraction `stop` of the steps."""
        return SolverState(self.diffusion.ddim_encode(model, x_start, stop=self._count(stop)), stop=stop)

    def decode(self, model: ModelFn, state: SolverState) -> Tensor:
        """As `OdeSolver.decode`."""
        return self.diffusion.ddim_sample_loop(model, state.x_T, start=self._count(state.stop))

    def noised(self, x_start: Tensor, noise: Tensor, stop: float = 1.0) -> SolverState:
        """As `OdeSolver.noised`."""
        last = torch.full((len(x_start),), self._count(stop) - 1, device=x_start.device)
        return SolverState(self.diffusion.q_sample(x_start, last, noise), stop=stop)


class OdeSolver:
    """Solves the probability-flow ODE with a fixed number of network evaluations in each direction.

    Args:
        diffusion: diffusion process of the network; the base process of a `SpacedDiffusion` is used.
        kind: a `Solver` or its name.
        grid: a `Grid` or its name; CENTRED is recommended for DPM-Solver++(2M), RHO for O-BELM.
        steps: number of evaluations, at least 2.

    Raises:
        InputError: for an unknown name, fewer than 2 steps, or a process whose alpha-bar does not decrease.
    """

    cleanest: float | None = None
    """log(a / sigma) of the cleanest noise level; None for that of step 0."""

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        kind: Solver | str = Solver.DPMPP2M,
        grid: Grid | str = Grid.CENTRED,
        steps: int = 25,
    ) -> None:
        self.kind, self.grid = parse_enum(Solver, kind, "solver"), parse_enum(Grid, grid, "grid")
        if steps < 2:
            raise InputError(f"steps: expected at least 2, got {steps}")
        self.steps, self.diffusion = steps, diffusion
        self.schedule = diffusion.noise_schedule

    @property
    def time_scale(self) -> float:
        """Time in the units of the network per step t."""
        return self.schedule.max_timestep / self.schedule.num_timesteps

    def path(self, stop: float = 1.0) -> Path:
        """Returns the noise levels between the clean image and the fraction `stop` of the process.

        Raises:
            InputError: unless 0 < stop <= 1 and stop * T > 1.
        """
        _check_stop(stop)
        total = self.schedule.num_timesteps
        if stop * total <= 1:
            raise InputError(f"stop: expected more than 1 of the {total} steps, got {stop}")
        return noise_path(self.schedule, self.grid, self.steps, stop, self.cleanest)

    @torch.no_grad()
    def encode(self, model: ModelFn, x_start: Tensor, stop: float = 1.0) -> SolverState:
        """Encodes clean images into the noise that `decode` maps back to them.

        Args:
            model: called as model(x_t, t) with x_t (B, C, H, W) and fractional steps t (1,), in float32 or float64 and
                in the time units of the network; returns eps, x_0 or v (the `mean_type` of the process) with C or more
                channels, of which the first C are used.
            x_start: (B, C, H, W) in [-1, 1]; predictions are not clipped.
            stop: fraction of the process to encode; all evaluations lie within it.
        """
        path = self.path(stop)
        x, older = self._run(model, path, self._plan(path, CLEAN, path.last), x_start, None)
        return SolverState(x, older if self.kind is Solver.OBELM else None, stop)

    @torch.no_grad()
    def decode(self, model: ModelFn, state: SolverState) -> Tensor:
        """Decodes noise into images (B, C, H, W), neither clipped nor rounded; `model` as in `encode`.

        Given both states of `encode`, O-BELM inverts it exactly under the same model and saves one evaluation; given
        only x_T, its first step is a DDIM step. In all other cases the last step is a DDIM step.
        """
        path = self.path(state.stop)
        if self.kind is Solver.OBELM and state.x_before is not None:
            steps = plan(self.kind, path, range(path.last - 1, CLEAN - 1, -1), before=path.last)
            return self._run(model, path, steps, state.x_before, state.x_T)[0]
        return self._run(model, path, self._plan(path, path.last, CLEAN), state.x_T, None)[0]

    def noised(self, x_start: Tensor, noise: Tensor, stop: float = 1.0) -> SolverState:
        """Adds noise at the level at which encoding ends."""
        path = self.path(stop)
        return SolverState(float(path.signal[-1]) * x_start + float(path.noise[-1]) * noise, stop=stop)

    def _plan(self, path: Path, start: int, end: int) -> list[Step]:
        """The steps from one node to another; the step to the clean image is always a DDIM step."""
        if start < end:
            return plan(self.kind, path, range(start, end + 1))
        if end == CLEAN:
            return [*plan(self.kind, path, range(start, CLEAN, -1)), ddim_step(path, None, CLEAN + 1, CLEAN)]
        return plan(self.kind, path, range(start, end - 1, -1))

    def _run(
        self, model: ModelFn, path: Path, steps: Sequence[Step], x: Tensor, older: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Takes the steps from x; returns the last state and the previous state or prediction.

        Coefficients are Python floats and times are created on the device, to avoid synchronisation.
        """
        times = self._times(path, steps, x)
        image = x if self.kind is Solver.DPMPP2M and steps[0].node == CLEAN else None
        for step, time in zip(steps, times, strict=True):
            prediction = self._prediction(model, path, step, time, x)
            if image is not None and step.node == CLEAN + 1:  # the correction at step 0, see the module docstring
                x = torch.add(x, image - prediction, alpha=float(path.signal[step.node]))
                prediction = image
            x_next = step.update(x, prediction)
            if step.older_weight:
                assert older is not None
                x_next.add_(older, alpha=step.older_weight)
            x, older = x_next, x if self.kind is Solver.OBELM else prediction
        return x, older

    def _prediction(self, model: ModelFn, path: Path, step: Step, time: Tensor, x: Tensor) -> Tensor:
        """What the step needs, eps or x_0, from the output of the network at x."""
        level = max(step.node, CLEAN + 1)  # at the clean image the network is evaluated at step 0
        signal, noise = float(path.signal[level]), float(path.noise[level])
        of_x, of_output = conversion(self.schedule.mean_type, step.predicts, signal, noise)
        # Not in place: CUDA graphs overwrite the output of a network at its next call.
        prediction = model(x, time)[:, : x.shape[1]].to(x.dtype) * of_output
        return prediction.add_(x, alpha=of_x) if of_x else prediction

    def _times(self, path: Path, steps: Sequence[Step], x: Tensor) -> list[Tensor]:
        """The time (1,) of every step in the units of the network, shared by the batch to embed it once."""
        scale, dtype = self.time_scale, torch.promote_types(x.dtype, torch.float32)
        times = [float(path.t[step.node]) * scale for step in steps]
        return [torch.full((1,), time, dtype=dtype, device=x.device) for time in times]


class ExactDdim(OdeSolver):
    """DDIM whose encoding is inverted exactly by decoding, with any number of steps.

    Encoding starts at the scaled image a x_0 of the noise level `cleanest` and takes DDIM steps x_0 = x^(0) -> x^(1) ->
    ... -> x^(K). The network output at x^(k) is also that of the decoding step D_k back to x^(k-1), whose error is kept
    as a correction (as the noise maps of Huberman-Spiegelglas et al., 2024, arXiv 2304.06140, for DDPM sampling):

        r_k = x^(k-1) - D_k(x^(k), z),    decoding:    y^(k-1) = D_k(y^(k), z') + r_k

    Under the factual z, decoding returns the image. Under another z', the corrections carry what `steps` evaluations
    lose of the image: they are abducted like x_T. Without corrections, for random noise, decoding is that of
    `OdeSolver`.

    Args:
        diffusion: diffusion process of the network.
        steps: number of evaluations in each direction, at least 2.
        grid: a `Grid` or its name.
        kind: solver for random noise.
        cleanest: log(a / sigma) at which encoding starts.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        steps: int,
        grid: Grid | str = Grid.LOGSNR,
        kind: Solver | str = Solver.DPMPP2M,
        cleanest: float = CLEANEST,
    ) -> None:
        super().__init__(diffusion, kind, grid, steps)
        self.cleanest = cleanest

    @torch.no_grad()
    def encode(self, model: ModelFn, x_start: Tensor, stop: float = 1.0) -> SolverState:
        """As `OdeSolver.encode`; the state has corrections."""
        return self.differentiable_encode(model, x_start, stop)

    @torch.no_grad()
    def decode(self, model: ModelFn, state: SolverState) -> Tensor:
        """As `OdeSolver.decode`, with the corrections of the state."""
        return super().decode(model, state) if state.corrections is None else self.differentiable_decode(model, state)

    def differentiable_encode(self, model: ModelFn, x_start: Tensor, stop: float = 1.0) -> SolverState:
        """As `encode`, with gradients."""
        path = self.path(stop)
        x, cleaner, kept = float(path.signal[CLEAN + 1]) * x_start, x_start, []
        for node in range(CLEAN + 1, path.last + 1):
            back = ddim_step(path, None, node, node - 1)
            eps = self._eps(model, path, back, x)
            kept.append(cleaner - back.update(x, eps))
            if node < path.last:
                cleaner, x = x, ddim_step(path, None, node, node + 1).update(x, eps)
        return SolverState(x, stop=stop, corrections=torch.stack(kept, dim=1))

    def differentiable_decode(self, model: ModelFn, state: SolverState) -> Tensor:
        """As `decode`, with gradients; the state must have corrections."""
        path, x = self.path(state.stop), state.x_T
        corrections = cast(Tensor, state.corrections)
        for node in range(path.last, CLEAN, -1):
            back = ddim_step(path, None, node, node - 1)
            x = back.update(x, self._eps(model, path, back, x)) + corrections[:, node - 1]
        return x

    def _eps(self, model: ModelFn, path: Path, step: Step, x: Tensor) -> Tensor:
        return self._prediction(model, path, step, self._times(path, [step], x)[0], x)


def _check_stop(stop: float) -> None:
    if not 0 < stop <= 1:
        raise InputError(f"stop: expected a fraction in (0, 1], got {stop}")


def parse_enum(allowed: type[MemberT], given: MemberT | str, name: str) -> MemberT:
    """Returns a member by value; raises `InputError`, starting with `name`, for an unknown value."""
    try:
        return allowed(given)
    except ValueError:
        names = ", ".join(str(member.value) for member in allowed)
        raise InputError(f"{name}: expected one of {names}, got {given!r}") from None
