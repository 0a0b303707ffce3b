"""The protocol of Melistas et al. (2024, "Benchmarking counterfactual image generation") on MorphoMNIST.

What it shares with the published figures: all images of the test split; values drawn evenly from the distinct test
values whose bin, of `BIN_EDGES` edges, differs from the image's own, and classes from the other ones; abduction from
the true factual labels (`use_labels`); errors of labels predicted from the counterfactual image against the labels that
the model itself predicts; composition on 0..255 over an image padded to `PADDED` pixels. What differs: the predictors
are ours, and bins have equal widths. The published code takes the mean values of nine equal bins as edges; its
interventions are 2 to 3 % smaller on average. Errors against the data's true labels, which the published protocol does
not report, are given beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from causaldiffae.counterfactual import Counterfactual, CounterfactualEngine
from causaldiffae.datasets.images import ImageData, model_inputs, spread_or_all
from causaldiffae.datasets.registry import true_counterfactual, truth_is_known
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
VERSION: Final = 1
BIN_EDGES: Final = 9
PADDED: Final = 32
CYCLES: Final = (1, 10)


def draw_interventions(data: ImageData, seed: int, sets_class: bool = True) -> dict[str, np.ndarray]:
    """Values (N,) of one intervention per image on every variable, and with `sets_class` on the class, if any."""
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
    cycle_images: int = 500,
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
        "VARIABLE/own" and, with a known truth, "VARIABLE/true" -> (B, n) errors of the labels, (B, n + 1) with the
        accuracy of the class; "composition/CYCLES" -> (B,).
    """
    rows = task.batches[number]
    part, do = task.data.subset(rows), {name: values[rows] for name, values in task.values.items()}
    x_start, classes, labels = model_inputs(part, device)
    drawn = torch.Generator(device).manual_seed(task.seed * len(task.batches) + number)
    abducted = engine.abduct(x_start, classes, drawn, labels=labels)
    null, *results = engine.predict(abducted, [{}, *({name: values} for name, values in do.items())])
    outputs = {f"{name}/{against}": values for (name, against), values in _errors(part, do, results, predictor)}
    model, first = _model(engine, classes, labels, drawn), (null.images, null.labels)
    padding = min(part.spec.image_size**2 / PADDED**2, 1.0)  # pixels of the padding are exact
    for cycle in CYCLES if task.long[rows].any() else CYCLES[:1]:
        found = axioms.composition(model, x_start, labels, cycle, first)
        outputs[f"composition/{cycle}"] = found.cpu().numpy() * padding
    return outputs


def peers_figures(outputs: Sequence[Mapping[str, np.ndarray]], spec: DatasetSpec, seed: int = 0) -> dict[str, Any]:
    """The figures of the protocol, as plain types, from the errors of all batches.

    Args:
        seed: of the intervals.

    Returns:
        `interventions` -> variable -> `own`, `true` (with a known truth) -> label -> figure, with the accuracy of the
        class under its name; `composition` -> number of cycles -> figure.
    """
    joined = {key: np.concatenate([each[key] for each in outputs if key in each]) for key in outputs[0]}
    columns = [*spec.graph.names, *([spec.class_name] if spec.num_classes else [])]
    figures: dict[str, Any] = {}
    composed = {str(cycle): mean_figure(joined.pop(f"composition/{cycle}"), seed).to_dict() for cycle in CYCLES}
    for key, values in joined.items():
        name, against = key.rsplit("/", 1)
        figures.setdefault(name, {})[against] = {
            column: mean_figure(errors, seed, rate=bool(spec.values_of(column))).to_dict()
            for column, errors in zip(columns, values.T, strict=False)  # a predictor may read no class
        }
    images = sum(len(each[f"composition/{CYCLES[0]}"]) for each in outputs)
    return {"images": images, "interventions": figures, "composition": composed}


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
    """A text table of a results file: one row per intervention and kind of target, for each abduction."""
    found, rows = report["abduction"], []
    columns = list(next(iter(next(iter(found.values()))["interventions"].values()))["own"])
    for abduction, figures in found.items():
        for name, against in figures["interventions"].items():
            for target, row in against.items():
                cells = [shown(row.get(column)) for column in columns]
                rows.append([f"do({name})", f"{target} labels", abduction, *cells])
    titles = [f"{name} {'accuracy' if name == report['class_name'] else 'error'}" for name in columns]
    lines = [
        f"composition, abduction from {abduction}: "
        + ", ".join(f"{shown(figure)} after {cycle} cycles" for cycle, figure in figures["composition"].items())
        for abduction, figures in found.items()
    ]
    return "\n".join([text_table(["intervention", "against", "abduction from", *titles], rows, texts=3), *lines])
