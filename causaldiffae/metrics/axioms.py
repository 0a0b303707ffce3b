"""Axioms that counterfactuals obey (Galles and Pearl, 1998; measured as in Monteiro et al., 2023).

    composition     asking for nothing gives the image back: f(f(...f(x)))  = x                     after k cycles
    reversibility   there and back gives the image back: do(v = factual) after do(v = value) = x    after k cycles

Both are mean absolute differences on 0..255, of floating-point images: what a model returns is what it is asked next,
without rounding to whole grey levels in between.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Answers(Protocol):
    """A model that can be asked: images in [-1, 1] and labels in label units in, the same out."""

    def __call__(self, images: Tensor, labels: Tensor, do: dict[str, Tensor]) -> tuple[Tensor, Tensor]: ...


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference per image in grey levels: (B, C, H, W) twice in [-1, 1] -> (B,) float64."""
    return ((a.double() - b.double()).abs() * 127.5).flatten(1).mean(dim=1)


def composition(answers: Answers, images: Tensor, labels: Tensor, cycles: int, first: Tensor | None = None) -> Tensor:
    """L1 (B,) between images and what is left of them after `cycles` null interventions.

    Args:
        first: the answer to the first one, where it is known already.
    """
    current, current_labels = images, labels
    for cycle in range(cycles):
        if cycle == 0 and first is not None:
            current = first
            continue
        current, current_labels = answers(current, current_labels, {})
    return distance(current, images)


def reversibility(
    answers: Answers,
    images: Tensor,
    labels: Tensor,
    there: dict[str, Tensor],
    back: dict[str, Tensor],
    cycles: int,
    first: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """L1 (B,) between images and what is left of them after going there and back `cycles` times.

    Args:
        there, back: variable -> (B,) values in label units; `back` holds the factual ones.
        first: images and labels of the first way there, where they are known already.
    """
    current, current_labels = images, labels
    for cycle in range(cycles):
        if cycle == 0 and first is not None:
            current, current_labels = first
        else:
            current, current_labels = answers(current, current_labels, there)
        current, current_labels = answers(current, current_labels, back)
    return distance(current, images)


def broken(images: Tensor) -> Tensor:
    """How many pixels of each image are NaN or infinite: (B, C, H, W) -> (B,) int64."""
    return (~torch.isfinite(images)).flatten(1).sum(dim=1)
