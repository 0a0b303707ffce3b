"""Whether do() did what it should, and nothing else: labels read off counterfactual images.

error    |read - true| per label: of the variable that was set, of its descendants, which must follow, and of the
         others, which must stay (Monteiro et al., 2023, call the first effectiveness)
drift    |read after - read before| of the others, by one and the same reader: what the intervention should not touch
effect   every image is given a value at random, so the images with a value in the upper half of the range and those
         with one in the lower half are the two arms of a randomised trial:
             effect of v on j = mean change of j in the upper arm - mean change of j in the lower arm
         once as read off the model's images, once as it truly is
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from causaldiffae.graphs import CausalGraph
from causaldiffae.metrics.intervals import Figure, difference_figure


class Role(Enum):
    """What an intervention means for a variable."""

    SET = "set"
    DESCENDANT = "descendant"
    OTHER = "other"


def role_of(graph: CausalGraph, variable: str, name: str) -> Role:
    """The role of `name` when `variable` is set."""
    if name == variable:
        return Role.SET
    return Role.DESCENDANT if name in graph.descendants(variable) else Role.OTHER


def label_errors(read: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Absolute errors (N, n) in label units; NaN where nothing could be read."""
    return np.abs(read.astype(np.float64) - true.astype(np.float64))


@dataclass(frozen=True)
class Effect:
    """An average treatment effect: as the model has it, as it is, and the model's error, each with an interval."""

    model: Figure
    truth: Figure
    error: Figure


def treatment_effect(
    change: np.ndarray, true_change: np.ndarray, values: np.ndarray, middle: float, seed: int = 0
) -> Effect:
    """The effect of setting a variable in the upper rather than the lower half of its range.

    Args:
        change, true_change: (N,) label after minus label before, read off the model's images and as it truly is.
        values: (N,) what the variable was set to, drawn at random.
        middle: of the range.
    """
    upper = values >= middle
    return Effect(
        difference_figure(change, upper, seed),
        difference_figure(true_change, upper, seed),
        difference_figure(change - true_change, upper, seed),
    )
