"""From answers to figures: every metric of the evaluation, with its interval over images.

Four kinds of answers are scored alike: the model's; the true image, whose figures are the error of the predictor
itself (the floor); the factual image (doing nothing); and the training image with the nearest labels. Reductions run
over whole arrays in the order of the images, so figures do not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from causaldiffae.datasets.images import ImageData, evenly_spread
from causaldiffae.datasets.registry import exact_labels, measure
from causaldiffae.evaluation.protocol import Task
from causaldiffae.metrics import dci, truth
from causaldiffae.metrics.effectiveness import Role, label_errors, role_of, treatment_effect
from causaldiffae.metrics.intervals import Figure, mean_figure, resample_indices, statistic_figure
from causaldiffae.metrics.realism import (
    Posteriors,
    cld,
    frechet_distance,
    inception_features,
    kernel_distance,
    label_bins,
)
from causaldiffae.predictors.predictor import Predictor, Readings

ANSWERS: Final = ("model", "truth", "do_nothing", "nearest")
REFERENCES: Final = 1000
"""Number of training images that CLD compares with and that DCI is fitted on."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Scorer:
    """The predictor, training images to compare with, and optionally the file of the Inception network."""

    predictor: Predictor
    train: ImageData
    inception_weights: str = ""
    trust_inception: bool = False
    seed: int = 0

    def references(self) -> ImageData:
        """Up to `REFERENCES` training images, evenly spread."""
        count = min(REFERENCES, len(self.train))
        return self.train.subset(evenly_spread(count, len(self.train)))


@dataclass(frozen=True)
class _Expected:
    """What answers to the intervention on one variable are compared with; unknown images are None.

    `bins` are the label bins of CLD: of the references, of the requested and of the factual values.
    """

    name: str
    labels: np.ndarray
    images: np.ndarray | None
    readings: Readings | None
    bins: list[np.ndarray]


@dataclass(frozen=True)
class _Answer:
    """One kind of answer: images (N, C, H, W) uint8, which of them are finite (N,), and measured labels (N, n)."""

    images: np.ndarray
    finite: np.ndarray
    measured: np.ndarray


def score(task: Task, answers: Arrays, scorer: Scorer) -> dict[str, Any]:
    """All figures of a task except DCI, as plain types."""
    context = _Context(task, answers, scorer)
    found: dict[str, Any] = {"interventions": {}, "broken": {"null": _count_broken(answers["broken"])}}
    composition = np.where(answers["broken"] == 0, answers["composition"], np.nan)
    found["composition"] = {
        "1": context.figure(composition),
        "long": context.figure(answers["composition_long"][task.long_cycle >= 0]),
    }
    for k, name in enumerate(task.variables):
        found["broken"][name] = _count_broken(answers[f"broken/{name}"])
        expected = context.expected(name)
        row: dict[str, Any] = {"range": list(task.ranges[name]), "answers": {}}
        for kind, answer in context.answers_to(expected).items():
            row["answers"][kind] = context.score_answer(expected, answer)
        own = label_errors(answers[f"labels/{name}"], expected.labels)
        row["answers"]["model"]["effectiveness"]["own_labels"] = context.by_variable(own)
        row["reversibility"] = {
            "1": context.figure(answers[f"reverse/{name}"][task.short_cycle]),
            "long": context.figure(answers[f"reverse_long/{name}"][task.long_cycle == k]),
        }
        found["interventions"][name] = row
    return found


def _count_broken(pixels: np.ndarray) -> dict[str, int]:
    return {"images": int((pixels > 0).sum()), "pixels": int(pixels.sum())}


class _Context:
    """What the interventions of a task share."""

    def __init__(self, task: Task, answers: Arrays, scorer: Scorer) -> None:
        self.task, self.answers, self.scorer, self.spec = task, answers, scorer, task.data.spec
        self.predictor, self.references = scorer.predictor, scorer.references()
        self.factual_readings = self.predictor.read(task.data.images)
        self.factual_posteriors = Posteriors(*self.predictor.posteriors(task.data.images))
        self.reference_posteriors = Posteriors(*self.predictor.posteriors(self.references.images))

    def figure(self, values: np.ndarray) -> dict[str, Any]:
        """Mean and interval as plain types."""
        return mean_figure(values, self.scorer.seed).to_dict()

    def by_variable(self, values: np.ndarray) -> dict[str, Any]:
        """Figures of each column of (N, n) values."""
        return {name: self.figure(values[:, j]) for j, name in enumerate(self.spec.graph.names)}

    def expected(self, name: str) -> _Expected:
        """What is known about the answers to one intervention."""
        task, graph, i = self.task, self.spec.graph, self.spec.graph.index(name)
        if task.truth_is_known:
            labels, images = self.answers[f"true_labels/{name}"], self.answers[f"true_images/{name}"]
            readings = self.predictor.read(images)
        else:  # the variable's value and the labels of non-descendants are known nevertheless
            labels, images, readings = task.labels.astype(np.float64), None, None
            labels[:, i] = task.values[name]
            for other in graph.descendants(name):
                labels[:, graph.index(other)] = np.nan
        bins = [exact_labels(self.references)[:, i], task.values[name], task.labels[:, i]]
        if self.spec.kind(i) == "continuous":
            edges = label_bins(bins[0])
            bins = [np.searchsorted(edges, column, side="right") for column in bins]
        return _Expected(name, np.asarray(labels, np.float64), images, readings, bins)

    def answers_to(self, expected: _Expected) -> dict[str, _Answer]:
        """The four kinds of answers; only the model's and the factual image if the truth is unknown."""
        name, data = expected.name, self.task.data
        all_finite = np.ones(len(data), bool)
        finite = self.answers[f"broken/{name}"] == 0
        found = {
            "model": _Answer(self.answers[f"images/{name}"], finite, self.answers[f"measured/{name}"]),
            "do_nothing": _Answer(data.images, all_finite, self.answers["measured"]),
        }
        if expected.images is not None:
            train, spec = self.scorer.train, self.spec
            target, known = spec.normalise(expected.labels), spec.normalise(exact_labels(train).astype(np.float64))
            nearest = train.subset(truth.nearest_by_labels(target, known, data.classes, train.classes)).images
            found["truth"] = _Answer(expected.images, all_finite, self.answers[f"true_measured/{name}"])
            found["nearest"] = _Answer(nearest, all_finite, measure(spec, nearest))
        return {kind: found[kind] for kind in ANSWERS if kind in found}

    def score_answer(self, expected: _Expected, answer: _Answer) -> dict[str, Any]:
        """All figures of one kind of answer to one intervention."""
        task, readings = self.task, self.predictor.read(answer.images)
        excluded = np.where(answer.finite, 0.0, np.nan)  # added to per-image values
        labels, measured = readings.labels + excluded[:, None], answer.measured + excluded[:, None]
        found: dict[str, Any] = {
            "effectiveness": {
                "predictor": self.by_variable(label_errors(labels, expected.labels)),
                "measured": self.by_variable(label_errors(measured, expected.labels))
                if np.isfinite(measured).any()
                else None,
            }
        }
        if readings.classes is not None and task.data.classes is not None:
            found["class_accuracy"] = self.figure((readings.classes == task.data.classes) + excluded)
        if expected.images is not None:
            pixels = truth.pixel_errors(answer.images, expected.images)
            found["truth"] = {key: self.figure(getattr(pixels, key) + excluded) for key in ("l1", "psnr", "ssim")}
        found["drift"] = self._drift(expected.name, labels, measured)
        posteriors = Posteriors(*self.predictor.posteriors(answer.images))
        divergence = cld(posteriors, self.factual_posteriors, self.reference_posteriors, *expected.bins)
        found["cld"] = self.figure(divergence + excluded)
        found["realism"] = self._realism(expected, readings, answer)
        found["effects"] = self._effects(expected, labels)
        return found

    def _drift(self, name: str, labels: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
        """Changes of the labels of variables that are neither set nor descendants."""
        graph, found = self.spec.graph, {}
        changes = {
            "predictor": np.abs(labels - self.factual_readings.labels),
            "measured": np.abs(measured - self.answers["measured"]),
        }
        for j, other in enumerate(graph.names):
            if role_of(graph, name, other) is Role.OTHER:
                found[other] = {kind: self.figure(values[:, j]) for kind, values in changes.items()}
        return found

    def _realism(self, expected: _Expected, readings: Readings, answer: _Answer) -> dict[str, Any]:
        """FID-own and KID-own against the true images or, if unknown, the factual ones; FID with Inception."""
        others = (expected.readings or self.factual_readings).features[answer.finite]
        features = readings.features[answer.finite]
        found: dict[str, Any] = {"against": "truth" if expected.readings is not None else "factual"}
        found["fid_own"] = self._distance(frechet_distance, features, others, answer)
        found["kid_own"] = self._distance(kernel_distance, features, others, answer)
        if self.scorer.inception_weights:
            real = self.task.data.images if expected.images is None else expected.images
            pair = [
                inception_features(images[answer.finite], self.scorer.inception_weights, self.scorer.trust_inception)
                for images in (answer.images, real)
            ]
            found["fid"] = self._distance(frechet_distance, pair[0], pair[1], answer)
        return found

    def _distance(
        self,
        distance: Callable[[np.ndarray, np.ndarray], float],
        features: np.ndarray,
        others: np.ndarray,
        answer: _Answer,
    ) -> dict[str, Any]:
        left_out = int((~answer.finite).sum())
        statistic = lambda rows: distance(features[rows], others[rows])  # noqa: E731
        return statistic_figure(statistic, len(features), self.scorer.seed, 50, left_out).to_dict()

    def _effects(self, expected: _Expected, labels: np.ndarray) -> dict[str, Any]:
        """Average treatment effects on the descendants."""
        graph, name, found = self.spec.graph, expected.name, {}
        middle = sum(self.task.ranges[name]) / 2
        for j, other in enumerate(graph.names):
            if role_of(graph, name, other) is Role.DESCENDANT:
                change = labels[:, j] - self.factual_readings.labels[:, j]
                true_change = expected.labels[:, j] - self.task.labels[:, j]
                effect = treatment_effect(change, true_change, self.task.values[name], middle, self.scorer.seed)
                found[other] = {key: getattr(effect, key).to_dict() for key in ("model", "truth", "error")}
        return found


def score_latents(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, resamples: int, seed: int
) -> dict[str, Any]:
    """DCI per latent and per block, by boosting and lasso, with normal intervals from refits on resampled images.

    Args:
        train, test: latents (N, n, d); labels are (N, n).
        resamples: number of refits.
    """
    blocks = train.shape[1]
    flat_train, flat_test = train.reshape(len(train), -1), test.reshape(len(test), -1)
    draws = zip(*(resample_indices(len(part), seed, resamples) for part in (train, test)), strict=True)
    rows = [(slice(None), slice(None)), *draws]
    found: dict[str, Any] = {}
    for name, fit in dci.REGRESSORS.items():
        whole, *resampled = (
            _dci_figures(fit(flat_train[r], train_labels[r], flat_test[c], test_labels[c]), blocks) for r, c in rows
        )
        found[name] = {key: _normal(whole[key], [each[key] for each in resampled], len(test)) for key in whole}
    return found


def _dci_figures(fit: dci.DciFit, blocks: int) -> dict[str, float]:
    latent, block = dci.scores(fit.importances), dci.scores(dci.by_block(fit.importances, blocks))
    return {
        "disentanglement": latent.disentanglement,
        "completeness": latent.completeness,
        "block_disentanglement": block.disentanglement,
        "block_completeness": block.completeness,
        "informativeness": float(np.mean(fit.informativeness)),
    }


def _normal(value: float, drawn: list[float], count: int) -> dict[str, Any]:
    if not np.isfinite(value):
        return Figure(None, None, None, count).to_dict()
    spread = 1.96 * float(np.nanstd(drawn, ddof=1)) if len(drawn) > 1 else 0.0
    return Figure(value, value - spread, value + spread, count).to_dict()
