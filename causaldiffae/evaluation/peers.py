"""The protocol of Melistas et al. (2024, "Benchmarking counterfactual image generation") on MorphoMNIST.

What it shares with the published figures: all images of the test split; values drawn evenly from the distinct test
values whose bin differs from the image's own, with the means of `BINS` bins of equal width as edges (`bin_edges`), and
classes from the other ones; abduction from the true factual labels (`use_labels`); errors of labels predicted from the
counterfactual image against the labels that the model itself predicts; predictors that normalise by batch statistics;
composition on 0..255 over an image padded to `PADDED` pixels. What differs: the predictors are ours, and none is told
the intensity. What the published protocol does not report is given beside: readings with running statistics, errors
against the data's true labels, and the errors of the predictor on true images (floors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.images import ImageData, model_inputs, spread_or_all
from causaldiffae.datasets.registry import labels_are_known, true_counterfactual, true_labels, truth_is_known
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.interventions import finite_uint8
from causaldiffae.evaluation.tables import shown, text_table
from causaldiffae.files.reading import MAX_JSON_BYTES, read_json
from causaldiffae.metrics import axioms
from causaldiffae.metrics.effectiveness import label_errors
from causaldiffae.metrics.intervals import mean_figure
from causaldiffae.predictors.predictor import Predictor

NAME: Final = "melistas"
VERSION: Final = 2
BINS: Final = 9
PADDED: Final = 32
CYCLES: Final = (1, 10)
STATISTICS: Final = {"running": False, "batch": True}
"""Readings of the predictor, and whether they are normalised by the statistics of the batch."""


def bin_edges(labels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Edges (K,), at most `BINS`: the mean of the labels (N,) in each bin of equal width between `low` and `high`.

    An empty bin has no edge, and labels outside the range are in no bin. All are in label units.
    """
    numbers = np.digitize(labels, np.linspace(low, high, BINS + 1)[:-1])
    numbers[labels > high] = 0
    return np.array([labels[numbers == number].mean() for number in np.unique(numbers[numbers > 0])])


def draw_interventions(data: ImageData, seed: int, sets_class: bool = True) -> dict[str, np.ndarray]:
    """Values (N,) of one intervention per image on every variable, and with `sets_class` on the class, if any.

    Values are in label units. The bins of a categorical variable are its categories.
    """
    spec, rng = data.spec, np.random.Generator(np.random.Philox(key=[seed, 0x6D65]))
    drawn = {}
    for i, name in enumerate(spec.graph.names):
        labels = data.labels[:, i].astype(np.float64)
        if np.isnan(labels).any():
            raise InputError(f"{name}: expected labels of all test images, got {int(np.isnan(labels).sum())} without")
        values = np.unique(labels)
        edges = values if spec.values_of(name) else bin_edges(labels, spec.low[i], spec.high[i])
        bins, own = np.digitize(values, edges), np.digitize(labels, edges)
        if len(set(bins)) < 2:
            raise InputError(f"{name}: expected test labels in two bins or more, got one")
        drawn[name] = np.array([rng.choice(values[bins != bin_]) for bin_ in own])
    if sets_class and data.classes is not None and spec.num_classes:
        drawn[spec.class_name] = (data.classes + rng.integers(1, spec.num_classes, len(data))) % spec.num_classes
    return drawn


@dataclass(frozen=True)
class PeersTask:
    """Images and interventions of the protocol, in batches.

    Attributes:
        data: N test images with labels.
        values: variable or class -> (N,) values of the interventions.
        long: (N,) bool mask of the images for composition over ten cycles.
        batches: rows of every batch; images for ten cycles are batched together.
        seed: of the interventions, and of what an abduction draws.
    """

    data: ImageData
    values: dict[str, np.ndarray]
    long: np.ndarray
    batches: list[np.ndarray]
    seed: int = 0


def make_task(
    test: ImageData,
    seed: int = 0,
    batch_size: int = 50,
    cycle_images: int = 50,
    num_images: int = 0,
    sets_class: bool = True,
) -> PeersTask:
    """The task of the protocol on the test split.

    Args:
        cycle_images: images for composition over ten cycles, rounded up to a batch; 0 for all.
        num_images: images, evenly spread over the split; 0 for all. Interventions do not depend on it.
        sets_class: also set the class, where the data set has one.

    Raises:
        InputError: for more images than the split has, or labels that are missing or alike.
    """
    total = len(test)
    if num_images > total:
        raise InputError(f"num_images: expected at most {total}, the size of the test split, got {num_images}")
    rows = spread_or_all(num_images, total)
    values = {name: each[rows] for name, each in draw_interventions(test, seed, sets_class).items()}
    data = test.subset(rows)
    long = np.zeros(len(data), bool)
    long[spread_or_all(cycle_images, len(data))] = True
    order = np.argsort(~long, kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(data), batch_size)]
    return PeersTask(data, values, long, batches, seed)


def evaluate_batch(
    engine: CounterfactualEngine, task: PeersTask, number: int, predictor: Predictor, device: torch.device | str = "cpu"
) -> dict[str, np.ndarray]:
    """The errors of one batch of B images.

    Args:
        engine: its `use_labels` decides between the true factual labels and those of the encoder.
        predictor: reads labels and classes; trained on clean images.

    Returns:
        "STATISTICS/VARIABLE/own" and, with known true labels, "STATISTICS/VARIABLE/true" -> (B, n) errors in label
        units, (B, n + 1) with the accuracy of the class; "composition/CYCLES" -> (B,), in grey levels. The B images
        are the batch of batch statistics.
    """
    rows = task.batches[number]
    part, do = task.data.subset(rows), {name: values[rows] for name, values in task.values.items()}
    x_start, classes, labels = model_inputs(part, device)
    drawn = torch.Generator(device).manual_seed(task.seed * len(task.batches) + number)
    abducted = engine.abduct(x_start, classes, drawn, labels=labels)
    null, *results = engine.predict(abducted, [{}, *({name: values} for name, values in do.items())])
    outputs: dict[str, np.ndarray] = {}
    for (name, values), result in zip(do.items(), results, strict=True):
        targets = {f"{name}/own": result.labels.cpu().numpy()}
        if name == part.spec.class_name:
            targets[f"{name}/true"] = part.labels  # the class has no descendants
        elif labels_are_known(part):
            targets[f"{name}/true"] = true_labels(part, {name: values})
        expected = values if name == part.spec.class_name else part.classes
        outputs |= _errors(part.spec, finite_uint8(result.images), targets, expected, predictor)
    model, first = _model(engine, classes, labels, drawn), (null.images, null.labels)
    padding = min(part.spec.image_size**2 / PADDED**2, 1.0)  # pixels of the padding are exact
    for cycle in CYCLES if task.long[rows].any() else CYCLES[:1]:
        found = axioms.composition(model, x_start, labels, cycle, first)
        outputs[f"composition/{cycle}"] = found.cpu().numpy() * padding
    return outputs


def floors_of_batch(task: PeersTask, number: int, predictor: Predictor) -> dict[str, np.ndarray]:
    """The errors of the predictor on the true images of one batch, which no model can be expected to fall below.

    Returns:
        "STATISTICS/factual" and, with known true counterfactual images, "STATISTICS/do(VARIABLE)" -> errors as in
        `evaluate_batch`, against the true labels.
    """
    rows = task.batches[number]
    part = task.data.subset(rows)
    outputs = _errors(part.spec, part.images, {"factual": part.labels}, part.classes, predictor)
    for name in part.spec.graph.names if truth_is_known(part) else ():
        labels, images = true_counterfactual(part, {name: task.values[name][rows]})
        outputs |= _errors(part.spec, images, {f"do({name})": labels}, part.classes, predictor)
    return outputs


def _errors(
    spec: DatasetSpec,
    images: np.ndarray,
    targets: Mapping[str, np.ndarray],
    classes: np.ndarray | None,
    predictor: Predictor,
) -> dict[str, np.ndarray]:
    """Errors of the labels read from images (B, C, S, S) uint8 against targets (B, n), in label units.

    Returns:
        "STATISTICS/TARGET" -> (B, n), or with expected `classes` (B,) and a predictor that reads them (B, n + 1), with
        the accuracy.
    """
    categories, found = spec.all_category_values(), {}
    for statistics, of_batch in STATISTICS.items():
        readings = predictor.read(images, batch_statistics=of_batch)
        right = []
        if classes is not None and readings.classes is not None and spec.num_classes:
            right = [(readings.classes == classes).astype(np.float64)[:, None]]
        for target, labels in targets.items():
            errors = label_errors(readings.labels, labels.astype(np.float64), categories)
            found[f"{statistics}/{target}"] = np.hstack([errors, *right])
    return found


def peers_figures(outputs: Sequence[Mapping[str, np.ndarray]], spec: DatasetSpec, seed: int = 0) -> dict[str, Any]:
    """The figures of the protocol, as plain types, from the errors of all batches.

    Args:
        seed: of the intervals.

    Returns:
        `interventions`, read with running statistics, and `batch_statistics` -> variable -> `own`, `true` (with known
        true labels) -> label -> figure, with the accuracy of the class under its name; `composition` -> number of
        cycles -> figure.
    """
    joined = _joined(outputs)
    figures: dict[str, dict[str, Any]] = {statistics: {} for statistics in STATISTICS}
    composed = {str(cycle): mean_figure(joined.pop(f"composition/{cycle}"), seed).to_dict() for cycle in CYCLES}
    for key, values in joined.items():
        statistics, rest = key.split("/", 1)
        name, against = rest.rsplit("/", 1)
        figures[statistics].setdefault(name, {})[against] = _by_label(values, spec, seed)
    return {
        "images": sum(len(each[f"composition/{CYCLES[0]}"]) for each in outputs),
        "interventions": figures["running"],
        "batch_statistics": figures["batch"],
        "composition": composed,
    }


def floor_figures(outputs: Sequence[Mapping[str, np.ndarray]], spec: DatasetSpec, seed: int = 0) -> dict[str, Any]:
    """The figures of `floors_of_batch`, `running` and `batch` -> `factual` and `do(VARIABLE)` -> label -> figure.

    Args:
        seed: of the intervals.
    """
    figures: dict[str, Any] = {statistics: {} for statistics in STATISTICS}
    for key, values in _joined(outputs).items():
        statistics, images = key.split("/", 1)
        figures[statistics][images] = _by_label(values, spec, seed)
    return figures


def _joined(outputs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([each[key] for each in outputs if key in each]) for key in outputs[0]}


def _by_label(errors: np.ndarray, spec: DatasetSpec, seed: int) -> dict[str, Any]:
    """Label -> figure of errors (N, n), or (N, n + 1) with the accuracy of the class."""
    columns = [*spec.graph.names, *([spec.class_name] if spec.num_classes else [])]
    return {
        column: mean_figure(values, seed, rate=bool(spec.values_of(column))).to_dict()
        for column, values in zip(columns, errors.T, strict=False)  # a predictor may read no class
    }


def _model(
    engine: CounterfactualEngine, classes: Tensor | None, factual_labels: Tensor, drawn: torch.Generator
) -> axioms.Model:
    """A function that applies one intervention; in every cycle images are abducted from the factual labels."""

    def apply(images: Tensor, labels: Tensor, do: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        result = engine.predict(engine.abduct(images, classes, drawn, labels=factual_labels), [do])[0]
        return result.images, result.labels

    return apply


def is_report(path: Path) -> bool:
    """Whether a JSON file holds results of this protocol."""
    protocol = read_json(path, MAX_JSON_BYTES).get("protocol")
    return isinstance(protocol, dict) and protocol.get("name") == NAME


def peers_table(report: Mapping[str, Any]) -> str:
    """A text table of a results file: one row per abduction, intervention, target and statistics, then the floors."""
    found, rows = report["abduction"], []
    columns = list(next(iter(next(iter(found.values()))["interventions"].values()))["own"])
    for abduction, figures in found.items():
        both = zip(STATISTICS, (figures["interventions"], figures.get("batch_statistics", {})), strict=True)
        for statistics, interventions in both:
            for name, against in interventions.items():
                for target, row in against.items():
                    cells = [shown(row.get(column)) for column in columns]
                    rows.append([f"do({name})", f"{target} labels", abduction, statistics, *cells])
    for statistics, floors in report.get("floors", {}).items():
        for images, row in floors.items():
            cells = [shown(row.get(column)) for column in columns]
            rows.append([images, "true labels", "(true images)", statistics, *cells])
    titles = [f"{name} {'accuracy' if name == report['class_name'] else 'error'}" for name in columns]
    lines = [
        f"composition, abduction from {abduction}: "
        + ", ".join(f"{shown(figure)} after {cycle} cycles" for cycle, figure in figures["composition"].items())
        for abduction, figures in found.items()
    ]
    headings = ["intervention", "against", "abduction from", "statistics", *titles]
    return "\n".join([text_table(headings, rows, texts=4), *lines])
