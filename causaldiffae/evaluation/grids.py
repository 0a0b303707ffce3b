"""Grids of a test: factual images, counterfactuals and true images, with what is read from them below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from causaldiffae.datasets.captions import caption_note, caption_texts, class_captions, join_captions, label_captions
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.evaluation.interventions import InterventionResult, describe_do
from causaldiffae.training.responses import MEASURED
from causaldiffae.visualization.image_grids import labelled_grid, spread_maps


def readings(result: InterventionResult) -> tuple[np.ndarray, np.ndarray]:
    """What is read from the counterfactuals and from the factual images, (N, n); NaN where nothing can read it."""
    if result.read_labels is not None and result.read_factual is not None:
        return result.read_labels, result.read_factual
    unknown = np.full_like(result.measured_labels, np.nan)
    return result.measured_labels, unknown if result.measured_factual is None else result.measured_factual


def result_captions(result: InterventionResult, spec: DatasetSpec, rows: np.ndarray) -> list[str]:
    """Captions of the counterfactuals of some rows: what is read from them, and what was requested or predicted."""
    read, read_factual = readings(result)
    requested, names = result.predicted_labels.astype(np.float64), spec.names_of(result.do)
    for name in names:
        requested[:, spec.graph.index(name)] = result.do[name]
    misread = np.abs(read_factual - result.factual_labels)
    errors = [column[np.isfinite(column)].mean() if np.isfinite(column).any() else 0.0 for column in misread.T]
    factual = np.where(np.isnan(result.factual_labels), read_factual, result.factual_labels)
    texts = caption_texts(spec, requested[rows], read[rows], factual[rows], names, errors)
    if spec.class_name in result.do:
        wanted, found = np.full(len(rows), result.do[spec.class_name]), result.measured_classes
        texts[spec.class_name] = class_captions(wanted, None if found is None else found[rows])
    return join_captions(texts)


def draw_grid(
    results: Sequence[InterventionResult],
    spec: DatasetSpec,
    count: int,
    title: str = "",
    reader: str = MEASURED,
) -> np.ndarray:
    """Up to `count` rows of factual image, reconstruction, and each counterfactual with the true one, (H, W, 3) uint8.

    Captions are labels; see `result_captions` for those of counterfactuals. `reader` says what reads them, "" if
    nothing does, unless there is a `title`.
    """
    first = results[0]
    rows = _rows(first, count)
    columns = [("factual", first.factual[rows]), ("reconstruction", first.reconstruction[rows])]
    errors = [f"L1 {value:.1f}" for value in first.reconstruction_l1[rows]]
    captions = [label_captions(spec, first.factual_labels[rows]), errors]
    for result in results:
        columns.append((describe_do(result.do, spec).replace(", ", ",\n"), result.counterfactual[rows]))
        captions.append(result_captions(result, spec, rows))
        if result.pixel_std is not None and result.label_std is not None:
            heading, drawn, texts = _spread_column(result.pixel_std[rows], result.label_std[rows], spec)
            columns.append((heading, drawn))
            captions.append(texts)
        if result.truth is not None and result.true_labels is not None:
            columns.append(("true", result.truth[rows]))
            captions.append(label_captions(spec, result.true_labels[rows]))
    return labelled_grid(columns, cell_captions=captions, title=title or caption_note(reader))


def _spread_column(
    pixel_std: np.ndarray, label_std: np.ndarray, spec: DatasetSpec
) -> tuple[str, np.ndarray, list[str]]:
    """Heading, maps (N, 1, H, W) uint8 and captions of the spread over several abductions; white is the largest."""
    texts = {name: [f"± {value:.2g}" for value in label_std[:, i]] for i, name in enumerate(spec.graph.names)}
    return *spread_maps(pixel_std), join_captions(texts)


def _rows(result: InterventionResult, count: int) -> np.ndarray:
    """Up to `count` row indices, evenly spread because the split may be sorted."""
    return np.linspace(0, len(result.factual) - 1, min(count, len(result.factual))).astype(int)


def draw_traversal(
    results: Sequence[InterventionResult],
    spec: DatasetSpec,
    headings: Sequence[str],
    count: int,
    reader: str = MEASURED,
) -> np.ndarray:
    """Up to `count` images: factual, then one column per result, with the true images below, (H, W, 3) uint8."""
    first = results[0]
    rows = _rows(first, count)
    columns = [("factual", first.factual[rows])]
    captions = [label_captions(spec, first.factual_labels[rows])]
    below = [(np.full_like(first.factual[rows], 255), ["true images:"] * len(rows))]
    for heading, result in zip(headings, results, strict=True):
        columns.append((heading, result.counterfactual[rows]))
        captions.append(result_captions(result, spec, rows))
        if result.truth is not None and result.true_labels is not None:
            below.append((result.truth[rows], label_captions(spec, result.true_labels[rows])))
    if len(below) == len(columns):  # alternate rows of counterfactuals and true images
        for j, (images, texts) in enumerate(below):
            heading, drawn = columns[j]
            columns[j] = (heading, np.stack([drawn, images], axis=1).reshape(-1, *drawn.shape[1:]))
            captions[j] = [text for pair in zip(captions[j], texts, strict=True) for text in pair]
    return labelled_grid(columns, cell_captions=captions, title=caption_note(reader))
