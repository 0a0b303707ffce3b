"""From answers to figures: every metric of the benchmark, each with its interval over images.

Four answers to each question are scored in one and the same way: the model's; the truth, which shows what the judges
cannot see (the floor); the factual image left as it is; and the training image with the nearest labels. Everything is
reduced here, in image order, from the whole arrays, so it does not matter how the images were shared out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from causaldiffae.datasets.images import ImageData, evenly_spread
from causaldiffae.datasets.registry import exact_labels, measure
from causaldiffae.evaluation.protocol import Task
from causaldiffae.metrics import dci, truth
from causaldiffae.metrics.effectiveness import Role, label_errors, role_of, treatment_effect
from causaldiffae.metrics.intervals import Figure, mean_figure, resample_places, statistic_figure
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
"""Training images that CLD compares with, and that DCI is fitted on."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Judge:
    """Who scores: a predictor, training images to compare with, and perhaps the Inception network's file."""

    predictor: Predictor
    train: ImageData
    inception_weights: str = ""
    seed: int = 0

    def references(self) -> ImageData:
        """Some training images, evenly spread."""
        count = min(REFERENCES, len(self.train))
        return self.train.subset(evenly_spread(count, len(self.train)))


@dataclass(frozen=True)
class _Question:
    """One variable's intervention with all that its answers are compared with; what is not known is None."""

    name: str
    true_labels: np.ndarray
    true_images: np.ndarray | None
    true_read: Readings | None
    factual_read: Readings
    factual_measured: np.ndarray
    factual_posteriors: Posteriors
    references: Posteriors
    reference_bins: np.ndarray
    wanted_bins: np.ndarray
    given_bins: np.ndarray


@dataclass(frozen=True)
class _Answer:
    """One answer: images (N, C, H, W) uint8, those that are whole (N,), and labels measured on them (N, n)."""

    images: np.ndarray
    whole: np.ndarray
    measured: np.ndarray


def score(task: Task, answers: Arrays, judge: Judge) -> dict[str, Any]:
    """All figures of a task but DCI, as plain types."""
    context = _Context(task, judge)
    found: dict[str, Any] = {"interventions": {}, "broken": {}}
    seed = judge.seed
    whole = answers["broken"] == 0
    found["broken"]["null"] = _broken(answers["broken"])
    found["composition"] = {
        "1": mean_figure(np.where(whole, answers["composition"], np.nan), seed).to_dict(),
        "long": _asked(answers["composition_long"], task.cycled >= 0, seed).to_dict(),
    }
    for k, name in enumerate(task.variables):
        found["broken"][name] = _broken(answers[f"broken/{name}"])
        question = context.question(name, answers)
        row: dict[str, Any] = {"range": list(task.ranges[name]), "answers": {}}
        for kind, answer in context.answers(question, answers).items():
            row["answers"][kind] = context.score_answer(question, answer)
        own = label_errors(answers[f"labels/{name}"], question.true_labels)
        row["answers"]["model"]["effectiveness"]["own_labels"] = _by_variable(task, own, seed)
        row["reversibility"] = {
            "1": _asked(answers[f"reverse/{name}"], task.returned, seed).to_dict(),
            "long": _asked(answers[f"reverse_long/{name}"], task.cycled == k, seed).to_dict(),
        }
        found["interventions"][name] = row
    return found


def _asked(values: np.ndarray, chosen: np.ndarray, seed: int) -> Figure:
    """The mean over the images that were chosen."""
    return mean_figure(values[chosen], seed) if chosen.any() else Figure(None, None, None, 0)


def _broken(pixels: np.ndarray) -> dict[str, int]:
    return {"images": int((pixels > 0).sum()), "pixels": int(pixels.sum())}


def _by_variable(task: Task, values: np.ndarray, seed: int) -> dict[str, Any]:
    names = task.data.spec.graph.names
    return {name: mean_figure(values[:, j], seed).to_dict() for j, name in enumerate(names)}


class _Context:
    """What all questions of a task share."""

    def __init__(self, task: Task, judge: Judge) -> None:
        self.task, self.judge, self.spec, self.seed = task, judge, task.data.spec, judge.seed
        self.references = judge.references()
        self.reference_labels = exact_labels(self.references)
        self.factual_read = judge.predictor.read(task.data.images)
        self.factual_posteriors = Posteriors(*judge.predictor.posteriors(task.data.images))
        self.reference_posteriors = Posteriors(*judge.predictor.posteriors(self.references.images))

    def question(self, name: str, answers: Arrays) -> _Question:
        task, i = self.task, self.spec.graph.index(name)
        if task.truth_is_known:
            true_labels, images = answers[f"true_labels/{name}"], answers[f"true_images/{name}"]
            read = self.judge.predictor.read(images)
        else:  # what is set and what cannot move is known all the same
            true_labels, images, read = task.labels.astype(np.float64), None, None
            true_labels[:, i] = task.values[name]
            for other in self.spec.graph.descendants(name):
                true_labels[:, self.spec.graph.index(other)] = np.nan
        if self.spec.kinds and self.spec.kinds[i] != "continuous":
            bins: list[np.ndarray] = [self.reference_labels[:, i], task.values[name], task.labels[:, i]]
        else:
            edges = label_bins(self.reference_labels[:, i])
            columns = (self.reference_labels[:, i], task.values[name], task.labels[:, i])
            bins = [np.searchsorted(edges, column, side="right") for column in columns]
        return _Question(
            name,
            np.asarray(true_labels, np.float64),
            images,
            read,
            self.factual_read,
            answers["measured"],
            self.factual_posteriors,
            self.reference_posteriors,
            *bins,
        )

    def answers(self, question: _Question, answers: Arrays) -> dict[str, _Answer]:
        """The four answers; without the truth, the model's and the factual image."""
        task, name = self.task, question.name
        every = np.ones(len(task), bool)
        broken = answers[f"broken/{name}"] > 0
        found = {"model": _Answer(answers[f"images/{name}"], ~broken, answers[f"measured/{name}"])}
        found["do_nothing"] = _Answer(task.data.images, every, answers["measured"])
        if question.true_images is not None:
            found["truth"] = _Answer(question.true_images, every, answers[f"true_measured/{name}"])
            nearest = self.judge.train.subset(self._nearest(question)).images
            found["nearest"] = _Answer(nearest, every, measure(self.spec, nearest))
        return {kind: found[kind] for kind in ANSWERS if kind in found}

    def _nearest(self, question: _Question) -> np.ndarray:
        train, spec = self.judge.train, self.spec
        wanted, known = spec.normalise(question.true_labels), spec.normalise(exact_labels(train).astype(np.float64))
        return truth.nearest_by_labels(wanted, known, self.task.data.classes, train.classes)

    def score_answer(self, question: _Question, answer: _Answer) -> dict[str, Any]:
        """Every figure of one answer to one question."""
        task, name, seed = self.task, question.name, self.seed
        read = self.judge.predictor.read(answer.images)
        gone = np.where(answer.whole, 0.0, np.nan)  # added to whatever a broken image must not take part in
        labels, measured = read.labels + gone[:, None], answer.measured + gone[:, None]
        found: dict[str, Any] = {"effectiveness": {}}
        for kind, values in (("predictor", labels), ("measured", measured)):
            errors = _by_variable(task, label_errors(values, question.true_labels), seed)
            found["effectiveness"][kind] = errors if kind == "predictor" or np.isfinite(measured).any() else None
        if read.classes is not None and task.data.classes is not None:
            right = (read.classes == task.data.classes) + gone
            found["class_accuracy"] = mean_figure(right, seed).to_dict()
        if question.true_images is not None:
            found_pixels = truth.pixel_errors(answer.images, question.true_images)
            pixels = {"l1": found_pixels.l1, "psnr": found_pixels.psnr, "ssim": found_pixels.ssim}
            found["truth"] = {key: mean_figure(values + gone, seed).to_dict() for key, values in pixels.items()}
        found["drift"] = self._drift(name, labels, measured, question)
        posteriors = Posteriors(*self.judge.predictor.posteriors(answer.images))
        divergence = cld(
            posteriors,
            question.factual_posteriors,
            question.references,
            question.reference_bins,
            question.wanted_bins,
            question.given_bins,
        )
        found["cld"] = mean_figure(divergence + gone, seed).to_dict()
        found["realism"] = self._realism(question, read, answer)
        found["effects"] = self._effects(name, labels, question)
        return found

    def _drift(self, name: str, labels: np.ndarray, measured: np.ndarray, question: _Question) -> dict[str, Any]:
        graph, found = self.spec.graph, {}
        for j, other in enumerate(graph.names):
            if role_of(graph, name, other) is Role.OTHER:
                by_predictor = np.abs(labels[:, j] - question.factual_read.labels[:, j])
                by_measure = np.abs(measured[:, j] - question.factual_measured[:, j])
                found[other] = {
                    "predictor": mean_figure(by_predictor, self.seed).to_dict(),
                    "measured": mean_figure(by_measure, self.seed).to_dict(),
                }
        return found

    def _realism(self, question: _Question, read: Readings, answer: _Answer) -> dict[str, Any]:
        """FID-own and KID-own against the true counterfactual images or, where they are unknown, the factual ones."""
        against = question.true_read or question.factual_read
        features, others = read.features[answer.whole], against.features[answer.whole]
        found: dict[str, Any] = {"against": "truth" if question.true_read is not None else "factual"}
        for key, distance in (("fid_own", frechet_distance), ("kid_own", kernel_distance)):
            found[key] = self._distance(distance, features, others, answer).to_dict()
        if self.judge.inception_weights:
            real = self.task.data.images if question.true_images is None else question.true_images
            pair = [
                inception_features(images[answer.whole], self.judge.inception_weights)
                for images in (answer.images, real)
            ]
            found["fid"] = self._distance(frechet_distance, pair[0], pair[1], answer).to_dict()
        return found

    def _distance(self, distance: Any, features: np.ndarray, others: np.ndarray, answer: _Answer) -> Figure:
        def of(places: np.ndarray) -> float:
            return distance(features[places], others[places])

        return statistic_figure(of, len(features), self.seed, 50, int((~answer.whole).sum()))

    def _effects(self, name: str, labels: np.ndarray, question: _Question) -> dict[str, Any]:
        graph, found = self.spec.graph, {}
        middle = sum(self.task.ranges[name]) / 2
        for other in graph.names:
            j = graph.index(other)
            if role_of(graph, name, other) is Role.DESCENDANT:
                change = labels[:, j] - question.factual_read.labels[:, j]
                true_change = question.true_labels[:, j] - self.task.labels[:, j]
                effect = treatment_effect(change, true_change, self.task.values[name], middle, self.seed)
                found[other] = {key: getattr(effect, key).to_dict() for key in ("model", "truth", "error")}
        return found


def score_latents(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, resamples: int, seed: int
) -> dict[str, Any]:
    """DCI by boosting and by lasso, per latent and per block.

    Intervals are normal ones, from refits on resampled images.

    Args:
        train, test: latents (N, n, d); labels (N, n).
        resamples: refits.
    """
    blocks = train.shape[1]
    known, asked = train.reshape(len(train), -1), test.reshape(len(test), -1)
    rows, columns = (resample_places(len(part), seed, resamples) for part in (train, test))
    found: dict[str, Any] = {}
    for name, fit in dci.REGRESSORS.items():
        whole = _dci_figures(fit(known, train_labels, asked, test_labels), blocks)
        drawn = [
            _dci_figures(fit(known[r], train_labels[r], asked[c], test_labels[c]), blocks)
            for r, c in zip(rows, columns, strict=True)
        ]
        found[name] = {key: _normal(whole[key], [each[key] for each in drawn], len(test)) for key in whole}
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
