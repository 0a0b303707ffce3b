"""Effect of the guidance scale s on Diff-SCM's counterfactuals (Sanchez and Tsaftaris, 2022, section 4).

Every test image is set to another class, drawn from the seed and the image's index, at several scales from one
abduction. Too small a scale does not change the class, which lowers the accuracy of an independent predictor and raises
IM1 and IM2. Too large a scale moves away from the factual image, which raises CLD and L1. The recommended scale has the
lowest CLD among those that reach the target accuracy. Choose it on other images than those whose figures are reported:
the best of ten scales on the reported images is optimistic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch

from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.images import ImageData, spread_or_all
from causaldiffae.errors import InputError
from causaldiffae.evaluation.interventions import predict_split
from causaldiffae.evaluation.tables import shown, text_table
from causaldiffae.guidance import Guidance
from causaldiffae.metrics.interpretability import ClassAutoencoders, class_numbers
from causaldiffae.metrics.intervals import Figure, mean_figure, write_figures
from causaldiffae.metrics.realism import Posteriors, cld
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.predictors.predictor import Predictor
from causaldiffae.training.fitting import split_validation
from causaldiffae.visualization.curves import plot_interval
from causaldiffae.visualization.image_grids import render

TARGET_ACCURACY: Final = 0.95
METRICS: Final = {
    "accuracy": "classifier accuracy",
    "cld": "CLD",
    "im1": "IM1",
    "im2": "IM2",
    "im2_old": "IM2, old class",
    "l1": "L1 to the factual image",
}


@dataclass(frozen=True)
class Scorers:
    """Networks that score counterfactuals; trained on clean images and not used for guidance.

    Attributes:
        predictor: reads the class, and has the VAE of CLD.
        autoencoders: the class autoencoders of IM1 and IM2.
        reference: images that CLD compares with (`realism.cld`); none of the images that are scored.
    """

    predictor: Predictor
    autoencoders: ClassAutoencoders
    reference: ImageData

    @cached_property
    def reference_posteriors(self) -> Posteriors:
        """Posteriors of the reference images."""
        return Posteriors(*self.predictor.posteriors(self.reference.images))


@dataclass(frozen=True)
class ScaleResult:
    """Counterfactuals (N, C, H, W) uint8 at one scale, and the values (N,) float64 of each metric."""

    scale: float
    images: np.ndarray
    values: dict[str, np.ndarray]

    def figures(self) -> dict[str, Figure]:
        """Mean and interval of every metric."""
        return {name: mean_figure(self.values[name], rate=name == "accuracy") for name in METRICS}


def other_classes(classes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """One of the other `count` - 1 classes for each class (N,), drawn from the seed and the index."""
    draws = [np.random.Generator(np.random.Philox(key=[seed, i])).integers(1, count) for i in range(len(classes))]
    return (classes + np.array(draws, dtype=np.int64)) % count


def check_classes(data: ImageData) -> None:
    """Raises `InputError` unless the data set has exactly one variable, a categorical one."""
    if len(data.spec.graph) != 1 or not data.spec.category_values(0):
        raise InputError(f"data_dir: expected a data set of one categorical variable, got {data.spec.name}")


def choose_images(train: ImageData, num_validation: int = 0, num_reference: int = 0) -> tuple[ImageData, ImageData]:
    """Images of the training split for the choice of the scale and for the comparison of CLD, disjoint
    and evenly spread; 0 for all.

    The former are from the share on which the classifiers of this package validate (`split_validation` with seed 0).
    """
    kept, held_out = split_validation(len(train), seed=0)
    validation, reference = (
        train.subset(rows[spread_or_all(count, len(rows))])
        for rows, count in ((held_out, num_validation), (kept, num_reference))
    )
    return validation, reference


def sweep_scale(
    engine: CounterfactualEngine,
    data: ImageData,
    scales: Sequence[float],
    scorers: Scorers,
    batch_size: int = 100,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], object] | None = None,
) -> list[ScaleResult]:
    """Sets every image to another class at each scale, and scores the counterfactuals.

    Args:
        engine: engine of a Diff-SCM; its guidance is overridden.
        scales: guidance scales s, at least one.
        on_batch: called with the number of images of each finished batch.
    """
    check_classes(data)
    if not scales:
        raise InputError("scales: expected at least one number, got none")
    spec, values = data.spec, np.asarray(data.spec.category_values(0))
    factual = class_numbers(spec, data.labels)
    target = other_classes(factual, len(values), seed)
    do = spec.do_labels({spec.graph.names[0]: values[target]})
    guidances = [Guidance(w=scale) for scale in scales]
    drawn = predict_split(engine, data, [do] * len(scales), guidances, batch_size, device, on_batch)
    of_factual = Posteriors(*scorers.predictor.posteriors(data.images))
    return [
        ScaleResult(scale, images, score(images, data, of_factual, factual, target, scorers))
        for scale, (images, _) in zip(scales, drawn, strict=True)
    ]


def score(
    images: np.ndarray,
    data: ImageData,
    of_factual: Posteriors,
    factual: np.ndarray,
    target: np.ndarray,
    scorers: Scorers,
) -> dict[str, np.ndarray]:
    """Computes every metric (N,) float64 of counterfactuals (N, C, H, W) uint8.

    Args:
        of_factual: posteriors of the factual images.
        factual, target: (N,) class numbers before and after the intervention.
    """
    predictor = scorers.predictor
    of_images, of_reference = Posteriors(*predictor.posteriors(images)), scorers.reference_posteriors
    reference_classes = class_numbers(data.spec, scorers.reference.labels)
    rebuilt = scorers.autoencoders.score(images, target, factual)
    return {
        "accuracy": (class_numbers(data.spec, predictor.read(images).labels) == target).astype(np.float64),
        "cld": cld(of_images, of_factual, of_reference, reference_classes, target, factual),
        "im1": rebuilt.im1,
        "im2": rebuilt.im2,
        "im2_old": rebuilt.im2_old,
        "l1": l1_errors(images, data.images),
    }


def recommend(results: Sequence[ScaleResult], target_accuracy: float = TARGET_ACCURACY) -> ScaleResult:
    """The scale of lowest CLD among those that reach the target accuracy, or else the most accurate scale."""
    accurate = [result for result in results if result.values["accuracy"].mean() >= target_accuracy]
    if not accurate:
        return max(results, key=lambda result: result.values["accuracy"].mean())
    return min(accurate, key=lambda result: float(np.nanmean(result.values["cld"])))


def write_sweep(path: Path, results: Sequence[ScaleResult]) -> None:
    """Writes a CSV file with one row per scale: means and 95 % intervals of all metrics."""
    write_figures(path, ["scale"], [([f"{result.scale:g}"], result.figures()) for result in results])


def sweep_table(results: Sequence[ScaleResult], best: ScaleResult) -> str:
    """A text table with one row per scale; the recommended scale is marked."""
    rows = []
    for result in results:
        cells = [shown(figure.to_dict(), interval=True) for figure in result.figures().values()]
        rows.append([f"{result.scale:.2f}{'*' if result is best else ' '}", *cells])
    return text_table(["s", *METRICS.values()], rows)


def draw_sweep(results: Sequence[ScaleResult], best: ScaleResult) -> np.ndarray:
    """Plots the metrics and their intervals over s, with the recommended scale marked, (H, W, 3) uint8."""
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(10, 5.6), dpi=110, layout="constrained")
    figures = [result.figures() for result in results]
    for axis, (name, heading) in zip(plot.subplots(2, 3).flat, METRICS.items(), strict=True):
        plot_interval(axis, [result.scale for result in results], [row[name] for row in figures])
        axis.axvline(best.scale, color="tab:red", linewidth=1, linestyle=":")
        axis.set_title(heading, fontsize=9)
        axis.set_xlabel("scale s", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    return render(plot)
