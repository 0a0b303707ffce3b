"""Disentanglement, completeness and informativeness of latents (Eastwood and Williams, 2018).

A regressor per label predicts it from all latents; R[i, j] >= 0 is the importance of latent i for label j. With P the
rows and Q the columns of R as shares, K labels and D latents,

    disentanglement of latent i  = 1 - H_K(P_i)        weighted by the latent's share of all importance
    completeness of label j      = 1 - H_D(Q_j)        mean over labels
    informativeness of label j   = R^2 on held-out images

H_K is the entropy to base K. Importances are those of gradient-boosted trees, or |coefficients| of a lasso on
standardised latents. A latent is one number; the importance of a block is the sum over its numbers.

For a label of three or more categories, whose codes are not quantities, the indicators of the categories are predicted:
its importances are means over the indicators, and R^2 is that of all indicators together.

A label that is constant in the training images cannot be fitted, and has neither importances nor R^2; nor has a label
that is constant in the test images R^2. A label without importances has no completeness.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from causaldiffae.errors import InputError
from causaldiffae.metrics.effectiveness import label_columns

TREES: Final = 60
_PENALTY: Final = 0.01


@dataclass(frozen=True)
class Scores:
    """DCI of one matrix of importances: both scores in 0..1; NaN if all importances are 0."""

    disentanglement: float
    completeness: float


@dataclass(frozen=True)
class DciFit:
    """Importances (D, K) float64, 0 or more, and informativeness (K,), R^2 on held-out images; NaN where unknown."""

    importances: np.ndarray
    informativeness: np.ndarray


def scores(importances: np.ndarray) -> Scores:
    """Disentanglement and completeness of importances (D, K).

    Raises:
        InputError: for negative or non-finite ones.
    """
    matrix = np.asarray(importances, np.float64)
    if matrix.ndim != 2 or not np.isfinite(matrix).all() or (matrix < 0).any():
        raise InputError(
            f"importances: expected non-negative finite numbers, (latents, labels), got shape {matrix.shape}"
        )
    total = matrix.sum()
    if total <= 0:
        return Scores(float("nan"), float("nan"))
    weights = matrix.sum(axis=1) / total
    disentanglement = float((weights * (1.0 - _entropies(matrix))).sum())
    used = matrix[:, matrix.any(axis=0)]
    return Scores(disentanglement, float((1.0 - _entropies(used.T)).mean()))


def _entropies(rows: np.ndarray) -> np.ndarray:
    """Entropy of each row's shares to the base of their number, in 0..1; 1 for a row of zeros, 0 for one column."""
    if rows.shape[1] == 1:
        return np.zeros(len(rows))
    sums = rows.sum(axis=1, keepdims=True)
    shares = np.where(sums > 0, rows / np.where(sums > 0, sums, 1.0), 1.0 / rows.shape[1])
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return -(shares * logs).sum(axis=1) / np.log(rows.shape[1])


def by_block(importances: np.ndarray, blocks: int) -> np.ndarray:
    """Importances (D, K) of D = blocks * d latents, block after block, to (blocks, K)."""
    return importances.reshape(blocks, len(importances) // blocks, importances.shape[1]).sum(axis=1)


def _boosted_trees(latents: int) -> Any:
    from sklearn.ensemble import GradientBoostingRegressor

    features = "sqrt" if latents > 64 else None
    return GradientBoostingRegressor(
        n_estimators=TREES, learning_rate=0.15, subsample=0.5, max_features=features, random_state=0
    )


def _lasso(_: int) -> Any:
    from sklearn.linear_model import Lasso

    return Lasso(alpha=_PENALTY, max_iter=5000)


def _fit(
    make: Callable[[int], Any],
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    categories: Sequence[Sequence[float]] = (),
) -> DciFit:
    from sklearn.exceptions import ConvergenceWarning

    mean, spread = train.mean(axis=0), train.std(axis=0)
    known, held_out = ((part - mean) / np.where(spread > 0, spread, 1.0) for part in (train, test))
    importances = np.zeros((train.shape[1], train_labels.shape[1]))
    informativeness = np.empty(train_labels.shape[1])
    for j in range(train_labels.shape[1]):
        values = categories[j] if categories else ()
        rows, test_rows = (~np.isnan(labels[:, j]) for labels in (train_labels, test_labels))
        targets = label_columns(train_labels[rows, j], values)
        if not test_rows.any() or not (targets != targets[:1]).any():
            informativeness[j] = np.nan
            continue
        expected = label_columns(test_labels[test_rows, j], values)
        predicted = np.empty_like(expected)
        for k, target in enumerate(targets.T):
            centre, scale = target.mean(), target.std() or 1.0
            model = make(train.shape[1])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # a lasso that has not quite converged
                model.fit(known[rows], (target - centre) / scale)
            found = model.feature_importances_ if make is _boosted_trees else np.abs(model.coef_)
            importances[:, j] += found / targets.shape[1]
            predicted[:, k] = model.predict(held_out[test_rows]) * scale + centre
        informativeness[j] = r_squared(predicted, expected)
    return DciFit(importances, informativeness)


REGRESSORS: Final = {"boosting": partial(_fit, _boosted_trees), "lasso": partial(_fit, _lasso)}
"""Fits one regressor per label: latents (N, D) and labels (N, K) to train on, then to test on, and the category values
of each label, empty for a continuous one -> `DciFit`. Images whose label is NaN are left out for this label."""


def r_squared(predicted: np.ndarray, true: np.ndarray) -> float:
    """1 - squared error / variance of values (N,), or (N, m) together; NaN if the true values are constant."""
    spread = ((true - true.mean(axis=0)) ** 2).sum()
    return float(1.0 - ((predicted - true) ** 2).sum() / spread) if spread > 0 else float("nan")
