"""Noise schedules: named betas, alpha-bar at integer and fractional steps, and conversion of model outputs.

The forward process is x_t = a x_0 + sigma eps with a = sqrt(abar_t) and sigma = sqrt(1 - abar_t). Solvers evaluate the
network between its training steps. `NoiseSchedule` interpolates alpha-bar there, as NumPy arrays for solvers and as
tensors on the device for guidance and thresholding. `noise_path` chooses the noise levels at which a solver evaluates
the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.nn import float_for_tables, table_on

BETA_SCHEDULES = ("linear", "cosine")
MAX_BETA = 0.999
RHO = 7.0
CENTRE_WIDTH = 3.0
CLEAN = 0
"""Index of the clean image in a path."""
MIN_HALF_LOGSNR = -6.0
"""log(a / sigma) below which the signal is negligible: 0.3 grey levels at a noise level of 127."""


def get_named_beta_schedule(schedule_name: str, num_diffusion_timesteps: int) -> np.ndarray:
    """Returns the (T,) float64 betas of a named schedule.

    "linear" is 1e-4 .. 0.02 for T = 1000 (Ho et al., 2020, arXiv 2006.11239), scaled by 1000 / T; "cosine" is eq. 17 of
    Nichol and Dhariwal (2021, arXiv 2102.09672).

    Raises:
        InputError: for an unknown name, T < 1, or T <= 20 with the linear schedule, whose betas would reach 1.
    """
    if num_diffusion_timesteps < 1:
        raise InputError(f"diffusion_steps: expected at least 1, got {num_diffusion_timesteps}")
    if schedule_name == "linear":
        scale = 1000 / num_diffusion_timesteps
        if scale * 0.02 >= 1:
            raise InputError(
                f"diffusion_steps: expected more than 20 for the linear schedule, got {num_diffusion_timesteps}"
            )
        return np.linspace(scale * 1e-4, scale * 0.02, num_diffusion_timesteps, dtype=np.float64)
    if schedule_name == "cosine":
        return betas_for_alpha_bar(num_diffusion_timesteps, lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2)
    raise InputError(f"noise_schedule: expected one of {', '.join(BETA_SCHEDULES)}, got {schedule_name!r}")


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = MAX_BETA
) -> np.ndarray:
    """Returns the (T,) betas, at most `max_beta`, that discretize a function alpha-bar(t) of t in [0, 1]."""
    grid = [alpha_bar(i / num_diffusion_timesteps) for i in range(num_diffusion_timesteps + 1)]
    return np.array([min(1 - after / before, max_beta) for before, after in pairwise(grid)])


def enforce_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(alpha-bar) so that it ends at 0 and keeps its first value; returns the (T,) betas.

    The last step is then pure noise, from which sampling starts (Lin et al., 2024, arXiv 2305.08891, algorithm 1). The
    last beta is 1.
    """
    if len(betas) < 2:
        raise InputError(f"zero_terminal_snr: expected at least 2 diffusion_steps, got {len(betas)}")
    signal = np.sqrt(np.cumprod(1.0 - np.asarray(betas, dtype=np.float64)))
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    alphas_cumprod = signal**2
    return 1.0 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])


def with_positive_end(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Replaces a last alpha-bar of 0 in (T,) values, so that log-SNR is finite and can be interpolated.

    The last value becomes the one before it times the last ratio; its signal is below a thousandth of the noise.
    """
    if len(alphas_cumprod) < 3 or alphas_cumprod[-1] > 0:
        return alphas_cumprod
    return np.append(alphas_cumprod[:-1], alphas_cumprod[-2] ** 2 / alphas_cumprod[-3])


class ModelMeanType(Enum):
    """What the network predicts: x_0, eps, or v = a eps - sigma x_0."""

    START_X = "start_x"
    EPSILON = "epsilon"
    VELOCITY = "velocity"


def conversion(given: ModelMeanType, target: ModelMeanType, a: Any, sigma: Any) -> tuple[Any, Any]:
    """Returns (c, d) with target = c x_t + d given, to convert between eps, x_0 and v at one noise level.

    Args:
        a, sigma: numbers or tensors, with x_t = a x_0 + sigma eps.
    """
    if given is target:
        return 0.0 * a, 1.0 + 0.0 * a
    start, eps, v = ModelMeanType.START_X, ModelMeanType.EPSILON, ModelMeanType.VELOCITY
    return {
        (eps, start): (1 / a, -sigma / a),
        (v, start): (a, -sigma),
        (start, eps): (1 / sigma, -a / sigma),
        (v, eps): (sigma, a),
        (start, v): (a / sigma, -1 / sigma),
        (eps, v): (-sigma / a, 1 / a),
    }[given, target]


def min_snr_weights(alphas_cumprod: np.ndarray, mean_type: ModelMeanType, gamma: float) -> np.ndarray:
    """Returns the (T,) loss weights for which the squared error of x_0 has weight min(SNR, gamma).

    Hang et al., 2023, arXiv 2303.09556. A last step with zero SNR, where sampling starts, keeps weight 1 instead of 0.
    Weights are scaled to mean 1, which preserves the balance with other loss terms; all are 1 if gamma is 0.
    """
    if not gamma:
        return np.ones(len(alphas_cumprod))
    snr = alphas_cumprod / (1.0 - alphas_cumprod)
    of_xstart = np.minimum(snr, gamma)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = {
            ModelMeanType.START_X: of_xstart,
            ModelMeanType.EPSILON: of_xstart / snr,
            ModelMeanType.VELOCITY: of_xstart / (snr + 1.0),
        }[mean_type]
    weights = np.where(snr > 0, weights, 1.0)
    return weights / weights.mean()


class Level(NamedTuple):
    """Signal a and noise sigma of x_t = a x_0 + sigma eps, each (B, 1, 1, 1)."""

    signal: Tensor
    noise: Tensor


class NoiseSchedule:
    """alpha-bar at fractional steps 0 <= t <= T - 1.

    Interpolates -log alpha-bar, the integral of the noise rate, which is 0 at the clean image (t = -1) and nearly a
    polynomial in t. The monotone cubic interpolant (PCHIP) has a continuous derivative and is exact at integer steps.

    Args:
        alphas_cumprod: (T,) decreasing, in (0, 1).
        mean_type: type of the model output.
        max_timestep: T in the time units of the network; by default T.

    Raises:
        InputError: if alpha-bar does not decrease at every step, or reaches 0.
    """

    def __init__(
        self,
        alphas_cumprod: np.ndarray,
        mean_type: ModelMeanType = ModelMeanType.EPSILON,
        max_timestep: float | None = None,
    ) -> None:
        attenuation = -np.log(np.maximum(np.append(1.0, alphas_cumprod), np.finfo(np.float64).tiny))
        if not (alphas_cumprod > 0).all() or not (np.diff(attenuation) > 0).all():
            raise InputError("diffusion: expected positive, strictly decreasing alpha-bar")
        self.num_timesteps = len(alphas_cumprod)
        self.mean_type = mean_type
        self.max_timestep = float(self.num_timesteps) if max_timestep is None else max_timestep
        self._attenuation = PchipInterpolator(np.arange(-1, self.num_timesteps), attenuation)
        self._coefficients = torch.from_numpy(self._attenuation.c.copy())

    def half_logsnr(self, t: np.ndarray) -> np.ndarray:
        """log(a / sigma) at steps t, any shape."""
        return -0.5 * np.log(np.expm1(self._attenuation(t)))

    def signal_and_noise(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """a and sigma at steps t, any shape."""
        attenuation = self._attenuation(t)
        return np.exp(-attenuation / 2), np.sqrt(-np.expm1(-attenuation))

    def step_of(self, half_logsnr: np.ndarray) -> np.ndarray:
        """The inverse of `half_logsnr`, by bisection; levels outside the schedule are clamped."""
        target = np.log1p(np.exp(-2.0 * half_logsnr))
        low, high = np.zeros_like(target), np.full_like(target, self.num_timesteps - 1.0)
        for _ in range(60):
            middle = (low + high) / 2
            too_clean = self._attenuation(middle) < target
            low, high = np.where(too_clean, middle, low), np.where(too_clean, high, middle)
        return (low + high) / 2

    def level(self, t: Tensor, like: Tensor) -> Level:
        """a and sigma at steps t (B,) in the time units of the network, in the dtype of `like`.

        Everything stays on the device of t.
        """
        dtype = float_for_tables(t.device)
        if self._coefficients.device != t.device:
            self._coefficients = table_on(t.device, self._attenuation.c.copy())
        steps = (t.to(dtype) * (self.num_timesteps / self.max_timestep)).clamp(0, self.num_timesteps - 1)
        interval = (steps.floor().long() + 1).clamp(max=self.num_timesteps - 1)  # interval i begins at step i - 1
        offset = steps - (interval - 1)
        c3, c2, c1, c0 = self._coefficients[:, interval]
        attenuation = ((c3 * offset + c2) * offset + c1) * offset + c0
        shape = (-1, *[1] * (like.dim() - 1))
        signal, noise = torch.exp(-attenuation / 2), torch.sqrt(-torch.expm1(-attenuation))
        return Level(signal.to(like.dtype).reshape(shape), noise.to(like.dtype).reshape(shape))

    def xstart(self, output: Tensor, x_t: Tensor, level: Level) -> Tensor:
        """The x_0 that a model output (B, C, H, W) at x_t implies."""
        of_x, of_output = conversion(self.mean_type, ModelMeanType.START_X, *level)
        return of_x * x_t + of_output * output

    def output_of_xstart(self, x_start: Tensor, x_t: Tensor, level: Level) -> Tensor:
        """The model output that implies x_0: the inverse of `xstart`."""
        of_x, of_start = conversion(ModelMeanType.START_X, self.mean_type, *level)
        return of_x * x_t + of_start * x_start

    def output_of_eps_change(self, change: Tensor, level: Level) -> Tensor:
        """The change of the model output that adds `change` to eps at the same x_t."""
        return conversion(ModelMeanType.EPSILON, self.mean_type, *level)[1] * change


# ---------------------------------------------------------------------- the noise levels of a solver


class Grid(Enum):
    """The spacing of the noise levels.

    CENTRED is even in asinh(log(a / sigma) / CENTRE_WIDTH): log-SNR with more steps where signal and noise are similar.
    LOGSNR is even in log-SNR, RHO in (sigma / a)^(1/7) (Karras et al., 2022, arXiv 2206.00364, eq. 5), UNIFORM in t.
    """

    CENTRED = "centred"
    LOGSNR = "logsnr"
    RHO = "rho"
    UNIFORM = "uniform"


SPACINGS: dict[Grid, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    Grid.CENTRED: (lambda level: np.arcsinh(level / CENTRE_WIDTH), lambda even: CENTRE_WIDTH * np.sinh(even)),
    Grid.LOGSNR: (lambda level: level, lambda even: even),
    Grid.RHO: (lambda level: np.exp(-level / RHO), lambda even: -RHO * np.log(even)),
}
"""The function of log(a / sigma) that a grid spaces evenly, and its inverse, by grid."""


@dataclass(frozen=True)
class Path:
    """Noise levels from clean to noisy, N + 1 nodes each; node 0 is the clean image.

    Attributes:
        t: time steps; at the clean image the network is evaluated at step 0.
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


def noise_path(
    schedule: NoiseSchedule, grid: Grid, steps: int, stop: float = 1.0, cleanest: float | None = None
) -> Path:
    """Returns the clean image and `steps` >= 2 noise levels, from step 0 to step stop * T - 1, spaced by `grid`.

    With `cleanest`, the first level is that of this log(a / sigma), if it lies between the two. The path ends where
    log(a / sigma) falls below MIN_HALF_LOGSNR, as it does at the end of a cosine schedule.
    """
    end = stop * schedule.num_timesteps - 1.0
    highest, noisiest = schedule.half_logsnr(np.array([0.0, end])).tolist()
    if noisiest < MIN_HALF_LOGSNR:
        noisiest, end = MIN_HALF_LOGSNR, float(schedule.step_of(np.array(MIN_HALF_LOGSNR)))
    start = 0.0
    if cleanest is None or not noisiest < cleanest < highest:
        cleanest = highest
    else:
        start = float(schedule.step_of(np.array(cleanest)))
    if grid is Grid.UNIFORM:
        t = np.linspace(start, end, steps)
    else:
        spacing, inverse = SPACINGS[grid]
        t = schedule.step_of(inverse(np.linspace(spacing(cleanest), spacing(noisiest), steps)))
    t[[0, -1]] = start, end
    signal, noise = schedule.signal_and_noise(t)
    return Path(np.append(0.0, t), np.append(1.0, signal), np.append(0.0, noise))
