"""Disentanglement, completeness and informativeness of latents (Eastwood and Williams, 2018).

Regressors read every label off all latents; R[i, j] >= 0 is how much latent i matters for label j. With P the rows, and
Q the columns of R as shares, K labels and D latents,

    disentanglement of latent i  = 1 - H_K(P_i)        weighted by the latent's share of all importance
    completeness of label j      = 1 - H_D(Q_j)        mean over labels
    informativeness of label j   = R^2 on images that were not used to fit

H_K is the entropy to base K. Importances are those of gradient-boosted trees, or |coefficients| of a lasso on
standardised latents. A latent is one number; for a *block* the importances of its numbers are added up.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from causaldiffae.errors import InputError

TREES: Final = 60
_PENALTY: Final = 0.01


@dataclass(frozen=True)
class Scores:
    """DCI of one set of importances: both scores in 0..1; NaN without any importance."""

    disentanglement: float
    completeness: float


@dataclass(frozen=True)
class DciFit:
    """What regressors found.

    Attributes:
        importances: (D, K) float64, 0 or more.
        informativeness: (K,) R^2 on held-out images, 1 is best, below 0 is worse than the mean.
    """

    importances: np.ndarray
    informativeness: np.ndarray


def scores(importances: np.ndarray) -> Scores:
    """Disentanglement and completeness of importances (D, K).

    Raises:
        InputError: if one is negative or not finite.
    """
    matrix = np.asarray(importances, np.float64)
    if matrix.ndim != 2 or not np.isfinite(matrix).all() or (matrix < 0).any():
        raise InputError("importances: finite numbers of 0 or more, (latents, labels), are needed")
    total = matrix.sum()
    if total <= 0:
        return Scores(float("nan"), float("nan"))
    weights = matrix.sum(axis=1) / total
    disentanglement = float((weights * (1.0 - _entropies(matrix))).sum())
    return Scores(disentanglement, float((1.0 - _entropies(matrix.T)).mean()))


def _entropies(rows: np.ndarray) -> np.ndarray:
    """Entropy of every row's shares to the base of their number, in 0..1; 1 for a row of zeros, 0 for one entry."""
    if rows.shape[1] == 1:
        return np.zeros(len(rows))
    sums = rows.sum(axis=1, keepdims=True)
    shares = np.where(sums > 0, rows / np.where(sums > 0, sums, 1.0), 1.0 / rows.shape[1])
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return -(shares * logs).sum(axis=1) / np.log(rows.shape[1])


def by_block(importances: np.ndarray, blocks: int) -> np.ndarray:
    """(D, K) of D = blocks * d latents, block after block, to (blocks, K)."""
    return importances.reshape(blocks, -1, importances.shape[1]).sum(axis=1)


def fit_boosting(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> DciFit:
    """Gradient-boosted trees per label; latents (N, D), labels (N, K)."""
    from sklearn.ensemble import GradientBoostingRegressor

    def make() -> GradientBoostingRegressor:
        features = "sqrt" if train.shape[1] > 64 else None
        return GradientBoostingRegressor(
            n_estimators=TREES, learning_rate=0.15, subsample=0.5, max_features=features, random_state=0
        )

    return _fit(make, lambda model: model.feature_importances_, train, train_labels, test, test_labels)


def fit_lasso(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> DciFit:
    """A lasso per label on standardised latents and labels; latents (N, D), labels (N, K)."""
    from sklearn.linear_model import Lasso

    def make() -> Lasso:
        return Lasso(alpha=_PENALTY, max_iter=5000)

    return _fit(make, lambda model: np.abs(model.coef_), train, train_labels, test, test_labels)


REGRESSORS: Final = {"boosting": fit_boosting, "lasso": fit_lasso}


def _fit(
    make: Callable[[], object],
    importance: Callable[..., np.ndarray],
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
) -> DciFit:
    mean, spread = train.mean(axis=0), train.std(axis=0)
    known, asked = ((part - mean) / np.where(spread > 0, spread, 1.0) for part in (train, test))
    importances = np.zeros((train.shape[1], train_labels.shape[1]))
    informativeness = np.empty(train_labels.shape[1])
    for j in range(train_labels.shape[1]):
        centre, scale = train_labels[:, j].mean(), train_labels[:, j].std() or 1.0
        model = make()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a lasso that has not quite converged
            model.fit(known, (train_labels[:, j] - centre) / scale)  # type: ignore[attr-defined]
        importances[:, j] = importance(model)
        predicted = model.predict(asked) * scale + centre  # type: ignore[attr-defined]
        informativeness[j] = r_squared(predicted, test_labels[:, j])
    return DciFit(importances, informativeness)


def r_squared(predicted: np.ndarray, true: np.ndarray) -> float:
    """1 - squared error / variance; NaN where the true values do not vary."""
    spread = ((true - true.mean()) ** 2).sum()
    return float(1.0 - ((predicted - true) ** 2).sum() / spread) if spread > 0 else float("nan")
