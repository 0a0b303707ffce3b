"""Every metric of the evaluation, with its interval over images, from the outputs of `protocol.TaskRunner`.

Four candidates are scored: the counterfactual of the model; the true image, which measures the error of the predictor
itself (the floor); the factual image (do nothing); and the training image with the nearest labels. Reductions run over
whole arrays in image order, so the figures do not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np

from causaldiffae.datasets.images import ImageData, evenly_spread
from causaldiffae.datasets.label_subsets import labelled_only
from causaldiffae.datasets.registry import measure
from causaldiffae.evaluation.protocol import Task
from causaldiffae.metrics import dci, truth
from causaldiffae.metrics.effectiveness import (
    Role,
    arms,
    label_columns,
    label_errors,
    nearest_category,
    outcomes,
    role_of,
    treatment_effect,
)
from causaldiffae.metrics.intervals import Figure, mean_figure, resample_indices, statistic_figure, student_figure
from causaldiffae.metrics.realism import (
    PairedKernelDistance,
    Posteriors,
    cld,
    frechet_distance,
    inception_features,
    label_bins,
    label_numbers,
)
from causaldiffae.predictors.predictor import Predictor, Readings
from causaldiffae.training.responses import requested_share

CANDIDATES: Final = ("model", "truth", "do_nothing", "nearest")
REFERENCES: Final = 1000
"""Number of training images for the comparison of CLD and the fit of DCI."""

RESAMPLES: Final = 100
"""Number of resamples for the intervals of FID-own and KID-own."""
SLOW_RESAMPLES: Final = 10
"""Number of resamples for FID with Inception's 2,048 features, which takes seconds each."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Scorer:
    """The predictor, the training images for comparison, and optionally the Inception weights."""

    predictor: Predictor
    train: ImageData
    inception_weights: str = ""
    trust_inception: bool = False
    seed: int = 0

    def references(self) -> ImageData:
        """Up to `REFERENCES` training images with some label, evenly spread."""
        train = labelled_only(self.train)
        return train.subset(evenly_spread(min(REFERENCES, len(train)), len(train)))


@dataclass(frozen=True)
class _Expected:
    """The expected result of the intervention on one variable; unknown images are None.

    `bins` are the label bins of CLD: of the references, of the requested and of the factual values. `known` is a mask
    (N,) of images whose result is known, as far as `images` is given.
    """

    name: str
    labels: np.ndarray
    images: np.ndarray | None
    readings: Readings | None
    bins: list[np.ndarray]
    known: np.ndarray


@dataclass(frozen=True)
class _Candidate:
    """A candidate: images (N, C, H, W) uint8, a mask of finite images (N,), and measured labels (N, n)."""

    images: np.ndarray
    finite: np.ndarray
    measured: np.ndarray


def score(task: Task, outputs: Arrays, scorer: Scorer) -> dict[str, Any]:
    """All figures of a task except DCI, as plain types."""
    context = _Context(task, outputs, scorer)
    found: dict[str, Any] = {"interventions": {}, "broken": {"null": _count_non_finite(outputs["broken"])}}
    composition = np.where(outputs["broken"] == 0, outputs["composition"], np.nan)
    found["composition"] = {
        "1": context.figure(composition),
        "long": context.figure(outputs["composition_long"][task.long_cycle >= 0]),
    }
    for k, name in enumerate(task.variables):
        found["broken"][name] = _count_non_finite(outputs[f"broken/{name}"])
        expected = context.expected(name)
        row: dict[str, Any] = {"range": list(task.ranges[name]), "answers": {}}
        for kind, candidate in context.candidates(expected).items():
            row["answers"][kind] = context.score_candidate(expected, candidate)
        own = label_errors(outputs[f"labels/{name}"], expected.labels, context.categories)
        row["answers"]["model"]["effectiveness"]["own_labels"] = context.by_variable(own)
        row["reversibility"] = {
            "1": context.figure(outputs[f"reverse/{name}"][task.short_cycle]),
            "long": context.figure(outputs[f"reverse_long/{name}"][task.long_cycle == k]),
        }
        found["interventions"][name] = row
    return found


def _count_non_finite(pixels: np.ndarray) -> dict[str, int]:
    return {"images": int((pixels > 0).sum()), "pixels": int(pixels.sum())}


class _Context:
    """State shared by all interventions of a task."""

    def __init__(self, task: Task, outputs: Arrays, scorer: Scorer) -> None:
        self.task, self.outputs, self.scorer, self.spec = task, outputs, scorer, task.data.spec
        self.categories = self.spec.all_category_values()
        self.predictor, self.references = scorer.predictor, scorer.references()
        self.factual_readings = self.predictor.read(task.data.images)
        self.factual_posteriors = Posteriors(*self.predictor.posteriors(task.data.images))
        self.reference_posteriors = Posteriors(*self.predictor.posteriors(self.references.images))

    def figure(self, values: np.ndarray, rate: bool = False) -> dict[str, Any]:
        """Mean and interval as plain types."""
        return mean_figure(values, self.scorer.seed, rate).to_dict()

    def by_variable(self, errors: np.ndarray) -> dict[str, Any]:
        """Figures of the errors (N, n) of each variable."""
        return {name: self.figure_of(errors, j) for j, name in enumerate(self.spec.graph.names)}

    def figure_of(self, errors: np.ndarray, j: int) -> dict[str, Any]:
        """The figure of the errors (N, n) of variable j."""
        return self.figure(errors[:, j], rate=bool(self.categories[j]))

    def expected(self, name: str) -> _Expected:
        """The expected result of one intervention, as far as it is known."""
        task, graph, i = self.task, self.spec.graph, self.spec.graph.index(name)
        known = self.outputs.get(f"true_known/{name}", np.full(len(task), task.truth_is_known)).astype(bool)
        # Without the truth, only the value set and the labels of non-descendants are known.
        labels, images, readings = task.labels.astype(np.float64), None, None
        labels[:, i] = task.values[name]
        for other in graph.descendants(name):
            labels[:, graph.index(other)] = np.nan
        if known.any():
            images = self.outputs[f"true_images/{name}"]
            labels = np.where(known[:, None], self.outputs[f"true_labels/{name}"], labels)
            readings = self.predictor.read(images)
        columns = [self.references.labels[:, i], task.values[name], task.labels[:, i]]
        if self.categories[i]:
            bins = [nearest_category(column, self.categories[i]) for column in columns]
        else:
            bins = [label_numbers(column, label_bins(columns[0])) for column in columns]
        return _Expected(name, np.asarray(labels, np.float64), images, readings, bins, known)

    def candidates(self, expected: _Expected) -> dict[str, _Candidate]:
        """The candidates by name; without a known truth, only the counterfactual and the factual image."""
        name, data = expected.name, self.task.data
        all_finite = np.ones(len(data), bool)
        finite = self.outputs[f"broken/{name}"] == 0
        found = {
            "model": _Candidate(self.outputs[f"images/{name}"], finite, self.outputs[f"measured/{name}"]),
            "do_nothing": _Candidate(data.images, all_finite, self.outputs["measured"]),
        }
        if expected.images is not None:
            train, spec = labelled_only(self.scorer.train), self.spec
            target, known = (self._comparable(labels) for labels in (expected.labels, train.labels))
            nearest = train.subset(truth.nearest_by_labels(target, known, data.classes, train.classes)).images
            found["truth"] = _Candidate(expected.images, expected.known, self.outputs[f"true_measured/{name}"])
            found["nearest"] = _Candidate(nearest, expected.known, measure(spec, nearest))
        return {kind: found[kind] for kind in CANDIDATES if kind in found}

    def _comparable(self, labels: np.ndarray) -> np.ndarray:
        """Labels (N, n) as columns whose differences can be added: normalised numbers, and indicators of categories."""
        normalised = self.spec.normalise(labels.astype(np.float64))
        columns = [
            label_columns(labels[:, j] if len(values) > 2 else normalised[:, j], values)
            for j, values in enumerate(self.categories)
        ]
        return np.concatenate(columns, axis=1)

    def score_candidate(self, expected: _Expected, candidate: _Candidate) -> dict[str, Any]:
        """All figures of one candidate under one intervention."""
        task, readings = self.task, self.predictor.read(candidate.images)
        excluded = np.where(candidate.finite, 0.0, np.nan)  # added to per-image values
        labels, measured = readings.labels + excluded[:, None], candidate.measured + excluded[:, None]
        found: dict[str, Any] = {
            "effectiveness": {
                "predictor": self.by_variable(label_errors(labels, expected.labels, self.categories)),
                "measured": self.by_variable(label_errors(measured, expected.labels, self.categories))
                if np.isfinite(measured).any()
                else None,
            }
        }
        if readings.classes is not None and task.data.classes is not None:
            found["class_accuracy"] = self.figure((readings.classes == task.data.classes) + excluded, rate=True)
        if expected.images is not None:
            pixels = truth.pixel_errors(candidate.images, expected.images)
            unknown = np.where(expected.known, excluded, np.nan)
            found["truth"] = {key: self.figure(getattr(pixels, key) + unknown) for key in ("l1", "psnr", "ssim")}
        found["drift"] = self._drift(expected.name, labels, measured)
        found["response"] = self._response(expected.name, labels, measured)
        posteriors = Posteriors(*self.predictor.posteriors(candidate.images))
        divergence = cld(posteriors, self.factual_posteriors, self.reference_posteriors, *expected.bins)
        found["cld"] = self.figure(divergence + excluded)
        found["realism"] = self._realism(expected, readings, candidate)
        found["effects"] = self._effects(expected, labels)
        return found

    def _drift(self, name: str, labels: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
        """Label changes of the variables that are neither set nor descendants."""
        graph, found = self.spec.graph, {}
        changes = {
            "predictor": label_errors(labels, self.factual_readings.labels, self.categories),
            "measured": label_errors(measured, self.outputs["measured"], self.categories),
        }
        for j, other in enumerate(graph.names):
            if role_of(graph, name, other) is Role.OTHER:
                found[other] = {kind: self.figure_of(values, j) for kind, values in changes.items()}
        return found

    def _response(self, name: str, labels: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
        """The share of the requested change that the images show, see `training.responses.requested_share`."""
        i, found = self.spec.graph.index(name), {}
        pairs = {
            "predictor": (labels, self.factual_readings.labels),
            "measured": (measured, self.outputs["measured"]),
        }
        for reader, (after, before) in pairs.items():
            share = requested_share(after[:, i], before[:, i], self.task.values[name], self.spec, i)
            found[reader] = share.to_dict()
        return found

    def _realism(self, expected: _Expected, readings: Readings, candidate: _Candidate) -> dict[str, Any]:
        """FID-own and KID-own against the true images or, if unknown, the factual ones; FID with Inception."""
        if expected.images is not None:
            candidate = replace(candidate, finite=candidate.finite & expected.known)
        others = (expected.readings or self.factual_readings).features[candidate.finite]
        features = readings.features[candidate.finite]
        found: dict[str, Any] = {"against": "truth" if expected.readings is not None else "factual"}
        frechet = lambda rows: frechet_distance(features[rows], others[rows])  # noqa: E731
        found["fid_own"] = self._distance(frechet, candidate)
        found["kid_own"] = self._distance(PairedKernelDistance(features, others), candidate)
        if self.scorer.inception_weights and candidate.finite.any():
            real = self.task.data.images if expected.images is None else expected.images
            pair = [
                inception_features(images[candidate.finite], self.scorer.inception_weights, self.scorer.trust_inception)
                for images in (candidate.images, real)
            ]
            inception = lambda rows: frechet_distance(pair[0][rows], pair[1][rows])  # noqa: E731
            found["fid"] = self._distance(inception, candidate, SLOW_RESAMPLES)
        return found

    def _distance(
        self, statistic: Callable[[np.ndarray], float], candidate: _Candidate, resamples: int = RESAMPLES
    ) -> dict[str, Any]:
        count, left_out = int(candidate.finite.sum()), int((~candidate.finite).sum())
        return statistic_figure(statistic, count, self.scorer.seed, resamples, left_out).to_dict()

    def _effects(self, expected: _Expected, labels: np.ndarray) -> dict[str, Any]:
        """Average treatment effects on the descendants."""
        graph, name, task, found = self.spec.graph, expected.name, self.task, {}
        categories, text = self.categories[graph.index(name)], partial(self.spec.format_value, name)
        trials = arms(name, task.values[name], task.ranges[name], categories, text)
        for j, other in enumerate(graph.names):
            if role_of(graph, name, other) is not Role.DESCENDANT:
                continue
            columns = (labels, self.factual_readings.labels, expected.labels, task.labels)
            after, before, true_after, true_before = (
                outcomes(other, c[:, j], self.categories[j], partial(self.spec.format_value, other)) for c in columns
            )
            for outcome in after:
                changes = after[outcome] - before[outcome], true_after[outcome] - true_before[outcome]
                for arm, treated in trials.items():
                    effect = treatment_effect(*changes, treated, self.scorer.seed)
                    figures = {key: getattr(effect, key).to_dict() for key in ("model", "truth", "error")}
                    found[f"{outcome} by {arm}" if arm else outcome] = figures
        return found


def score_latents(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    resamples: int,
    seed: int,
    categories: Sequence[Sequence[float]] = (),
) -> dict[str, Any]:
    """DCI per latent and per block, by boosting and lasso, with Student's t intervals from refits on resampled images.

    Args:
        train, test: latents (N, n, d); labels are (N, n).
        resamples: number of refits.
        categories: the category values of each variable, empty for a continuous one; by default all are continuous.
    """
    blocks = train.shape[1]
    flat_train, flat_test = train.reshape(len(train), -1), test.reshape(len(test), -1)
    draws = zip(*(resample_indices(len(part), seed, resamples) for part in (train, test)), strict=True)
    rows = [(slice(None), slice(None)), *draws]
    found: dict[str, Any] = {}
    for name, fit in dci.REGRESSORS.items():
        whole, *resampled = (
            _dci_figures(fit(flat_train[r], train_labels[r], flat_test[c], test_labels[c], categories), blocks)
            for r, c in rows
        )
        found[name] = {key: _student(whole[key], [each[key] for each in resampled], len(test)) for key in whole}
    return found


def _dci_figures(fit: dci.DciFit, blocks: int) -> dict[str, float]:
    """The scores, over the labels with importances or R²; NaN without such labels."""
    scored = np.isfinite(fit.informativeness)
    importances = fit.importances[:, scored | fit.importances.any(axis=0)]
    latent, block = dci.scores(importances), dci.scores(dci.by_block(importances, blocks))
    return {
        "disentanglement": latent.disentanglement,
        "completeness": latent.completeness,
        "block_disentanglement": block.disentanglement,
        "block_completeness": block.completeness,
        "informativeness": float(fit.informativeness[scored].mean()) if scored.any() else float("nan"),
    }


def _student(value: float, drawn: list[float], count: int) -> dict[str, Any]:
    """A value with the 95 % interval of Student's t from a few refits; without an interval for fewer than two."""
    if not np.isfinite(value):
        return Figure(None, None, None, count).to_dict()
    return student_figure(value, np.asarray(drawn)[np.isfinite(drawn)], count).to_dict()
