"""Diffused Gaussians, whose score and probability flow have closed forms, and orders of convergence."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from causaldiffae.noise_schedule import ModelMeanType, NoiseSchedule


def levels(schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise at steps t (B,), each (B, 1, 1, 1), by numpy in float64."""
    signal, noise = (torch.from_numpy(each).reshape(-1, 1, 1, 1) for each in schedule.signal_and_noise(t.numpy()))
    return signal, noise


def gaussian_eps(x_t: Tensor, signal: Any, noise: Any, mean: Any, std: float) -> Tensor:
    """E[eps | x_t] for x_0 ~ N(mean, std^2) and x_t = signal x_0 + noise eps."""
    return noise * (x_t - signal * mean) / (signal**2 * std**2 + noise**2)


def gaussian_flow(x: Tensor, start: tuple[Any, Any], end: tuple[Any, Any], mean: float, std: float) -> Tensor:
    """The solution of the probability-flow ODE between two levels (signal, noise): (x_t - E x_t) / std x_t is kept."""
    before, after = (math.sqrt(signal**2 * std**2 + noise**2) for signal, noise in (start, end))
    return end[0] * mean + after * (x - start[0] * mean) / before


def as_output(mean_type: ModelMeanType, x_start: Tensor, eps: Tensor, signal: Any, noise: Any) -> Tensor:
    """The output of a network of this kind that predicts x_0 and eps."""
    return {
        ModelMeanType.EPSILON: eps,
        ModelMeanType.START_X: x_start,
        ModelMeanType.VELOCITY: signal * eps - noise * x_start,
    }[mean_type]


def orders(errors: list[float]) -> list[float]:
    """Orders of convergence: the number of halvings of the error each time the number of steps is doubled."""
    return [math.log2(before / after) for before, after in pairwise(errors)]
