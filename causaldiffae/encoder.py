"""The causal encoder: image -> Gaussian posterior q(u | x0) over the exogenous noise, one block per variable.

Strided 3x3 convolutions, normalisation and leaky ReLU, then two linear heads for the mean and, through softplus, the
variance (CausalDiffAE, section 4.1 and its published network). The published network uses batch normalisation;
`norm="none"` preserves absolute grey levels and gives identical results for any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from causaldiffae.errors import InputError

NORMS = ("batch", "none")
MIN_VARIANCE = 1e-8


class Posterior(NamedTuple):
    """A diagonal Gaussian over the blocks: mean and log-variance, each (B, n, d)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Returns mean + exp(logvar / 2) * noise, with noise (B, n, d)."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise


class CausalEncoder(nn.Module):
    """The network of q(u | x0).

    Args:
        image_size, in_channels: size in pixels and number of channels of the images.
        num_variables, block_size: n and d of the latents (B, n, d).
        channels: widths of the convolutions; each halves the resolution, rounded up.
        norm: one of `NORMS`.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        num_variables: int,
        block_size: int,
        channels: Sequence[int],
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise InputError(f"encoder_norm: expected one of {', '.join(NORMS)}, got {norm!r}")
        self.num_variables, self.block_size = num_variables, block_size
        layers, side = [], image_size
        for fan_in, fan_out in zip((in_channels, *channels), channels, strict=False):
            convolution = nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1)
            normalisation = nn.BatchNorm2d(fan_out) if norm == "batch" else nn.Identity()
            layers.append(nn.Sequential(convolution, normalisation, nn.LeakyReLU()))
            side = (side + 1) // 2
        self.encoder = nn.Sequential(*layers)
        features, latents = channels[-1] * side * side, num_variables * block_size
        self.fc_mu = nn.Linear(features, latents)
        self.fc_var = nn.Linear(features, latents)

    def forward(self, x_start: Tensor) -> Posterior:
        """Maps images (B, C, H, W) in [-1, 1] to the posterior, with mean and log-variance (B, n, d)."""
        features = self.encoder(x_start).flatten(1)
        shape = (-1, self.num_variables, self.block_size)
        mean = self.fc_mu(features).float().reshape(shape)
        variance = nn.functional.softplus(self.fc_var(features).float()) + MIN_VARIANCE
        return Posterior(mean, variance.log().reshape(shape))
