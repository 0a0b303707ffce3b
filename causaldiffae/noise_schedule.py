"""What a network's output means at fractional steps t, on the device: x_0 and eps from it, and it from them.

A process gives x_t = a x_0 + sigma eps with a = sqrt(abar_t), sigma = sqrt(1 - abar_t). Guidance that is not a mixture
of network outputs (the gradient of a predictor, thresholding) needs a and sigma where a solver asks, which may be
between steps: -log abar is interpolated linearly between the process's steps, as tensors, so that nothing waits for
the device.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion, ModelMeanType
from causaldiffae.nn import ModelFn


class NoiseSchedule:
    """alpha-bar at fractional steps 0 <= t <= T - 1 of a process.

    What is interpolated is -log alpha-bar, the noise rate's integral: it is 0 for the clean image, which counts as
    t = -1, and nearly a polynomial in t. The interpolant (monotone cubic) has a continuous derivative, grows strictly
    and meets every step.

    Args:
        alphas_cumprod: (T,) falling, in (0, 1).
    """

    def __init__(self, alphas_cumprod: np.ndarray) -> None:
        attenuation = -np.log(np.maximum(np.append(1.0, alphas_cumprod), np.finfo(np.float64).tiny))
        if not (alphas_cumprod > 0).all() or not (np.diff(attenuation) > 0).all():
            raise InputError("diffusion: alpha-bar must fall at every step and stay above 0, for log-SNR to be finite")
        self.num_timesteps = len(alphas_cumprod)
        self._attenuation = PchipInterpolator(np.arange(-1, self.num_timesteps), attenuation)

    @classmethod
    def of(cls, diffusion: GaussianDiffusion) -> NoiseSchedule:
        """The schedule that the network was trained on, also where `diffusion` keeps only some of its steps."""
        return cls(diffusion.base_alphas_cumprod)

    def half_logsnr(self, t: np.ndarray) -> np.ndarray:
        """l = log(a / sigma) at steps t, any shape."""
        return -0.5 * np.log(np.expm1(self._attenuation(t)))

    def signal_and_noise(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """a = sqrt(abar) and sigma = sqrt(1 - abar) at steps t, any shape."""
        attenuation = self._attenuation(t)
        return np.exp(-attenuation / 2), np.sqrt(-np.expm1(-attenuation))

    def step_of(self, half_logsnr: np.ndarray) -> np.ndarray:
        """The inverse of `half_logsnr`, by bisection; levels outside the schedule give its ends."""
        wanted = np.log1p(np.exp(-2.0 * half_logsnr))
        low, high = np.zeros_like(wanted), np.full_like(wanted, self.num_timesteps - 1.0)
        for _ in range(60):
            middle = (low + high) / 2
            too_clean = self._attenuation(middle) < wanted
            low, high = np.where(too_clean, middle, low), np.where(too_clean, high, middle)
        return (low + high) / 2


class Level(NamedTuple):
    """a and sigma of x_t = a x_0 + sigma eps, each (B, 1, 1, 1)."""

    signal: Tensor
    noise: Tensor


class NoiseLevels:
    """The levels of a process, by the step t as its network sees it.

    Args:
        diffusion: the process; of a respaced one, the process that the network was trained on counts.

    Raises:
        InputError: if the network predicts x_{t-1}, of which nothing here speaks.
    """

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        if diffusion.model_mean_type is ModelMeanType.PREVIOUS_X:
            raise InputError("model_mean_type: previous_x given, epsilon, start_x or velocity is needed by guidance")
        self.mean_type = diffusion.model_mean_type
        self.attenuation = torch.from_numpy(-np.log(diffusion.base_alphas_cumprod))
        steps = len(self.attenuation)
        self.max_timestep = 1000.0 if diffusion.rescale_timesteps else float(steps)

    def at(self, t: Tensor, like: Tensor) -> Level:
        """a and sigma at steps t (B,), whole or fractional, in `like`'s dtype."""
        if self.attenuation.device != t.device:
            self.attenuation = self.attenuation.to(t.device)
        last = len(self.attenuation) - 1
        place = (t.double() * ((last + 1) / self.max_timestep)).clamp(0, last)
        below = place.floor().long().clamp(max=max(last - 1, 0))
        share = place - below
        attenuation = (1 - share) * self.attenuation[below] + share * self.attenuation[(below + 1).clamp(max=last)]
        shape = (-1, *[1] * (like.dim() - 1))
        signal, noise = torch.exp(-attenuation / 2), torch.sqrt(-torch.expm1(-attenuation))
        return Level(signal.to(like.dtype).reshape(shape), noise.to(like.dtype).reshape(shape))

    def xstart(self, output: Tensor, x_t: Tensor, level: Level) -> Tensor:
        """x_0 that an output (B, C, H, W) of the network at x_t stands for."""
        if self.mean_type is ModelMeanType.START_X:
            return output
        if self.mean_type is ModelMeanType.VELOCITY:
            return level.signal * x_t - level.noise * output
        return (x_t - level.noise * output) / level.signal

    def output_of_xstart(self, x_start: Tensor, x_t: Tensor, level: Level) -> Tensor:
        """The output that stands for x_0: the inverse of `xstart`."""
        if self.mean_type is ModelMeanType.START_X:
            return x_start
        if self.mean_type is ModelMeanType.VELOCITY:
            return (level.signal * x_t - x_start) / level.noise
        return (x_t - level.signal * x_start) / level.noise

    def output_of_eps_change(self, change: Tensor, level: Level) -> Tensor:
        """How the output changes where eps changes by `change` at the same x_t."""
        if self.mean_type is ModelMeanType.EPSILON:
            return change
        if self.mean_type is ModelMeanType.VELOCITY:
            return change / level.signal
        return -level.noise / level.signal * change


def thresholded(score: ModelFn, levels: NoiseLevels, quantile: float) -> ModelFn:
    """Dynamic thresholding of the predicted x_0 (Saharia et al., 2022, arXiv 2205.11487, section 2.3).

    Each image's x_0 is clipped to [-q, q] and divided by q, where q is the quantile of |x_0|, at least 1. Where that
    changes anything the step cannot be inverted, so it is for decoding only.

    Args:
        score: (x_t, t) -> the network's output (B, C, H, W).
        quantile: 0.99, say.
    """

    def score_within_range(x_t: Tensor, t: Tensor) -> Tensor:
        output = score(x_t, t)[:, : x_t.shape[1]]
        level = levels.at(t, x_t)
        x_start = levels.xstart(output, x_t, level)
        bound = torch.quantile(x_start.flatten(1).abs().float(), quantile, dim=1).clamp(min=1.0).to(x_start.dtype)
        bound = bound.reshape(-1, *[1] * (x_t.dim() - 1))
        return levels.output_of_xstart(x_start.clamp(-bound, bound) / bound, x_t, level)

    return score_within_range
