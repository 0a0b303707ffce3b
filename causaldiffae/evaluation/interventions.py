"""Counterfactuals of a whole split, and their errors relative to the true counterfactuals.

`evaluate_interventions` applies interventions to all images. Each result holds the images and, per image, the predicted
labels, the true labels and the labels measured on the counterfactual. Pixel errors are mean absolute differences in
grey levels, 0..255. Non-finite pixels of a counterfactual are scored as black, with a warning.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.do_text import describe_do as describe_do  # also this module's name for it
from causaldiffae.datasets.images import ImageData, check_complete, finite_images, model_inputs, to_uint8
from causaldiffae.datasets.registry import known_truth, measure, true_labels, truth_is_known
from causaldiffae.datasets.spec import CheckedDo, DatasetSpec
from causaldiffae.datasets.variables import round_in_range
from causaldiffae.errors import InputError
from causaldiffae.guidance import Guidance
from causaldiffae.metrics.effectiveness import label_errors, nearest_category
from causaldiffae.metrics.intervals import interval as interval
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.nn import CausalModel
from causaldiffae.training.responses import ClassReader

Measurement = Callable[[np.ndarray], np.ndarray]
"""Images (N, C, H, W) uint8 -> labels (N, n) float64 in label units; NaN where a label cannot be measured."""
PIXEL_COLUMNS = ("counterfactual_l1", "do_nothing_l1", "image_distance", "label_distance")


@dataclass(frozen=True)
class InterventionResult:
    """One intervention on N images: images (N, C, H, W) uint8, labels (N, n) in label units, errors (N,).

    `truth` and `true_labels` are None if the data set cannot render true counterfactuals; where the class is set, only
    the image is unknown. Classes (N,) are None if they are unknown or not set. `measured_factual` are the labels that
    the same measurement as that of `measured_labels` reads off the factual images; `read_labels` and `read_factual` are
    what the model's own encoder reads where there is no measurement. `pixel_std` (N, 1, H, W) and `label_std` (N, n)
    are the spread over several abductions, see `sampling.Spread`. Distances (N,) are those of factual images and
    predicted labels from the training data, see `checks.with_distances`.
    """

    do: Mapping[str, float]
    factual: np.ndarray
    reconstruction: np.ndarray
    counterfactual: np.ndarray
    truth: np.ndarray | None
    factual_labels: np.ndarray
    predicted_labels: np.ndarray
    true_labels: np.ndarray | None
    measured_labels: np.ndarray
    factual_classes: np.ndarray | None = None
    measured_classes: np.ndarray | None = None
    measured_factual: np.ndarray | None = None
    read_labels: np.ndarray | None = None
    read_factual: np.ndarray | None = None
    pixel_std: np.ndarray | None = None
    label_std: np.ndarray | None = None
    image_distance: np.ndarray | None = None
    label_distance: np.ndarray | None = None

    @cached_property
    def counterfactual_l1(self) -> np.ndarray | None:
        """Error of the counterfactual."""
        return None if self.truth is None else l1_errors(self.counterfactual, self.truth)

    @cached_property
    def do_nothing_l1(self) -> np.ndarray | None:
        """Error of the factual image as counterfactual."""
        return None if self.truth is None else l1_errors(self.factual, self.truth)

    @cached_property
    def reconstruction_l1(self) -> np.ndarray:
        """Error of the null intervention."""
        return l1_errors(self.reconstruction, self.factual)

    @cached_property
    def change_l1(self) -> np.ndarray:
        """Difference between the counterfactual and the factual image."""
        return l1_errors(self.counterfactual, self.factual)


def check_labels(model: CausalModel, data: ImageData) -> None:
    """Raises `InputError` that names the first missing label, for a model that is given the labels of the images."""
    if model.needs_labels or model.unconditional_abduction:
        check_complete(data.labels, data.spec.graph.names, data.ids)


def predict_split(
    engine: CounterfactualEngine,
    data: ImageData,
    dos: Sequence[CheckedDo],
    guidances: Sequence[Guidance] | None = None,
    batch_size: int = 100,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], object] | None = None,
    seed: int = 0,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images (N, C, H, W) uint8 and predicted labels (N, n) under each intervention; each batch is abducted once.

    Args:
        guidances: one per intervention; by default the engine's own.
        on_batch: called with the number of images of each finished batch.
        seed: seed of x_T if the abduction samples it.
    """
    parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in dos]
    generator = torch.Generator(device).manual_seed(seed)
    for start in range(0, len(data), batch_size):
        rows = slice(start, min(start + batch_size, len(data)))
        part = data.subset(range(rows.start, rows.stop))
        x_start, classes, labels = model_inputs(part, device)
        abducted = engine.abduct(x_start, classes, generator, labels)
        results = engine.predict(abducted, [do.rows(rows) for do in dos], guidances)
        for found, result in zip(parts, results, strict=True):
            found.append((finite_uint8(result.images), result.labels.cpu().numpy()))
        if on_batch is not None:
            on_batch(len(part))
    columns = (zip(*found, strict=True) for found in parts)
    return [(np.concatenate(images), np.concatenate(labels)) for images, labels in columns]


def finite_uint8(images: torch.Tensor) -> np.ndarray:
    """Images in [-1, 1] as 0..255 uint8; raises `InputError` that names those with NaN or infinity."""
    return to_uint8(finite_images(images, "counterfactuals")).cpu().numpy()


def evaluate_interventions(
    engine: CounterfactualEngine,
    data: ImageData,
    interventions: Sequence[Mapping[str, float]],
    batch_size: int = 100,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], object] | None = None,
    seed: int = 0,
    guidances: Sequence[Guidance] | None = None,
    measurement: Measurement | None = None,
    read_classes: ClassReader | None = None,
    encoder: Measurement | None = None,
) -> list[InterventionResult]:
    """Applies every intervention to every image and renders the true counterfactuals; arguments as in `predict_split`.

    Args:
        guidances: one per intervention; the reconstruction is never guided.
        measurement: computes `measured_labels` and `measured_factual`; by default the data set's `measure`.
        read_classes: computes `measured_classes` of interventions that set the class.
        encoder: computes `read_labels` and `read_factual`.
    """
    if not interventions:
        raise InputError("do: expected at least one intervention, got none")
    dos = [engine.spec.check_do(do) for do in interventions]
    with_null = None if guidances is None else [engine.guidance, *guidances]
    null = CheckedDo()
    (reconstruction, _), *drawn = predict_split(
        engine, data, [null, *dos], with_null, batch_size, device, on_batch, seed
    )
    known = [do for do in dos if truth_is_known(data) or truth_is_known(data, do)]
    distinct = {tuple(sorted(do.items())): do for do in known}
    truths = {key: _truth(data, do) for key, do in distinct.items()}
    read = measurement or (lambda images: measure(data.spec, images))
    of_factual, encoded_factual = read(data.images), encoder(data.images) if encoder else None
    results = []
    for do, (images, labels) in zip(dos, drawn, strict=True):
        known_labels, truth = truths.get(tuple(sorted(do.items())), (None, None))
        factual = (data.images, reconstruction, images, truth, data.labels)
        classes = (data.classes, read_classes(images) if read_classes and engine.spec.class_name in do else None)
        encoded = (encoder(images) if encoder else None, encoded_factual)
        given = (*factual, labels, known_labels, read(images), *classes, of_factual, *encoded)
        results.append(InterventionResult(do, *given))
    return results


def _truth(data: ImageData, do: CheckedDo) -> tuple[np.ndarray | None, np.ndarray | None]:
    """True labels and images; None for what is unknown, as the image of another class."""
    if (known := known_truth(data, do)) is not None:
        return known
    try:
        return true_labels(data, do), None
    except InputError:  # the generator cannot draw this intervention; the model can
        return None, None


def traversal_values(spec: DatasetSpec, name: str, count: int = 6) -> list[float]:
    """All categories of a variable, or `count` values over its range, rounded to about a hundredth of it."""
    if spec.values_of(name):
        return list(spec.values_of(name))
    i = spec.graph.index(name)
    low, high = spec.low[i], spec.high[i]
    margin = 0.05 * (high - low)  # training data are sparse at the ends
    return [round_in_range(value, low, high) for value in np.linspace(low + margin, high - margin, count)]


def summary(result: InterventionResult, spec: DatasetSpec) -> dict[str, float]:
    """Means over images: pixel errors, and errors of measured and predicted labels of every variable.

    Errors are absolute or, for a binary or categorical variable, error rates, over the images whose true label is known
    (`not_labelled_NAME` is the number of the others, if there are any). For such a variable that is set,
    `reached_NAME` is the fraction of images measured to be of that category; likewise for a class that is set.
    `pixel_std` and `label_std_NAME` are the spread over several abductions, if they were drawn. `measured_NAME` is NaN
    for three or more categories, whose codes have no mean.
    """
    figures = {"images": float(len(result.factual)), "reconstruction_l1": float(result.reconstruction_l1.mean())}
    figures["change_l1"] = float(result.change_l1.mean())
    if result.counterfactual_l1 is not None and result.do_nothing_l1 is not None:
        figures["counterfactual_l1"] = float(result.counterfactual_l1.mean())
        figures["counterfactual_l1_interval"] = interval(result.counterfactual_l1)
        figures["do_nothing_l1"] = float(result.do_nothing_l1.mean())
    categories = spec.all_category_values()
    labels = result.true_labels
    if labels is not None:
        measured_errors = label_errors(result.measured_labels, labels, categories)
        predicted_errors = label_errors(result.predicted_labels, labels, categories)
    for j, name in enumerate(spec.graph.names):
        measured = result.measured_labels[:, j]
        finite = np.isfinite(measured)
        figures[f"measured_{name}"] = _mean(measured[finite]) if len(categories[j]) < 3 else float("nan")
        figures[f"not_measured_{name}"] = float((~finite).sum())
        if name in result.do and categories[j]:
            requested = nearest_category(np.full(len(measured), result.do[name]), categories[j])
            figures[f"reached_{name}"] = _mean((nearest_category(measured, categories[j]) == requested)[finite])
        if labels is not None:
            known = np.isfinite(labels[:, j])
            figures[f"measured_error_{name}"] = _mean(measured_errors[finite & known, j])
            figures[f"predicted_error_{name}"] = _mean(predicted_errors[known, j])
            if not known.all():
                figures[f"not_labelled_{name}"] = float((~known).sum())
    if result.pixel_std is not None and result.label_std is not None:
        figures["pixel_std"] = float(result.pixel_std.mean())
        figures |= {
            f"label_std_{name}": float(result.label_std[:, j].mean()) for j, name in enumerate(spec.graph.names)
        }
    if result.measured_classes is not None:
        reached = result.measured_classes == result.do[spec.class_name]
        figures[f"reached_{spec.class_name}"] = float(reached.mean())
    return figures


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def slope(measured: np.ndarray, true: np.ndarray) -> float:
    """Least-squares slope of measured on true labels within images, (K, N) each for K interventions on N images.

    Each image is centred first, so differences between images have no effect. Images with an unmeasurable label are
    excluded; NaN if none remain or the true label is constant.
    """
    found = np.isfinite(measured).all(axis=0) & np.isfinite(true).all(axis=0)
    dx, dy = (values[:, found] - values[:, found].mean(axis=0) for values in (true, measured))
    spread = float((dx**2).sum())
    return float((dx * dy).sum() / spread) if spread > 0 else float("nan")


def traversal(results: Sequence[InterventionResult], spec: DatasetSpec) -> dict[str, dict[str, float]]:
    """Effect on each variable of setting one variable to several values, over all images and values.

    `slope`: slope of measured on true counterfactual labels, for the variable and its descendants; ideally 1.
    `error_rate` replaces the slope for a binary or categorical variable; ideally 0. `change`: mean change of the
    measured label from the factual image, or the fraction of images whose category changes, for non-descendants;
    ideally 0. Figures that do not apply are NaN.
    """
    first, categories = results[0], spec.all_category_values()
    affected = set(first.do).union(*(spec.graph.descendants(name) for name in spec.names_of(first.do)))
    before = measure(spec, first.factual) if first.measured_factual is None else first.measured_factual
    all_changes = np.stack([label_errors(result.measured_labels, before, categories) for result in results])
    figures = {}
    for j, name in enumerate(spec.graph.names):
        measured = np.stack([result.measured_labels[:, j] for result in results])
        true = [result.true_labels[:, j] for result in results if result.true_labels is not None]
        if name in first.do and not true:  # the true label of what is set
            true = [np.full(len(result.factual), result.do[name]) for result in results]
        figures[name] = dict.fromkeys(("slope", "error_rate", "change"), float("nan"))
        if name not in affected:
            changes = all_changes[:, :, j]
            figures[name]["change"] = _mean(changes[np.isfinite(changes)])
        elif true and categories[j]:
            errors = label_errors(measured.reshape(-1, 1), np.stack(true).reshape(-1, 1), [categories[j]])
            figures[name]["error_rate"] = _mean(errors[np.isfinite(errors)])
        elif true:
            figures[name]["slope"] = slope(measured, np.stack(true))
    return figures


def write_csv(path: Path, results: Sequence[InterventionResult], data: ImageData) -> None:
    """One row per image, intervention and variable: requested, factual, predicted, measured and true label.

    Categories are written by name.
    """
    spec = data.spec
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["image", "do", "variable", "requested", "factual", "predicted", "measured", "true", *PIXEL_COLUMNS]
        )
        for result in results:
            do, pixel_errors = describe_do(result.do, spec), [getattr(result, name) for name in PIXEL_COLUMNS]
            for i, image in enumerate(data.ids):
                errors = ["" if column is None else f"{column[i]:.4f}" for column in pixel_errors]
                for j, name in enumerate(spec.graph.names):
                    requested = spec.format_value(name, result.do[name], 6) if name in result.do else ""
                    known = [result.factual_labels, result.predicted_labels, result.measured_labels, result.true_labels]
                    row = ["" if each is None else spec.format_value(name, each[i, j], 6) for each in known]
                    writer.writerow([image, do, name, requested, *row, *errors])
                if spec.class_name in result.do:
                    writer.writerow([image, do, *_class_row(result, spec, i), *errors])


def _class_row(result: InterventionResult, spec: DatasetSpec, i: int) -> list[str]:
    """Name of the class, and its requested, factual, predicted, measured and true value for image i."""
    requested = f"{result.do[spec.class_name]:.6g}"
    known = ["" if each is None else f"{each[i]}" for each in (result.factual_classes, result.measured_classes)]
    return [spec.class_name, requested, known[0], requested, known[1], requested]


def arrays(results: Sequence[InterventionResult], spec: DatasetSpec | None = None) -> dict[str, np.ndarray]:
    """All images and labels as named arrays for an .npz file."""
    named: dict[str, np.ndarray] = {
        "factual": results[0].factual,
        "reconstruction": results[0].reconstruction,
        "factual_labels": results[0].factual_labels,
        "interventions": np.array([describe_do(result.do, spec) for result in results]),
    }
    for i, result in enumerate(results):
        for name in (
            "counterfactual",
            "truth",
            "predicted_labels",
            "true_labels",
            "measured_labels",
            "pixel_std",
            "label_std",
        ):
            value = getattr(result, name)
            if value is not None:
                named[f"{name}_{i}"] = value
    return named
