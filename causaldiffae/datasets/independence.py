"""Tests a causal graph against labels: the conditional independences that it implies.

Two variables x and y without an edge between them are independent given a set S of other variables that d-separates
them (Pearl, Causality, 2009); networkx finds a minimal S. Each pair is tested by the generalised covariance measure
(Shah and Peters, 2020, arXiv 1804.07203):

    R = features of x minus their regression on S,   Q likewise of y,   H0: E[R_j Q_k] = 0 for all j, k

by Hotelling's test of the means of the products, which allows for variances that depend on S, and by Pillai's trace of
R and Q, which does not use the sample covariance of the products: that of two rare categories is far too small where
they hardly occur together. The larger p of the two counts. Features are two polynomials of the ranks of a continuous
variable, so that dependences that are not monotonic are found, and indicators of the categories of a discrete one. The
regression is kernel ridge regression on S with the bandwidth and penalty of least leave-one-out error. It assumes no
form, so smooth nonlinear mechanisms cause no false alarms, as long as S is small: a thousand rows do not show a
function of many variables, and what the regression misses appears as dependence. Pairs that only larger sets separate
are not tested, and a pair that appears dependent is tested again with a finer kernel. Several jumps of a mechanism (x =
floor(2 s)) remain too sharp for it. Holm's correction bounds the probability of a false alarm anywhere in the graph by
alpha.

A dependence means that an edge is missing, or a common cause of x and y. The directions of edges, and common causes of
variables that have an edge, cannot be tested in this way.

causal-learn's tests assume linearity or one kind of variable, and its kernel test takes seconds per pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final, NamedTuple

import networkx as nx
import numpy as np

from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.graphs import CausalGraph

ALPHA: Final = 0.01
MAX_ROWS: Final = 1000
MAX_PAIRS: Final = 300
MIN_ROWS: Final = 50
"""Fewer rows with the labels of a pair and its separating set are not tested."""
MAX_GIVEN: Final = 8
MAX_CONTINUOUS: Final = 3
"""Variables of a separating set, and continuous ones among them, on which the labels of a pair can be regressed."""
_MAX_INDICATORS: Final = 8  # of a discrete variable; rarer categories are joined
_RARE: Final = 5
_LANDMARKS: Final = 200
_MORE_LANDMARKS: Final = 600  # of the second test
_MAX_REPEATED: Final = 20  # pairs
_BANDWIDTHS: Final = (0.1, 0.3, 1.0, 3.0)  # of normal scores
_PENALTIES: Final = tuple(10.0**power for power in range(-6, 3))
_BETWEEN_CATEGORIES: Final = 1.5  # a factor of indicators among the inputs of the kernel
_DETERMINED: Final = 0.02
"""Share of the variance of a feature that is left. Below it in x and in y, the errors of the regression are tested."""


@dataclass(frozen=True)
class IndependenceTest:
    """The test of one pair of variables without an edge.

    Attributes:
        x, y: the variables, in graph order.
        given: a minimal set that d-separates them.
        rows: number of rows that have all of their labels.
        p: probability of a result this extreme if the graph is right; for this pair alone.
        corrected_p: p after Holm's correction for all pairs.
        correlation: of the ranks of x and y after the regression on `given`, or the largest canonical correlation of
            features where a variable is discrete.
        nonlinear_correlation: largest canonical correlation of all features.
    """

    x: str
    y: str
    given: tuple[str, ...]
    rows: int
    p: float
    corrected_p: float
    correlation: float
    nonlinear_correlation: float

    def describe(self, pairs: int) -> str:
        """One line about a pair that contradicts the graph; `pairs` is the number of pairs that were tested."""
        is_linear = abs(self.correlation) >= 0.5 * self.nonlinear_correlation
        kind = "partial correlation" if self.given else "correlation"
        strength = (
            f"{kind} {self.correlation:.2f}" if is_linear else f"nonlinear {kind} {self.nonlinear_correlation:.2f}"
        )
        given = f" given {', '.join(self.given)}" if self.given else ""
        correction = f", corrected for {pairs} pairs" if pairs > 1 else ""
        return (
            f"labels contradict the graph: {self.x} and {self.y} depend on each other{given} ({strength}, p = "
            f"{self.corrected_p:.1g}{correction}); an edge or a hidden common cause may be missing"
        )


@dataclass(frozen=True)
class GraphTest:
    """The tests of the pairs of a graph.

    Attributes:
        tests: one per pair that was tested, in graph order.
        untested: pairs without an edge that have too few rows or a large separating set (`MAX_GIVEN`,
            `MAX_CONTINUOUS`), or whose labels this set determines.
        alpha: significance level of `contradictions`, after the correction.
    """

    tests: tuple[IndependenceTest, ...]
    untested: int
    alpha: float

    @property
    def contradictions(self) -> tuple[IndependenceTest, ...]:
        """The pairs that depend on each other although the graph says otherwise; the clearest first."""
        found = [test for test in self.tests if test.corrected_p < self.alpha]
        return tuple(sorted(found, key=lambda test: test.p))

    def lines(self) -> list[str]:
        """One line for each contradiction."""
        return [test.describe(len(self.tests)) for test in self.contradictions]


def separating_sets(graph: CausalGraph) -> dict[tuple[str, str], tuple[str, ...]]:
    """A minimal d-separating set of every pair of variables without an edge, in graph order.

    Of more than `MAX_PAIRS` pairs, evenly spaced ones are chosen.
    """
    adjacent = {frozenset(edge) for edge in graph.edges}
    pairs = [pair for pair in combinations(graph.names, 2) if frozenset(pair) not in adjacent]
    if len(pairs) > MAX_PAIRS:
        pairs = [pairs[i] for i in np.linspace(0, len(pairs) - 1, MAX_PAIRS).round().astype(int)]
    found = {}
    for x, y in pairs:
        separator = nx.find_minimal_d_separator(graph.digraph, x, y)
        assert separator is not None, "variables without an edge in a DAG have one"
        found[x, y] = tuple(sorted(separator, key=graph.names.index))
    return found


def test_graph(labels: np.ndarray, spec: DatasetSpec, alpha: float = ALPHA, max_rows: int = MAX_ROWS) -> GraphTest:
    """Tests the independences that the graph of a data set implies.

    Args:
        labels: (N, n) in label units, independent rows; NaN where a label is missing.
        spec: graph and kinds of the variables.
        alpha: probability of a false alarm for the whole graph.
        max_rows: largest number of rows of a test; of more, seeded random ones are chosen (evenly spaced rows of a
            sorted factorial design would be related).

    Raises:
        InputError: for labels of another shape.
    """
    labels = np.asarray(labels, np.float64)
    if labels.ndim != 2 or labels.shape[1] != len(spec.graph):
        raise InputError(f"labels: expected shape (N, {len(spec.graph)}), got {labels.shape}")
    sets, index = separating_sets(spec.graph), spec.graph.index
    discrete = np.array([bool(spec.category_values(i)) for i in range(len(spec.graph))])
    tests: list[IndependenceTest] = []
    for (x, y), given in sets.items():
        values, is_discrete = _rows_of(labels, discrete, [index(x), index(y), *map(index, given)], max_rows)
        if (outcome := _test_pair(values, is_discrete)) is not None:
            tests.append(IndependenceTest(x, y, given, len(values), outcome.p, outcome.p, *outcome[1:]))
    tests = _corrected(tests)
    suspected = sorted((test for test in tests if test.corrected_p < alpha and test.given), key=lambda test: test.p)
    for test in suspected[:_MAX_REPEATED]:
        columns = [index(name) for name in (test.x, test.y, *test.given)]
        again = _test_pair(*_rows_of(labels, discrete, columns, max_rows), landmarks=_MORE_LANDMARKS)
        if again is not None and again.p > test.p:
            tests[tests.index(test)] = replace(test, p=again.p)
    tests = _corrected(tests)
    return GraphTest(tuple(tests), len(sets) - len(tests), alpha)


test_graph.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it


def _rows_of(
    labels: np.ndarray, discrete: np.ndarray, columns: Sequence[int], max_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, k) of labels that have all of k columns, at most `max_rows`, and which columns are discrete (k,)."""
    rows = np.flatnonzero(~np.isnan(labels[:, columns]).any(axis=1))
    if len(rows) > max_rows:
        rows = np.random.default_rng(0).choice(rows, max_rows, replace=False)
    return labels[rows][:, columns], discrete[list(columns)]


def _corrected(tests: Sequence[IndependenceTest]) -> list[IndependenceTest]:
    """The tests with p after Holm's correction."""
    corrected = _holm([test.p for test in tests])
    return [replace(test, corrected_p=p) for test, p in zip(tests, corrected, strict=True)]


def _holm(p: Sequence[float]) -> list[float]:
    """Holm's correction."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(np.argsort(p, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


class _Outcome(NamedTuple):
    """p, the correlation of the first features, and the largest canonical correlation."""

    p: float
    correlation: float
    largest: float


def _test_pair(values: np.ndarray, is_discrete: np.ndarray, landmarks: int = _LANDMARKS) -> _Outcome | None:
    """Tests columns 0 and 1 of `values` (N, 2 + |S|) for independence given the others; None if it cannot be tested."""
    from scipy import stats

    continuous = int((~is_discrete[2:]).sum())
    if len(values) < MIN_ROWS or len(is_discrete) - 2 > MAX_GIVEN or continuous > MAX_CONTINUOUS:
        return None
    pair = [_features(values[:, i], is_discrete[i]) for i in (0, 1)]
    count = pair[0].shape[1]
    if count * pair[1].shape[1] > len(values) / 10:  # many categories
        pair, count = [features[:, :1] for features in pair], 1
    features = np.concatenate(pair, axis=1)
    residuals, freedom = _residuals(_inputs(values[:, 2:], is_discrete[2:]), features, landmarks)
    shares = residuals.var(axis=0) / np.maximum(features.var(axis=0), 1e-12)
    if not shares[:count].max() > 0 or not shares[count:].max() > 0:
        return None
    if max(shares[:count].min(), shares[count:].min()) < _DETERMINED:
        return None
    x, y = residuals[:, :count], residuals[:, count:]
    products = (x[:, :, None] * y[:, None, :]).reshape(len(x), -1)
    mean, covariance = products.mean(axis=0), np.atleast_2d(np.cov(products.T, bias=True))
    inverse, rank = _pseudo_inverse(covariance)
    if not 0 < 2 * rank < freedom:
        return None
    correlations = np.linalg.svd(_orthonormal(x).T @ _orthonormal(y), compute_uv=False)
    statistic = freedom * min(float(mean @ inverse @ mean), float((correlations**2).sum()))
    p = float(stats.f.sf(statistic * (freedom - rank) / (rank * (freedom - 1)), rank, freedom - rank))
    largest = float(correlations[0])
    is_multiple = any(discrete and columns.shape[1] > 1 for discrete, columns in zip(is_discrete, pair, strict=False))
    return _Outcome(p, largest if is_multiple else float(np.corrcoef(x[:, 0], y[:, 0])[0, 1]), largest)


def _pseudo_inverse(covariance: np.ndarray) -> tuple[np.ndarray, int]:
    """Pseudo-inverse of a symmetric matrix, and its rank."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-9 * max(values[-1], 1e-300)
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T, int(kept.sum())


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis (N, rank) of the span of centred columns (N, k)."""
    left, singular, _ = np.linalg.svd(columns - columns.mean(axis=0), full_matrices=False)
    return left[:, singular > 1e-8 * singular[0]]


# ---------------------------------------------------------------------- features and inputs


def _uniform_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks in (0, 1); equal values have their mean rank."""
    from scipy import stats

    return (stats.rankdata(values) - 0.5) / len(values)


def _features(values: np.ndarray, is_discrete: bool) -> np.ndarray:
    """Features (N, a) of a variable whose dependence is tested, of mean 0."""
    if is_discrete:
        features = _indicators(values)
    else:
        ranks = 2 * _uniform_ranks(values) - 1
        features = np.stack([ranks, 1.5 * ranks**2 - 0.5], axis=1)  # Legendre polynomials, uncorrelated
    return features - features.mean(axis=0)


def _indicators(values: np.ndarray) -> np.ndarray:
    """Indicators (N, K - 1) of the values but the rarest, which follows from the others; rare ones have none."""
    distinct, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[: min(_MAX_INDICATORS, len(distinct) - 1)]
    kept = [code for code in order if counts[code] >= _RARE]
    kept = [1] if len(distinct) == 2 else kept or [0]  # of two values the larger, so that a correlation has its sign
    return (codes[:, None] == np.array(kept, int)).astype(np.float64)


def _inputs(values: np.ndarray, is_discrete: np.ndarray) -> np.ndarray:
    """Inputs (N, k) of the kernel: normal scores of continuous variables, scaled indicators of discrete ones."""
    from scipy import stats

    parts = [np.empty((len(values), 0))]
    for column, discrete in zip(values.T, is_discrete, strict=True):
        distinct, codes = np.unique(column, return_inverse=True)
        if discrete or len(distinct) <= _MAX_INDICATORS:
            parts.append(_BETWEEN_CATEGORIES * np.eye(len(distinct))[codes])
        else:
            parts.append(stats.norm.ppf(_uniform_ranks(column))[:, None])
    return np.concatenate(parts, axis=1)


# ---------------------------------------------------------------------- regression


def _residuals(inputs: np.ndarray, targets: np.ndarray, landmarks: int) -> tuple[np.ndarray, float]:
    """Residuals of the kernel ridge regression of targets (N, m), of mean 0, on inputs (N, k).

    Bandwidth and penalty are chosen for each target.

    Returns:
        Residuals (N, m), and N minus the largest number of degrees of freedom of a regression.
    """
    count = len(targets)
    if not inputs.shape[1]:
        return targets, count - 1.0
    best, residuals, used = np.full(targets.shape[1], np.inf), targets.copy(), np.ones(targets.shape[1])
    for bandwidth in _BANDWIDTHS:
        left, singular, _ = np.linalg.svd(_kernel_features(inputs, bandwidth, landmarks), full_matrices=False)
        projected, squares = left.T @ targets, left**2
        for penalty in _PENALTIES:
            shrunk = singular**2 / (singular**2 + penalty)
            errors = targets - left @ (shrunk[:, None] * projected)
            leverage = np.minimum(squares @ shrunk, 0.999)
            left_out = ((errors / (1 - leverage)[:, None]) ** 2).mean(axis=0)
            better = left_out < best
            best[better], used[better] = left_out[better], shrunk.sum()
            residuals[:, better] = errors[:, better]
    return residuals, count - float(used.max())


def _kernel_features(inputs: np.ndarray, bandwidth: float, count: int) -> np.ndarray:
    """Columns whose products are Nystroem's approximation of a Gaussian kernel, and a constant, (N, r)."""
    from scipy.spatial.distance import cdist

    landmarks = np.unique(inputs, axis=0)
    if len(landmarks) > count:
        landmarks = inputs[np.linspace(0, len(inputs) - 1, min(count, len(inputs))).round().astype(int)]
    kernel, across = (
        np.exp(-cdist(rows, landmarks, "sqeuclidean") / (2 * bandwidth**2)) for rows in (landmarks, inputs)
    )
    values, vectors = np.linalg.eigh(kernel)
    kept = values > 1e-8 * values[-1]
    constant = np.full((len(inputs), 1), 10.0)  # hardly penalised
    return np.concatenate([constant, across @ (vectors[:, kept] / np.sqrt(values[kept]))], axis=1)
