"""Effectiveness: labels predicted from counterfactual images, against the true counterfactual labels.

error    of the variable that is set (Monteiro et al., 2023, call this effectiveness), of its descendants, and of the
         others, which must not change: |predicted - true|, or for a binary or categorical variable 1 where the
         categories differ and 0 elsewhere, whose mean is the error rate
drift    the same between the predictions before and after, of the others
effect   Every image gets a random value, so images in the upper and in the lower half of the range, or in one category
         and in the others, are the two arms of a randomised trial:
             effect of v on j = mean change of j in the first arm - mean change of j in the second arm
         computed once from predicted and once from true labels. For a category of j, the change is that of its
         indicator, and the effect is a difference of probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def nearest_category(labels: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """Indices (N,) float64 into the category `values` nearest to labels (N,); NaN where the label is NaN."""
    nearest = np.abs(labels.astype(np.float64)[:, None] - np.asarray(values)).argmin(axis=1)
    return np.where(np.isnan(labels), np.nan, nearest)


def label_columns(labels: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """Labels (N,) as (N, 1) float64 numbers, or (N, K) indicators of three or more categories; NaN if missing."""
    if len(values) < 3:
        return labels[:, None].astype(np.float64)
    columns = (nearest_category(labels, values)[:, None] == np.arange(len(values))).astype(np.float64)
    columns[np.isnan(labels)] = np.nan
    return columns


def label_errors(predicted: np.ndarray, true: np.ndarray, categories: Sequence[Sequence[float]] = ()) -> np.ndarray:
    """Errors (N, n) of labels (N, n); NaN where a label is NaN.

    Args:
        predicted, true: in label units.
        categories: the category values of each variable, empty for a continuous one; by default all are continuous.

    Returns:
        Absolute errors in label units of continuous variables; 0 or 1 for the others.
    """
    errors = np.abs(predicted.astype(np.float64) - true.astype(np.float64))
    for j, values in enumerate(categories):
        if values:
            found, expected = (nearest_category(labels[:, j], values) for labels in (predicted, true))
            errors[:, j] = np.where(np.isnan(found) | np.isnan(expected), np.nan, found != expected)
    return errors


@dataclass(frozen=True)
class Effect:
    """An average treatment effect in the model's images, the true effect, and the difference, each with an interval."""

    model: Figure
    truth: Figure
    error: Figure


def arms(
    name: str,
    values: np.ndarray,
    span: tuple[float, float],
    categories: Sequence[float],
    text: Callable[[float], str] = "{:g}".format,
) -> dict[str, np.ndarray]:
    """The first arm (N,) bool of each trial on the random values (N,) of a variable, by name.

    Args:
        name: the variable.
        span: lowest and highest value of a continuous variable.
        categories: the category values; empty for a continuous variable.
        text: formats a category value.

    Returns:
        One trial of the upper half, or of the second of two categories, named ""; or one per category, "NAME=VALUE".
    """
    if len(categories) > 2:
        return {f"{name}={text(value)}": values == value for value in categories}
    middle = sum(categories or span) / 2
    return {"": values >= middle}


def outcomes(
    name: str, labels: np.ndarray, categories: Sequence[float], text: Callable[[float], str] = "{:g}".format
) -> dict[str, np.ndarray]:
    """Labels (N,) of a variable as outcomes (N,) float64 of a trial: themselves, or indicators of categories, by name.

    Two categories have one indicator, that of the second one. `text` formats a category value.
    """
    if not categories:
        return {name: labels.astype(np.float64)}
    nearest = nearest_category(labels, categories)
    shown = {name: 1} if len(categories) == 2 else {f"{name}={text(value)}": k for k, value in enumerate(categories)}
    return {key: np.where(np.isnan(nearest), np.nan, nearest == k) for key, k in shown.items()}


def treatment_effect(change: np.ndarray, true_change: np.ndarray, treated: np.ndarray, seed: int = 0) -> Effect:
    """The effect of a randomised trial.

    Args:
        change, true_change: (N,) outcome after minus outcome before, predicted from the model's images, and true.
        treated: (N,) bool, the first arm.
    """
    model, truth, error = (difference_figure(c, treated, seed) for c in (change, true_change, change - true_change))
    return Effect(model, truth, error)
