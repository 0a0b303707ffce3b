"""Effectiveness: labels predicted from counterfactual images, against the true counterfactual labels.

error    |predicted - true| per label: of the variable that is set (Monteiro et al., 2023, call this effectiveness), of
         its descendants, and of the others, which must not change
drift    |predicted after - predicted before| of the others, by the same predictor
effect   Every image gets a random value, so images with a value in the upper and in the lower half of the range are the
         two arms of a randomised trial:
             effect of v on j = mean change of j in the upper arm - mean change of j in the lower arm
         computed once from predicted and once from true labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from causaldiffae.graphs import CausalGraph
from causaldiffae.metrics.intervals import Figure, difference_figure


class Role(Enum):
    """The role of a variable in an intervention."""

    SET = "set"
    DESCENDANT = "descendant"
    OTHER = "other"


def role_of(graph: CausalGraph, variable: str, name: str) -> Role:
    """The role of `name` in an intervention on `variable`."""
    if name == variable:
        return Role.SET
    return Role.DESCENDANT if name in graph.descendants(variable) else Role.OTHER


def label_errors(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Absolute errors (N, n) in label units; NaN where a label is NaN."""
    return np.abs(predicted.astype(np.float64) - true.astype(np.float64))


@dataclass(frozen=True)
class Effect:
    """An average treatment effect in the model's images, the true effect, and the difference, each with an interval."""

    model: Figure
    truth: Figure
    error: Figure


def treatment_effect(
    change: np.ndarray, true_change: np.ndarray, values: np.ndarray, middle: float, seed: int = 0
) -> Effect:
    """The effect of setting a variable in the upper rather than the lower half of its range.

    Args:
        change, true_change: (N,) label after minus label before, predicted from the model's images, and true.
        values: (N,) random values that the variable was set to.
        middle: of the range.
    """
    upper = values >= middle
    model, truth, error = (difference_figure(c, upper, seed) for c in (change, true_change, change - true_change))
    return Effect(model, truth, error)
