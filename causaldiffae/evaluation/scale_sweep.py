"""The influence of the scale s on Diff-SCM's counterfactuals (Sanchez and Tsaftaris, 2022, section 4).

Every test image is asked for one other class, drawn from (seed, its place), at each of several scales, all from one
abduction. Small scales leave the class as it was, large ones leave the image: accuracy of an independent predictor, IM1
and IM2 say the one, the divergence from the factual image (CLD, L1) the other. The scale that is recommended has the
lowest CLD among those that reach the wanted accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.images import ImageData, model_inputs, to_uint8
from causaldiffae.errors import InputError
from causaldiffae.guidance import Guidance
from causaldiffae.metrics.interpretability import ClassAutoencoders, class_numbers
from causaldiffae.metrics.intervals import Figure, mean_figure, write_figures
from causaldiffae.metrics.realism import Posteriors, cld
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.predictors.predictor import Predictor

WANTED_ACCURACY: Final = 0.95
METRICS: Final = ("accuracy", "cld", "im1", "im2", "im2_old", "l1")
HEADS: Final = ("classifier accuracy", "CLD", "IM1", "IM2", "IM2, old class", "L1 to the factual image")


@dataclass(frozen=True)
class Judges:
    """Who judges: all trained on clean images, none of them has guided anything.

    Attributes:
        predictor: reads the class, and has the VAE of CLD.
        autoencoders: of IM1 and IM2.
        reference: images whose divergence from a factual one says what is near (`realism.cld`).
    """

    predictor: Predictor
    autoencoders: ClassAutoencoders
    reference: ImageData


@dataclass(frozen=True)
class ScaleResult:
    """One scale: its counterfactuals (N, C, H, W) uint8, and each metric's values (N,) float64."""

    scale: float
    images: np.ndarray
    values: dict[str, np.ndarray]

    def figures(self, seed: int = 0) -> dict[str, Figure]:
        """Every metric's mean and interval over images."""
        return {name: mean_figure(self.values[name], seed) for name in METRICS}


def other_classes(classes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """For each image (N,) one of the other `count` - 1 classes, from (seed, its place)."""
    draws = [np.random.Generator(np.random.Philox(key=[seed, i])).integers(1, count) for i in range(len(classes))]
    return (classes + np.array(draws, dtype=np.int64)) % count


def check_classes(data: ImageData) -> None:
    """`InputError` unless the data set has one variable, which is categorical."""
    if len(data.spec.graph) != 1 or not data.spec.category_values(0):
        raise InputError(f"data set {data.spec.name}: the sweep needs a graph of one variable, which is categorical")


def sweep_scale(
    engine: CounterfactualEngine,
    data: ImageData,
    scales: Sequence[float],
    judges: Judges,
    batch_size: int = 100,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], object] | None = None,
) -> list[ScaleResult]:
    """Asks every image for another class at each scale, and scores the answers.

    Args:
        engine: of a Diff-SCM; its own guidance is not used.
        data: test images.
        scales: finite numbers, at least one.
        on_batch: told the number of images after each batch.
    """
    check_classes(data)
    if not scales:
        raise InputError("scales: none is given, at least one is needed")
    guidances = [Guidance(w=scale) for scale in scales]
    spec, values = data.spec, np.asarray(data.spec.category_values(0))
    given = class_numbers(spec, data.labels)
    wanted = other_classes(given, len(values), seed)
    drawn: list[list[np.ndarray]] = [[] for _ in scales]
    for start in range(0, len(data), batch_size):
        part = data.subset(range(start, min(start + batch_size, len(data))))
        x_start, classes, labels = model_inputs(part, device)
        abducted = engine.abduct(x_start, classes, labels=labels)
        do = {spec.graph.names[0]: values[wanted[start : start + len(part)]]}
        for found, answer in zip(drawn, engine.predict(abducted, [do] * len(scales), guidances), strict=True):
            found.append(to_uint8(answer.images.cpu().numpy()))
        if on_batch is not None:
            on_batch(len(part))
    return [
        ScaleResult(scale, images, score(images, data, given, wanted, judges))
        for scale, images in zip(scales, map(np.concatenate, drawn), strict=True)
    ]


def score(
    images: np.ndarray, data: ImageData, given: np.ndarray, wanted: np.ndarray, judges: Judges
) -> dict[str, np.ndarray]:
    """Every metric of counterfactuals (N, C, H, W) uint8, (N,) float64 each.

    Args:
        given, wanted: (N,) numbers of the classes before and after.
    """
    read = class_numbers(data.spec, judges.predictor.read(images).labels)
    posteriors = [
        Posteriors(*judges.predictor.posteriors(part)) for part in (images, data.images, judges.reference.images)
    ]
    of_reference = class_numbers(data.spec, judges.reference.labels)
    rebuilt = judges.autoencoders.score(images, wanted, given)
    return {
        "accuracy": (read == wanted).astype(np.float64),
        "cld": cld(posteriors[0], posteriors[1], posteriors[2], of_reference, wanted, given),
        "im1": rebuilt.im1,
        "im2": rebuilt.im2,
        "im2_old": rebuilt.im2_old,
        "l1": l1_errors(images, data.images),
    }


def recommend(results: Sequence[ScaleResult], wanted_accuracy: float = WANTED_ACCURACY) -> ScaleResult:
    """The scale of the lowest CLD among those of the wanted accuracy; without any, the one of the highest accuracy."""
    accurate = [result for result in results if result.values["accuracy"].mean() >= wanted_accuracy]
    if not accurate:
        return max(results, key=lambda result: result.values["accuracy"].mean())
    return min(accurate, key=lambda result: float(np.nanmean(result.values["cld"])))


def write_sweep(path: Path, results: Sequence[ScaleResult]) -> None:
    """One row a scale: every metric's mean with its 95 % interval."""
    write_figures(path, ["scale"], [([f"{result.scale:g}"], result.figures()) for result in results])


def sweep_table(results: Sequence[ScaleResult], best: ScaleResult) -> str:
    """The same for people; the recommended scale is marked."""
    lines = [f"{'s':>6s} " + "".join(f"{name:>26s}" for name in METRICS)]
    for result in results:
        cells = []
        for figure in result.figures().values():
            known = figure.mean is not None and figure.low is not None
            cells.append(f"{figure.mean:.3f} [{figure.low:.3f}, {figure.high:.3f}]" if known else "-")
        mark = "*" if result is best else " "
        lines.append(f"{result.scale:6.2f}{mark}" + "".join(f"{cell:>26s}" for cell in cells))
    return "\n".join(lines)


def draw_sweep(results: Sequence[ScaleResult], best: ScaleResult) -> np.ndarray:
    """Six curves over s with their intervals, the recommended scale marked; (H, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(10, 5.6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(plot)
    scales = [result.scale for result in results]
    figures = [result.figures() for result in results]
    for axis, name, head in zip(plot.subplots(2, 3).flat, METRICS, HEADS, strict=True):
        rows = np.array([[row[name].mean, row[name].low, row[name].high] for row in figures], dtype=np.float64)
        axis.fill_between(scales, rows[:, 1], rows[:, 2], color="tab:blue", alpha=0.2, linewidth=0)
        axis.plot(scales, rows[:, 0], color="tab:blue", marker="o", markersize=3)
        axis.axvline(best.scale, color="tab:red", linewidth=1, linestyle=":")
        axis.set_title(head, fontsize=9)
        axis.set_xlabel("scale s", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
