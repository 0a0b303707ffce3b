"""Counterfactuals of a whole split, scored against the truth.

`evaluate_intervention` asks for one intervention on every image and returns the pictures and, per image, the labels
that were requested, that the model predicts, that are true, and that can be measured on the pictures, with the mean
absolute pixel error to the true counterfactual (grey levels, 0..255) of the model and of doing nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.images import ImageData, model_inputs, to_uint8
from causaldiffae.datasets.registry import measure, true_counterfactual, truth_is_known
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.guidance import Guidance
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.visualization.image_grids import labelled_grid

Measurement = Callable[[np.ndarray], np.ndarray]
"""Reads labels (N, n) float64, in label units, off pictures (N, C, H, W) uint8; NaN where nothing is found."""
PIXEL_COLUMNS = ("counterfactual_l1", "do_nothing_l1")


@dataclass(frozen=True)
class InterventionResult:
    """One intervention on N images. Images are (N, C, H, W) uint8, labels (N, n) in label units, errors (N,).

    What is not known is None: the truth where the data set cannot redraw its images, NaN entries where nothing could
    be measured.
    """

    do: dict[str, float]
    factual: np.ndarray
    reconstruction: np.ndarray
    counterfactual: np.ndarray
    truth: np.ndarray | None
    factual_labels: np.ndarray
    predicted_labels: np.ndarray
    true_labels: np.ndarray | None
    measured_labels: np.ndarray
    counterfactual_l1: np.ndarray | None
    do_nothing_l1: np.ndarray | None
    reconstruction_l1: np.ndarray

    @property
    def change_l1(self) -> np.ndarray:
        """How far the counterfactual is from the factual image, (N,)."""
        return l1_errors(self.counterfactual, self.factual)


def evaluate_interventions(
    engine: CounterfactualEngine,
    data: ImageData,
    interventions: Sequence[Mapping[str, float]],
    batch_size: int = 100,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], object] | None = None,
    seed: int = 0,
    guidances: Sequence[Guidance] | None = None,
    eye: Measurement | None = None,
) -> list[InterventionResult]:
    """Every intervention on every image; images of a batch are abducted once for all interventions.

    Args:
        guidances: one for each intervention; by default the engine's own. The reconstruction is never guided by them.
        on_batch: told the number of images after each batch, for a progress bar.
        seed: of x_T where it is drawn.
        eye: what reads `measured_labels` off the counterfactuals; by default the data set's own `measure`.
    """
    if not interventions:
        raise InputError("do: at least one intervention is needed")
    checked = [engine.spec.check_do(do) for do in interventions]
    images: list[list[np.ndarray]] = [[] for _ in range(len(checked) + 1)]
    labels: list[list[np.ndarray]] = [[] for _ in range(len(checked) + 1)]
    generator = torch.Generator(device).manual_seed(seed)
    for start in range(0, len(data), batch_size):
        part = data.subset(list(range(start, min(start + batch_size, len(data)))))
        x_start, classes, factual = model_inputs(part, device)
        abducted = engine.abduct(x_start, classes, generator, factual)
        grades = None if guidances is None else [engine.guidance, *guidances]
        for i, result in enumerate(engine.predict(abducted, [{}, *checked], grades)):
            images[i].append(to_uint8(result.images.cpu().numpy()))
            labels[i].append(result.labels.cpu().numpy())
        if on_batch is not None:
            on_batch(len(part))
    reconstruction = np.concatenate(images[0])
    distinct = {_key(do): do for do in checked} if truth_is_known(data) else {}
    truths = {key: true_counterfactual(data, do) for key, do in distinct.items()}
    see: Measurement = eye or (lambda pictures: measure(data.spec, pictures))
    results = []
    for i, do in enumerate(checked, start=1):
        drawn, predicted = np.concatenate(images[i]), np.concatenate(labels[i])
        results.append(_score(data, do, reconstruction, drawn, predicted, see(drawn), truths.get(_key(do))))
    return results


def _key(do: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(do.items()))


def _score(
    data: ImageData,
    do: dict[str, float],
    reconstruction: np.ndarray,
    counterfactual: np.ndarray,
    predicted: np.ndarray,
    measured: np.ndarray,
    true: tuple[np.ndarray, np.ndarray] | None,
) -> InterventionResult:
    true_labels, truth = true or (None, None)
    return InterventionResult(
        do=do,
        factual=data.images,
        reconstruction=reconstruction,
        counterfactual=counterfactual,
        truth=truth,
        factual_labels=data.labels,
        predicted_labels=predicted,
        true_labels=true_labels,
        measured_labels=measured,
        counterfactual_l1=None if truth is None else l1_errors(counterfactual, truth),
        do_nothing_l1=None if truth is None else l1_errors(data.images, truth),
        reconstruction_l1=l1_errors(reconstruction, data.images),
    )


def interval(values: np.ndarray) -> float:
    """Half the width of a 95 % interval of the mean over images, by the normal approximation; 0 for one image."""
    return float(1.96 * values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def summary(result: InterventionResult, spec: DatasetSpec) -> dict[str, float]:
    """Means over images: pixel errors, and per variable the mean absolute error of measured and of predicted labels.

    Of a categorical variable that was set, `reached_NAME` is the share of images in which that category is seen.
    """
    figures = {"images": float(len(result.factual)), "reconstruction_l1": float(result.reconstruction_l1.mean())}
    figures["change_l1"] = float(result.change_l1.mean())
    if result.counterfactual_l1 is not None and result.do_nothing_l1 is not None:
        figures["counterfactual_l1"] = float(result.counterfactual_l1.mean())
        figures["counterfactual_l1_interval"] = interval(result.counterfactual_l1)
        figures["do_nothing_l1"] = float(result.do_nothing_l1.mean())
    for j, name in enumerate(spec.graph.names):
        measured = result.measured_labels[:, j]
        found = np.isfinite(measured)
        figures[f"measured_{name}"] = float(measured[found].mean()) if found.any() else float("nan")
        figures[f"not_measured_{name}"] = float((~found).sum())
        if name in result.do and spec.category_values(j):
            reached = np.abs(measured - result.do[name])[found] < 0.5
            figures[f"reached_{name}"] = float(reached.mean()) if found.any() else float("nan")
        if result.true_labels is not None:
            true = result.true_labels[:, j]
            error = np.abs(measured - true)[found]
            figures[f"measured_error_{name}"] = float(error.mean()) if found.any() else float("nan")
            figures[f"predicted_error_{name}"] = float(np.abs(result.predicted_labels[:, j] - true).mean())
    return figures


def slope(measured: np.ndarray, true: np.ndarray) -> float:
    """Least-squares slope of measured on true labels within images: (K, N) each, K interventions on N images.

    Differences between images do not count, so that an image left as it is has slope 0. Images of which something
    could not be measured are left out; NaN where nothing is left or the truth does not move.
    """
    found = np.isfinite(measured).all(axis=0) & np.isfinite(true).all(axis=0)
    dx, dy = (values[:, found] - values[:, found].mean(axis=0) for values in (true, measured))
    spread = float((dx**2).sum())
    return float((dx * dy).sum() / spread) if spread > 0 else float("nan")


def traversal(results: Sequence[InterventionResult], spec: DatasetSpec) -> dict[str, dict[str, float]]:
    """What happened to each variable while one was set to several values, over all images and values.

    `slope`: of measured on true counterfactual labels, for variables that the truth moves; 1 is right, 0 is no effect.
    `change`: mean change of the measured label against the value measured on the factual image, for the others; 0 is
    right. Both are NaN where they cannot be known.
    """
    first = results[0]
    moved = set(first.do).union(*(spec.graph.descendants(name) for name in first.do))
    before = measure(spec, first.factual)
    figures = {}
    for j, name in enumerate(spec.graph.names):
        measured = np.stack([result.measured_labels[:, j] for result in results])
        true = [result.true_labels[:, j] for result in results if result.true_labels is not None]
        rise = slope(measured, np.stack(true)) if true and name in moved else float("nan")
        drift = np.abs(measured - before[:, j])
        still = float(np.nanmean(drift)) if name not in moved and np.isfinite(drift).any() else float("nan")
        figures[name] = {"slope": rise, "change": still}
    return figures


def write_csv(path: Path, results: Sequence[InterventionResult], data: ImageData) -> None:
    """One row per image, intervention and variable: requested, factual, predicted, measured and true label."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["image", "do", "variable", "requested", "factual", "predicted", "measured", "true", *PIXEL_COLUMNS]
        )
        for result in results:
            do = describe_do(result.do, data.spec)
            for i, image in enumerate(data.ids):
                errors = [
                    "" if column is None else f"{column[i]:.4f}"
                    for column in (result.counterfactual_l1, result.do_nothing_l1)
                ]
                for j, name in enumerate(data.spec.graph.names):
                    requested = f"{result.do[name]:.6g}" if name in result.do else ""
                    true = "" if result.true_labels is None else f"{result.true_labels[i, j]:.6g}"
                    row = [result.factual_labels[i, j], result.predicted_labels[i, j], result.measured_labels[i, j]]
                    writer.writerow([image, do, name, requested, *[f"{v:.6g}" for v in row], true, *errors])


def describe_do(do: Mapping[str, float], spec: DatasetSpec | None = None) -> str:
    """{"thickness": 4.5} -> "do(thickness=4.5)"; with a `spec`, categories by their names."""
    said = {name: f"{value:g}" for name, value in do.items()}
    if spec is not None:
        said |= {
            name: spec.format_value(name, value)
            for name, value in do.items()
            if spec.category_values(spec.graph.index(name))
        }
    return "do(" + ", ".join(f"{name}={value}" for name, value in said.items()) + ")"


def shown_labels(result: InterventionResult) -> np.ndarray:
    """Labels (N, n) to show under counterfactuals: as measured, or as predicted where the data set cannot measure."""
    return result.measured_labels if np.isfinite(result.measured_labels).any() else result.predicted_labels


def label_captions(spec: DatasetSpec, labels: np.ndarray) -> list[str]:
    """A short text per row of (N, n) labels: three letters of each word of a variable's name, and its value."""
    names = ["".join(part[:3] for part in name.split("_")) for name in spec.graph.names]
    texts = []
    for row in labels:
        said = [spec.format_value(name, value) for name, value in zip(spec.graph.names, row, strict=True)]
        parts = [f"{name} {value}" for name, value in zip(names, said, strict=True)]
        texts.append("\n".join(", ".join(parts[i : i + 2]) for i in range(0, len(parts), 2)))
    return texts


def draw_grid(results: Sequence[InterventionResult], spec: DatasetSpec, count: int, title: str = "") -> np.ndarray:
    """A labelled picture of up to `count` images: factual, reconstruction, then each counterfactual and the truth.

    Under a counterfactual stands what is measured on it, or what the model predicts where nobody can measure; under the
    truth its true labels. Returns (H', W', 3) uint8.
    """
    first = results[0]
    # spread over the split, which may be sorted
    rows = np.linspace(0, len(first.factual) - 1, min(count, len(first.factual))).astype(int)
    columns = [("factual", first.factual[rows]), ("reconstruction", first.reconstruction[rows])]
    reconstruction_errors = [f"L1 {value:.1f}" for value in first.reconstruction_l1[rows]]
    captions = [label_captions(spec, first.factual_labels[rows]), reconstruction_errors]
    for result in results:
        columns.append((describe_do(result.do, spec).replace(", ", ",\n"), result.counterfactual[rows]))
        captions.append(label_captions(spec, shown_labels(result)[rows]))
        if result.truth is not None and result.true_labels is not None:
            columns.append(("the truth", result.truth[rows]))
            captions.append(label_captions(spec, result.true_labels[rows]))
    return labelled_grid(columns, cell_captions=captions, title=title)


def draw_traversal(
    results: Sequence[InterventionResult], spec: DatasetSpec, heads: Sequence[str], count: int
) -> np.ndarray:
    """A picture of up to `count` images: factual, then one column for each result; below each row, the truth's.

    Numbers are measured on the picture above them, under the truth its true labels. Returns (H', W', 3) uint8.
    """
    first = results[0]
    chosen = np.linspace(0, len(first.factual) - 1, min(count, len(first.factual))).astype(int)
    known = first.truth is not None
    columns, captions = [], []
    for head, result in zip(["factual", *heads], [None, *results], strict=True):
        shown, labels = first.factual, first.factual_labels
        if result is not None:
            shown, labels = result.counterfactual, shown_labels(result)
        pictures, below = list(shown[chosen]), label_captions(spec, labels[chosen])
        if known:
            true = first.factual if result is None or result.truth is None else result.truth
            true_labels = first.factual_labels if result is None or result.true_labels is None else result.true_labels
            said = ["the truth:"] * len(chosen) if result is None else label_captions(spec, true_labels[chosen])
            pictures = [picture for pair in zip(pictures, true[chosen], strict=True) for picture in pair]
            below = [caption for pair in zip(below, said, strict=True) for caption in pair]
        columns.append((head, np.stack(pictures)))
        captions.append(below)
    return labelled_grid(columns, cell_captions=captions)


def arrays(results: Sequence[InterventionResult]) -> dict[str, np.ndarray]:
    """Everything as named arrays, for one .npz."""
    named: dict[str, np.ndarray] = {
        "factual": results[0].factual,
        "reconstruction": results[0].reconstruction,
        "factual_labels": results[0].factual_labels,
        "interventions": np.array([describe_do(result.do) for result in results]),
    }
    for i, result in enumerate(results):
        for name in ("counterfactual", "truth", "predicted_labels", "true_labels", "measured_labels"):
            value = getattr(result, name)
            if value is not None:
                named[f"{name}_{i}"] = value
    return named
