"""The protocol of Melistas et al. (2024, "Benchmarking counterfactual image generation") on MorphoMNIST.

What it shares with the published figures: all images of the test split; values drawn evenly from the distinct test
values whose bin, of `BIN_EDGES` edges, differs from the image's own, and classes from the other ones; abduction from
the true factual labels (`use_labels`); errors of labels predicted from the counterfactual image against the labels that
the model itself predicts; composition on 0..255 over an image padded to `PADDED` pixels. What differs: the predictors
are ours. Errors against the data's true labels, which the published protocol does not report, are given beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from causaldiffae.counterfactual import Counterfactual, CounterfactualEngine
from causaldiffae.datasets.images import ImageData, evenly_spread, model_inputs
from causaldiffae.datasets.registry import true_counterfactual, truth_is_known
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.interventions import finite_uint8
from causaldiffae.evaluation.tables import shown, text_table
from causaldiffae.metrics import axioms
from causaldiffae.metrics.effectiveness import label_errors
from causaldiffae.metrics.intervals import mean_figure
from causaldiffae.predictors.predictor import Predictor

NAME: Final = "melistas"
VERSION: Final = 1
BIN_EDGES: Final = 9
PADDED: Final = 32
CYCLES: Final = (1, 10)


def draw_interventions(data: ImageData, seed: int) -> dict[str, np.ndarray]:
    """Values (N,) of one intervention per image on every variable, and on the class if there is one."""
    spec, rng = data.spec, np.random.Generator(np.random.Philox(key=[seed, 0x6D65]))
    drawn = {}
    for i, name in enumerate(spec.graph.names):
        labels = data.labels[:, i].astype(np.float64)
        if np.isnan(labels).any():
            raise InputError(f"{name}: expected labels of all test images, got {int(np.isnan(labels).sum())} without")
        values = np.unique(labels)
        inner = np.linspace(values[0], values[-1], BIN_EDGES)[1:-1]
        bins, own = np.digitize(values, inner), np.digitize(labels, inner)
        if len(set(bins)) < 2:
            raise InputError(f"{name}: expected test labels in two bins or more, got one")
        drawn[name] = np.array([rng.choice(values[bins != bin_]) for bin_ in own])
    if data.classes is not None and spec.num_classes:
        drawn[spec.class_name] = (data.classes + rng.integers(1, spec.num_classes, len(data))) % spec.num_classes
    return drawn


def evaluate_peers(
    engine: CounterfactualEngine,
    data: ImageData,
    predictor: Predictor,
    seed: int = 0,
    batch_size: int = 50,
    cycle_images: int = 500,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Applies the protocol to a model; returns its figures as plain types.

    Args:
        engine: its `use_labels` decides between the true factual labels and those of the encoder.
        data: test images with labels.
        predictor: reads labels and classes; trained on clean images.
        seed: of the interventions.
        cycle_images: images for composition over ten cycles, rounded up to a batch; 0 for all.
        on_batch: called with the number of images of each finished batch.

    Returns:
        `interventions` -> variable -> `own`, `true` (with a known truth) -> label -> figure, with the accuracy of the
        class under its name; `composition` -> number of cycles -> figure.
    """
    spec, drawn = data.spec, draw_interventions(data, seed)
    long = np.zeros(len(data), bool)
    long[evenly_spread(min(cycle_images or len(data), len(data)), len(data))] = True
    order = np.argsort(~long, kind="stable")  # images with ten cycles are batched together
    errors: dict[tuple[str, str], list[np.ndarray]] = {}
    cycles: dict[int, list[np.ndarray]] = {cycle: [] for cycle in CYCLES}
    for start in range(0, len(data), batch_size):
        rows = order[start : start + batch_size]
        part = data.subset(rows)
        do = {name: values[rows] for name, values in drawn.items()}
        x_start, classes, labels = model_inputs(part, device)
        abducted = engine.abduct(x_start, classes, labels=labels)
        null, *results = engine.predict(abducted, [{}, *({name: values} for name, values in do.items())])
        for key, values in _errors(part, do, results, predictor):
            errors.setdefault(key, []).append(values)
        model, first = _model(engine, classes, labels), (null.images, null.labels)
        for cycle in CYCLES if long[rows].any() else CYCLES[:1]:
            found = axioms.composition(model, x_start, labels, cycle, first)
            cycles[cycle].append(found.cpu().numpy() * min(spec.image_size**2 / PADDED**2, 1.0))  # padding is exact
        if on_batch is not None:
            on_batch(len(rows))
    columns = _columns(spec)
    figures: dict[str, Any] = {name: {} for name in drawn}
    for (name, against), parts in errors.items():
        values = np.concatenate(parts)
        figures[name][against] = {
            column: mean_figure(values[:, j], seed, rate=bool(spec.values_of(column))).to_dict()
            for j, column in enumerate(columns)
        }
    composed = {str(cycle): mean_figure(np.concatenate(parts), seed).to_dict() for cycle, parts in cycles.items()}
    return {"images": len(data), "interventions": figures, "composition": composed}


def _columns(spec: DatasetSpec) -> list[str]:
    """The variables, and the class if there is one."""
    return [*spec.graph.names, *([spec.class_name] if spec.num_classes else [])]


def _errors(
    part: ImageData, do: Mapping[str, np.ndarray], results: Sequence[Counterfactual], predictor: Predictor
) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """Yields (variable, "own" or "true") and label errors (B, n), or (B, n + 1) with the accuracy of the class."""
    spec, categories = part.spec, part.spec.all_category_values()
    for (name, values), result in zip(do.items(), results, strict=True):
        readings = predictor.read(finite_uint8(result.images))
        right = []
        if part.classes is not None and readings.classes is not None and spec.num_classes:
            expected = values if name == spec.class_name else part.classes
            right = [(readings.classes == expected).astype(np.float64)[:, None]]
        own = result.labels.cpu().numpy().astype(np.float64)
        yield (name, "own"), np.hstack([label_errors(readings.labels, own, categories), *right])
        if name == spec.class_name:
            true = part.labels.astype(np.float64)  # the class has no descendants
        elif truth_is_known(part):
            true = true_counterfactual(part, {name: values})[0].astype(np.float64)
        else:
            continue
        yield (name, "true"), np.hstack([label_errors(readings.labels, true, categories), *right])


def _model(engine: CounterfactualEngine, classes: Tensor | None, factual_labels: Tensor) -> axioms.Model:
    """A function that applies one intervention; in every cycle images are abducted from the factual labels."""

    def apply(images: Tensor, labels: Tensor, do: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        result = engine.predict(engine.abduct(images, classes, labels=factual_labels), [do])[0]
        return result.images, result.labels

    return apply


def peers_table(found: Mapping[str, Mapping[str, Any]], spec: DatasetSpec) -> str:
    """A text table: one row per intervention and kind of target, for each abduction of `found`."""
    columns, rows = _columns(spec), []
    for abduction, figures in found.items():
        for name, against in figures["interventions"].items():
            for target, row in against.items():
                cells = [shown(row.get(column)) for column in columns]
                rows.append([f"do({name})", f"{target} labels", abduction, *cells])
    headings = ["intervention", "against", "abduction from", *(f"{name} error" for name in spec.graph.names)]
    if spec.num_classes:
        headings.append(f"{spec.class_name} accuracy")
    lines = [
        f"composition, abduction from {abduction}: "
        + ", ".join(f"{shown(figure)} after {cycle} cycles" for cycle, figure in figures["composition"].items())
        for abduction, figures in found.items()
    ]
    return "\n".join([text_table(headings, rows, texts=3), *lines])
