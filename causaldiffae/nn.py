"""Small layers that the networks share.

The names and shapes follow guided-diffusion (Dhariwal and Nichol, 2021, arXiv 2105.05233), so that public checkpoints
of that family open here: group normalisation in 32 groups computed in float32, sinusoidal time embeddings with the
cosines first, and modules that start as zero so that a residual block starts as the identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_GROUPS = 32

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class GroupNorm32(nn.GroupNorm):
    """Group normalisation whose statistics are taken in at least float32, whatever the activations' dtype."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.bfloat16, torch.float16):
            # The kernel accumulates in float32; weights may stay float32 when only activations are low precision.
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return super().forward(x)


def normalization(channels: int) -> GroupNorm32:
    """Group normalisation in 32 groups; `channels` must be a multiple of 32."""
    return GroupNorm32(NUM_GROUPS, channels)


def zero_module(module: ModuleT) -> ModuleT:
    """Sets every parameter of `module` to zero and returns it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def repeat_times(t: Tensor, count: int) -> Tensor:
    """Times of `count` copies of a batch: (B,) -> (count * B,); one time (1,) for all images stays one."""
    return t if len(t) == 1 else t.repeat(count)


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding of (possibly fractional) time steps.

    Args:
        timesteps: (B,) of any real dtype.
        dim: width of the embedding; an odd width gets one zero column.
        max_period: longest wave length.

    Returns:
        (B, dim) float32: cosines, then sines, of frequencies that fall geometrically from 1 to 1 / max_period.
    """
    half = dim // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    )
    angles = timesteps[:, None].float() * frequencies[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


def mlp(widths: Sequence[int], activation: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    """A multilayer perceptron through the given widths, with the activation between layers and none at the end."""
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        if i:
            layers.append(activation())
        layers.append(nn.Linear(fan_in, fan_out))
    return nn.Sequential(*layers)


def mean_flat(x: Tensor) -> Tensor:
    """Mean over every axis but the first: (B, ...) -> (B,)."""
    return x.flatten(1).mean(dim=1)


def sum_flat(x: Tensor) -> Tensor:
    """Sum over every axis but the first: (B, ...) -> (B,)."""
    return x.flatten(1).sum(dim=1)


@torch.no_grad()
def update_ema(target: Iterable[Tensor], source: Iterable[Tensor], rate: float) -> None:
    """Moves `target` towards `source`: target = rate * target + (1 - rate) * source, in place, in target's dtype."""
    torch._foreach_lerp_(list(target), list(source), 1.0 - rate)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
