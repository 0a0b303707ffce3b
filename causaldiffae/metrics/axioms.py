"""Axioms of counterfactuals (Galles and Pearl, 1998; measured as in Monteiro et al., 2023).

    composition     a null intervention returns the image: f(f(...f(x)))  = x                          after k cycles
    reversibility   the inverse intervention returns the image: do(v = factual) after do(v = value) = x   after k cycles

Both are mean absolute differences on 0..255 of floating-point images: a model's output is its next input without
rounding to integers.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from causaldiffae.nn import float_for_tables


class Model(Protocol):
    """A model: images in [-1, 1], labels in label units and an intervention -> counterfactual images and labels."""

    def __call__(self, images: Tensor, labels: Tensor, do: dict[str, Tensor]) -> tuple[Tensor, Tensor]: ...


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference per image in grey levels: (B, C, H, W) each in [-1, 1] -> (B,)."""
    dtype = float_for_tables(a.device)
    return ((a.to(dtype) - b.to(dtype)).abs() * 127.5).flatten(1).mean(dim=1)


def composition(
    model: Model, images: Tensor, labels: Tensor, cycles: int, first: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """L1 (B,) between images and the result of `cycles` null interventions.

    Args:
        first: images and labels after the first one, if known.
    """
    current, current_labels = images, labels
    for cycle in range(cycles):
        known = first if cycle == 0 else None
        current, current_labels = known or model(current, current_labels, {})
    return distance(current, images)


def reversibility(
    model: Model,
    images: Tensor,
    labels: Tensor,
    do: dict[str, Tensor],
    inverse: dict[str, Tensor],
    cycles: int,
    first: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """L1 (B,) between images and the result of `cycles` interventions, each followed by its inverse.

    Args:
        do, inverse: variable -> (B,) values in label units; those of `inverse` are factual.
        first: images and labels after the first intervention, if known.
    """
    current, current_labels = images, labels
    for cycle in range(cycles):
        known = first if cycle == 0 else None
        current, current_labels = known or model(current, current_labels, do)
        current, current_labels = model(current, current_labels, inverse)
    return distance(current, images)


def non_finite_pixels(images: Tensor) -> Tensor:
    """Number of pixels of each image that are NaN or infinite: (B, C, H, W) -> (B,) int64."""
    return (~torch.isfinite(images)).flatten(1).sum(dim=1)
