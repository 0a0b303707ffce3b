"""Timestep samplers for training.

Timesteps are sampled uniformly, or in proportion to the square root of the second moment of their recent losses (Nichol
and Dhariwal, 2021, arXiv 2102.09672, section 3.3). Importance weights keep the expected loss unchanged.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from causaldiffae import dist_util
from causaldiffae.errors import InputError
from causaldiffae.nn import float_for_tables

SAMPLERS = ("uniform", "loss-second-moment")


class TimestepDraw(NamedTuple):
    """Timesteps (B,) int64 and importance weights of their losses (B,) float32."""

    t: Tensor
    weights: Tensor


class UniformSampler:
    """Samples timesteps uniformly; all importance weights are 1."""

    def __init__(self, num_timesteps: int) -> None:
        self.num_timesteps = num_timesteps

    def weights(self) -> np.ndarray:
        """Returns the unnormalised sampling probabilities (T,)."""
        return np.ones(self.num_timesteps)

    def sample(self, batch_size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> TimestepDraw:
        """Samples a batch of timesteps on the device of the generator; returns tensors on `device`."""
        p = self.weights() / self.weights().sum()
        dtype = float_for_tables(generator.device)
        uniform = torch.rand(batch_size, generator=generator, dtype=dtype, device=generator.device).cpu().double()
        t = torch.from_numpy(np.searchsorted(np.cumsum(p), uniform.numpy(), side="right").clip(max=len(p) - 1))
        weights = torch.from_numpy(1.0 / (len(p) * p[t.numpy()])).float()
        return TimestepDraw(t.to(device), weights.to(device))

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Records timesteps and losses (B,) of a batch; a collective operation, called by all processes."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        del state


class LossSecondMomentResampler(UniformSampler):
    """Samples in proportion to sqrt(E[loss^2]) of recent losses, once every timestep has a full history."""

    def __init__(self, num_timesteps: int, history_per_term: int = 10, uniform_prob: float = 0.001) -> None:
        super().__init__(num_timesteps)
        self.history_per_term, self.uniform_prob = history_per_term, uniform_prob
        self._history = np.zeros((num_timesteps, history_per_term))
        self._count = np.zeros(num_timesteps, dtype=np.int64)

    def weights(self) -> np.ndarray:
        if (self._count < self.history_per_term).any():
            return np.ones(self.num_timesteps)
        weights = np.sqrt((self._history**2).mean(axis=1))
        weights /= weights.sum()
        return weights * (1 - self.uniform_prob) + self.uniform_prob / len(weights)

    def update(self, t: Tensor, losses: Tensor) -> None:
        dtype = float_for_tables(t.device)
        everyone = dist_util.all_gather(torch.stack([t.to(dtype), losses.detach().to(dtype)]))
        for step, loss in torch.cat(everyone, dim=1).T.cpu().tolist():
            i = int(step)
            if self._count[i] == self.history_per_term:
                self._history[i] = np.append(self._history[i][1:], loss)
            else:
                self._history[i, self._count[i]] = loss
                self._count[i] += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"history": torch.from_numpy(self._history.copy()), "count": torch.from_numpy(self._count.copy())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state:  # a run that began with another sampler has none
            self._history, self._count = state["history"].numpy().copy(), state["count"].numpy().copy()


def create_named_schedule_sampler(name: str, num_timesteps: int) -> UniformSampler:
    """Creates a sampler by its name in `SAMPLERS`."""
    if name == "uniform":
        return UniformSampler(num_timesteps)
    if name == "loss-second-moment":
        return LossSecondMomentResampler(num_timesteps)
    raise InputError(f"schedule_sampler: expected one of {', '.join(SAMPLERS)}, got {name!r}")
