"""Invertible mechanisms of continuous variables: z = T(u; theta), elementwise; a network computes theta from z_pa.

    additive   z = u + m                                      (CausalDiffAE, eq. 5)
    affine     z = exp(s) u + m
    spline     z = exp(s) R(u) + m,  R a monotonic rational-quadratic spline on [-BOUND, BOUND], the identity outside

The spline (Durkan et al., 2019, arXiv 1906.04032) is zuko's. Its knots depend on the parents, so the shape of the
conditional distribution is learned, not only its mean and scale; beyond the knots the map stays affine. With theta = 0
every mechanism is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor
from zuko.transforms import MonotonicRQSTransform

MAX_LOG_STRETCH: Final = 4.0
BINS: Final = 8
BOUND: Final = 5.0
"""u is standard normal, so nearly all of it is within the knots."""


class Mapped(NamedTuple):
    """z and log |dz / du|, each of the shape of u."""

    z: Tensor
    log_stretch: Tensor


class Elementwise(Protocol):
    """A strictly increasing map of every entry of a block (B, d)."""

    def forward(self, u: Tensor) -> Mapped:
        """Maps noise to values."""
        ...

    def inverse(self, z: Tensor) -> Tensor:
        """Maps values to noise."""
        ...


@dataclass(frozen=True)
class Affine:
    """z = exp(log_scale) u + location; all (B, d)."""

    location: Tensor
    log_scale: Tensor

    def forward(self, u: Tensor) -> Mapped:
        """Maps noise to values."""
        return Mapped(torch.exp(self.log_scale) * u + self.location, self.log_scale)

    def inverse(self, z: Tensor) -> Tensor:
        """Maps values to noise."""
        return (z - self.location) * torch.exp(-self.log_scale)


@dataclass(frozen=True)
class Spline:
    """A monotonic spline, followed by an affine map."""

    spline: MonotonicRQSTransform
    affine: Affine

    def forward(self, u: Tensor) -> Mapped:
        """Maps noise to values."""
        bent, log_slope = self.spline.call_and_ladj(u)
        z, log_scale = self.affine.forward(bent)
        return Mapped(z, log_slope + log_scale)

    def inverse(self, z: Tensor) -> Tensor:
        """Maps values to noise."""
        return self.spline.inv(self.affine.inverse(z))


class Family(NamedTuple):
    """A family of maps: the number of parameters per entry, and the map for parameters (B, d * number) of a block."""

    parameters: int
    build: Callable[[Tensor], Elementwise]


def _additive(parameters: Tensor) -> Elementwise:
    return Affine(parameters, torch.zeros_like(parameters))


def _affine(parameters: Tensor) -> Affine:
    location, stretch = parameters.chunk(2, dim=-1)
    return Affine(location, MAX_LOG_STRETCH * torch.tanh(stretch / MAX_LOG_STRETCH))


def _spline(parameters: Tensor) -> Elementwise:
    parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
    d = parameters.shape[-1] // SPLINE_PARAMETERS
    knots = parameters[:, 2 * d :].unflatten(-1, (d, -1))
    widths, heights, slopes = knots.split((BINS, BINS, BINS - 1), dim=-1)
    return Spline(MonotonicRQSTransform(widths, heights, slopes, bound=BOUND), _affine(parameters[:, : 2 * d]))


SPLINE_PARAMETERS: Final = 2 + 3 * BINS - 1
FAMILIES: Final[dict[str, Family]] = {
    "additive": Family(1, _additive),
    "affine": Family(2, _affine),
    "spline": Family(SPLINE_PARAMETERS, _spline),
}
"""The families by the name of the mechanism."""
