"""The evaluation report: one self-contained HTML page with tables, bar charts and images.

Styles and SVG charts are inline and images are data URIs; the page has no scripts or links. Results may be untrusted
files, so the template escapes every value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.datasets.captions import caption_text, notable_difference
from causaldiffae.datasets.images import evenly_spread
from causaldiffae.errors import DataError
from causaldiffae.evaluation.pages import render_page
from causaldiffae.evaluation.run import images_file
from causaldiffae.evaluation.tables import (
    EXPLANATION,
    MISSING,
    Column,
    Results,
    by_dataset,
    columns_of,
    dig,
    effects_table,
    general_table,
    interventions_of,
    name_of,
    non_finite_note,
    rows_of,
    seeds_table,
    shown,
)
from causaldiffae.evaluation.verdict import evaluation_verdict
from causaldiffae.files.npz import NpzFile
from causaldiffae.visualization.image_grids import data_uri, labelled_grid

_COLOURS: Final = ("#2f6db3", "#d1782b", "#3f9160", "#8a5fb0", "#b34a5e", "#5a8f9c")
_GREY: Final = "#b9c2cc"
_BAR_WIDTH: Final = 190
_MAX_IMAGE_BYTES: Final = 1 << 28
_MAX_SIDE: Final = 1024
_SHOWN: Final = 4


def write_report(path: str | Path, files: Sequence[tuple[Path, Results]]) -> Path:
    """Writes the report of results files, given as (path, content)."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(files), encoding="utf-8")
    return target


def page(files: Sequence[tuple[Path, Results]]) -> str:
    """The report as HTML; images are read from the folders of the results files."""
    sources = {id(results): source for source, results in files}
    groups = by_dataset([results for _, results in files]).items()
    described = [{"title": title, **_describe(group, sources)} for title, group in groups]
    return render_page("report.html", explanation=EXPLANATION, groups=described)


def _describe(group: Sequence[Results], sources: dict[int, Path]) -> dict[str, Any]:
    """Template values of one data set."""
    columns = columns_of(group)
    images = {name_of(results): read_images(images_file(str(sources[id(results)]))) for results in group}
    return {
        "warning": non_finite_note(group),
        "interventions": [_intervention(group, do, columns) for do in interventions_of(group)],
        "texts": {
            "Verdict": "\n\n".join("\n".join(lines) for results in group if (lines := evaluation_verdict(results))),
            "Null intervention and disentanglement": general_table(group),
            "Treatment effects": effects_table(group),
            "Over training seeds": seeds_table(group),
        },
        "predictor": _predictor_errors(group[0]),
        "images": [
            (name, data_uri(image_grid(found, group[0]))) for name, found in images.items() if found is not None
        ],
        "settings": [(name_of(results), _settings(results)) for results in group],
    }


def _intervention(group: Sequence[Results], do: str, columns: Sequence[Column]) -> dict[str, Any]:
    rows = rows_of(group, do)
    low, high = dig(group[0], "results", "interventions", do, "range") or [float("nan")] * 2
    names = category_names(group[0], do)
    plotted = [column for column in columns if column.heading == "L1" or " error" in column.heading]
    return {
        "name": do,
        "span": ", ".join(names) or f"{low:g} .. {high:g}",
        "headings": [column.heading for column in columns],
        "rows": [
            {
                "name": name,
                "kind": "model" if kind == "model" else "reference",
                "cells": [_cell(column, results, do, kind, group) for column in columns],
            }
            for name, results, kind in rows
        ],
        "charts": [{"heading": column.heading, "bars": bars(column, rows, do)} for column in plotted],
    }


def _cell(column: Column, results: Results, do: str, kind: str, group: Sequence[Results]) -> dict[str, Any]:
    figure = column.find(results, do, kind)
    text, _, interval = shown(figure, column.decimals, interval=True).partition(" ")
    if figure is None or text == MISSING:
        return {"text": MISSING, "interval": "", "best": False}
    others = [column.find(each, do, "model") for each in group]
    means = [each["mean"] for each in others if each is not None and each["mean"] is not None]
    best = len(means) > 1 and kind == "model" and figure["mean"] == (min if column.lower_is_better else max)(means)
    return {"text": text, "interval": interval, "best": best}


def bars(column: Column, rows: Sequence[tuple[str, Results, str]], do: str) -> list[dict[str, Any]]:
    """One bar per row with a figure: lengths in pixels, models in colour, baselines in grey."""
    figures = [(name, kind, column.find(results, do, kind)) for name, results, kind in rows]
    known = [(name, kind, _ends(figure)) for name, kind, figure in figures if figure and figure["mean"] is not None]
    top = max((max(figure["high"], figure["mean"]) for _, _, figure in known), default=1.0) or 1.0
    return [
        {
            "label": name,
            "text": shown(figure, column.decimals),
            "colour": _COLOURS[i % len(_COLOURS)] if kind == "model" else _GREY,
            **{key: max(figure[key], 0.0) * _BAR_WIDTH / top for key in ("mean", "low", "high")},
        }
        for i, (name, kind, figure) in enumerate(known)
    ]


def _ends(figure: Mapping[str, Any]) -> dict[str, Any]:
    """A figure whose interval has width 0 in the chart if it is not known."""
    return {**figure, **{key: figure["mean"] for key in ("low", "high") if figure[key] is None}}


def _predictor_errors(results: Results) -> list[dict[str, Any]]:
    """The predictor's errors on true images, observational and interventional."""
    figures = results["predictor"].get("figures") or {}
    kinds = [kind for kind in ("observational", "interventional") if isinstance(figures.get(kind), dict)]
    names = [str(name) for name in figures[kinds[0]]] if kinds else []
    return [
        {"kind": kind, "errors": {name: f"{float(figures[kind].get(name, float('nan'))):.4g}" for name in names}}
        for kind in kinds
    ]


def _settings(results: Results) -> dict[str, Any]:
    return {
        **{f"model {key}": results["model"].get(key) for key in ("type", "step", "digest", "parameters", "path")},
        **{f"data {key}": results["data"].get(key) for key in ("dataset", "digest", "folder")},
        **dict(results["settings"]),
        **{f"version of {key}": value for key, value in dict(results.get("versions") or {}).items()},
        **dict(results.get("timing") or {}),
    }


def read_images(path: Path) -> dict[str, np.ndarray] | None:
    """Reads an images file of `run.images_file`; None if it does not exist.

    Raises:
        DataError: if the file is damaged or too large.
    """
    if not path.is_file():
        return None
    try:
        with NpzFile(path) as file:
            return _check_images(file.arrays("uf", _MAX_IMAGE_BYTES), path)
    except DataError as error:
        raise DataError(f"{error}; delete the file or run the evaluation again") from None


def _check_images(arrays: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Checks the arrays of `run.example_images`: same number of rows, images of the same shape."""
    variables = [key.removeprefix("values/") for key in arrays if key.startswith("values/")]
    required = ["factual", *(f"images/{name}" for name in variables)]
    optional = ["reconstruction", *(f"true_images/{name}" for name in variables)]
    images = [arrays.get(key) for key in (*required, *optional)]
    shape = arrays["factual"].shape if "factual" in arrays else ()
    valid = len(shape) == 4 and shape[0] > 0 and shape[1] in (1, 3, 4) and 0 < max(shape[2:]) <= _MAX_SIDE
    valid = valid and min(shape[2:]) > 0 and all(key in arrays for key in required)
    valid = valid and all(each is None or (each.shape == shape and each.dtype == np.uint8) for each in images)
    if not valid or not all(arrays[f"values/{name}"].shape == shape[:1] for name in variables):
        raise DataError(f"{path}: expected factual images, counterfactuals and values of one shape, got other arrays")
    return arrays


def category_names(results: Results, variable: str) -> list[str]:
    """Names of the categories of a variable; empty for a number, or if they are not known."""
    return list(dig(results, "data", "categories", variable) or [])


def image_grid(arrays: dict[str, np.ndarray], results: Results) -> np.ndarray:
    """Grid of factual images, reconstructions, and each intervention's counterfactuals with the true ones.

    Reconstructions and true images are optional.
    """
    count = min(_SHOWN, len(arrays["factual"]))
    rows = evenly_spread(count, len(arrays["factual"]))  # the split may be sorted
    columns: list[tuple[str, np.ndarray]] = [
        (key, arrays[key][rows]) for key in ("factual", "reconstruction") if key in arrays
    ]
    captions = [[""] * count for _ in columns]
    for key in arrays:
        if key.startswith("values/"):
            name = key.removeprefix("values/")
            columns.append((f"do({name})", arrays[f"images/{name}"][rows]))
            names = category_names(results, name)
            captions.append(_captions(arrays, results, name, rows, names))
            if f"true_images/{name}" in arrays:
                columns.append(("true", arrays[f"true_images/{name}"][rows]))
                captions.append([""] * count)
    return labelled_grid([(head, images[:, :3]) for head, images in columns], cell_captions=captions)


def _captions(
    arrays: Mapping[str, np.ndarray], results: Results, name: str, rows: np.ndarray, names: Sequence[str]
) -> list[str]:
    """Captions of the counterfactuals of some rows: the value that is read, and the one that was requested."""
    variables, requested = list(dig(results, "data", "variables") or []), arrays[f"values/{name}"].astype(np.float64)
    shape = (len(requested), len(variables))
    read, labels = (arrays.get(key, np.empty(0)) for key in (f"measured/{name}", "labels"))
    i = variables.index(name) if name in variables else 0
    found = read[:, i].astype(np.float64) if read.shape == shape and name in variables else np.full(shape[0], np.nan)
    factual = labels[:, i] if labels.shape == shape else np.full(shape[0], np.nan)
    low, high = dig(results, "results", "interventions", name, "range") or (0.0, 0.0)
    differs = notable_difference(found, requested, factual, high - low, range(len(names)))

    def text(value: float) -> str:
        return names[int(value)] if value in range(len(names)) else f"{value:.3g}"

    read_texts = ["" if np.isnan(value) else text(value) for value in found]
    return [caption_text(text(requested[k]), read_texts[k], bool(differs[k])) for k in rows]
