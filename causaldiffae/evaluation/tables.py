"""Text tables of evaluation results, per data set and over training seeds.

Models that differ only in their training seed have the same recipe. Their figures are also averaged over seeds, with a
95 % interval of Student's t distribution.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tabulate import tabulate

from causaldiffae.evaluation.digests import json_digest
from causaldiffae.metrics.intervals import interval

Results = Mapping[str, Any]
Figure = Mapping[str, Any]

BASELINES = {
    "truth": "true image (floor)",
    "do_nothing": "do nothing",
    "nearest": "nearest training image",
}
MISSING = "-"
_WIDTH = 116
UNKNOWN = "not available: not measured, or unknown for this data set"
EXPLANATION = (
    "L1 (grey levels), PSNR (dB) and SSIM compare with the true counterfactual image. NAME error: absolute error of "
    "the label predicted from the image, in label units, or for a binary or categorical variable the error rate; NAME "
    "error measured: the same for the label measured by geometry. class: accuracy of the predicted class. CLD: 0.693 "
    "is the optimum, 1.313 is no change. FID-own and KID-own use the predictor's features instead of Inception's. "
    "reversibility: L1 between the factual image and the image after an intervention and its inverse, over one and "
    "over many cycles. composition: the same for null interventions. DCI of the latent blocks by gradient boosting "
    "(GBT) and lasso: D disentanglement, C completeness, R2 informativeness. Lower is better, except for PSNR, SSIM, "
    "class and DCI. The predictor was trained on the nearest training images, so its errors on that row are optimistic."
)


@dataclass(frozen=True)
class Column:
    """One figure per row: its heading, its keys, number of decimals and direction.

    The keys are looked up in a candidate or, if `of_model`, in the intervention itself.
    """

    heading: str
    keys: tuple[str, ...]
    decimals: int = 3
    lower_is_better: bool = True
    of_model: bool = False

    def find(self, results: Results, do: str, kind: str) -> Figure | None:
        """The figure of a candidate under an intervention, or None."""
        if self.of_model and kind != "model":
            return None
        candidate = () if self.of_model else ("answers", kind)
        return dig(results, "results", "interventions", do, *candidate, *self.keys)


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1, why: str = UNKNOWN) -> str:
    """A table with one line per row; the first `texts` columns are left-aligned.

    Columns without a value in any row are left out. Notes below name these, and explain missing cells.

    Args:
        why: the reason for missing values.
    """
    empty = [j for j in range(texts, len(headings)) if rows and all(row[j] == MISSING for row in rows)]
    left_out = ", ".join(headings[j] for j in empty)
    headings = [heading for j, heading in enumerate(headings) if j not in empty]
    rows = [[cell for j, cell in enumerate(row) if j not in empty] for row in rows]
    wrapped = [heading.replace(" ", "\n").replace("_", "_\n") for heading in headings]
    align = ["left"] * texts + ["right"] * (len(headings) - texts)
    text = tabulate(rows, wrapped, disable_numparse=True, colalign=align if rows else None)
    notes = [f"left out, without a value in any row: {left_out}"] if empty else []
    is_partial = any(MISSING in row for row in rows)
    notes += [f"{f'{MISSING} ' if is_partial else 'reason'}: {why}"] if empty or is_partial else []
    return "\n".join([text, *(textwrap.fill(note, _WIDTH, subsequent_indent="    ") for note in notes)])


def shown(figure: Figure | None, decimals: int = 3, interval: bool = False) -> str:
    """A figure as text, "0.123" or with its interval, if known, "0.123 [0.110, 0.140]"; `MISSING` for None."""
    if figure is None or figure.get("mean") is None:
        return MISSING
    text = f"{figure['mean']:.{decimals}f}"
    if not interval or figure["low"] is None:
        return text
    return f"{text} [{figure['low']:.{decimals}f}, {figure['high']:.{decimals}f}]"


def number(value: float) -> str:
    """A number as text; `MISSING` if it is not finite."""
    return f"{value:.3f}" if np.isfinite(value) else MISSING


def dig(value: Any, *keys: str) -> Any:
    """The entry at a path of keys in nested mappings, or None."""
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def columns_of(files: Sequence[Results]) -> list[Column]:
    """The columns of a data set's table that are not empty."""
    variables = files[0]["data"]["variables"]
    columns = [
        Column("L1", ("truth", "l1"), 2),
        Column("PSNR", ("truth", "psnr"), 2, lower_is_better=False),
        Column("SSIM", ("truth", "ssim"), lower_is_better=False),
        *(Column(f"{name} error", ("effectiveness", "predictor", name)) for name in variables),
        *(Column(f"{name} error measured", ("effectiveness", "measured", name)) for name in variables),
        Column("class", ("class_accuracy",), lower_is_better=False),
        Column("CLD", ("cld",)),
        Column("FID-own", ("realism", "fid_own"), 2),
        Column("KID-own", ("realism", "kid_own")),
        Column("FID", ("realism", "fid"), 2),
        Column("reversibility", ("reversibility", "1"), 2, of_model=True),
        Column("reversibility long", ("reversibility", "long"), 2, of_model=True),
    ]
    cells = [(file, do, kind) for file in files for do in interventions_of([file]) for kind in kinds_of(file, do)]
    return [column for column in columns if any(shown(column.find(*cell)) != MISSING for cell in cells)]


def interventions_of(files: Sequence[Results]) -> list[str]:
    """The intervened variables of all files, in order."""
    return list(dict.fromkeys(do for results in files for do in results["results"]["interventions"]))


def kinds_of(results: Results, do: str) -> list[str]:
    """The candidates scored under an intervention, the model first."""
    scored = dig(results, "results", "interventions", do, "answers") or {}
    return [kind for kind in ("model", *BASELINES) if kind in scored]


def rows_of(files: Sequence[Results], do: str) -> list[tuple[str, Results, str]]:
    """One row per model, then the baselines: (name, results, candidate)."""
    rows = [(name_of(results), results, "model") for results in files]
    return rows + [(BASELINES[kind], files[0], kind) for kind in kinds_of(files[0], do) if kind != "model"]


def name_of(results: Results) -> str:
    """The model's name."""
    return str(results["model"]["name"])


def by_dataset(files: Sequence[Results]) -> dict[str, list[Results]]:
    """Groups comparable results: those with the same data set, images, interventions and predictor."""
    groups: dict[str, list[Results]] = {}
    for results in files:
        data, predictor = results["data"], results["predictor"]["digest"]
        digests = f"{data['digest'][:6]}/{predictor[:6]}"
        settings = results["settings"]
        asked = "".join(f", do({name})" for name in settings["variables"])
        images = f"{data['images']} images of {data['image_size']} px"
        key = f"{data['dataset']}, {images}, seed {settings['seed']}{asked} ({digests})"
        groups.setdefault(key, []).append(results)
    return groups


def intervention_tables(files: Sequence[Results]) -> str:
    """One table per intervention: a row for each model, then the baselines."""
    columns, texts = columns_of(files), []
    for do in interventions_of(files):
        rows = [
            [name, *(shown(column.find(results, do, kind), column.decimals) for column in columns)]
            for name, results, kind in rows_of(files, do)
        ]
        texts.append(text_table([f"do({do})", *(column.heading for column in columns)], rows))
    return "\n\n".join(texts)


def general_table(files: Sequence[Results]) -> str:
    """Composition, DCI and the number of images with non-finite pixels, one row per model."""
    keys: dict[str, tuple[str, ...]] = {
        "composition": ("composition", "1"),
        "composition long": ("composition", "long"),
    }
    for regressor, short in (("boosting", "GBT"), ("lasso", "lasso")):
        for score, letter in (("block_disentanglement", "D"), ("block_completeness", "C"), ("informativeness", "R2")):
            keys[f"{short} {letter}"] = ("dci", regressor, score)
    rows = [
        [
            name_of(results),
            *(shown(dig(results["results"], *key)) for key in keys.values()),
            str(sum(row["images"] for row in results["results"]["broken"].values())),
        ]
        for results in files
    ]
    return text_table(["model", *keys, "non-finite images"], rows)


def effects_table(files: Sequence[Results]) -> str:
    """Average treatment effects on descendants with intervals; empty if there are none."""
    rows = []
    for do in interventions_of(files):
        for results in files:
            effects = dig(results, "results", "interventions", do, "answers", "model", "effects") or {}
            for name, effect in effects.items():
                figures = [shown(effect[key], interval=True) for key in ("model", "truth", "error")]
                rows.append([name_of(results), f"do({do})", name, *figures])
    headings = ["model", "intervention", "descendant", "model's effect", "true effect", "error"]
    return text_table(headings, rows, texts=3) if rows else ""


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean over training seeds with Student's 95 % interval, None for one seed."""
    array = np.asarray(values, np.float64)
    mean, half = float(array.mean()), interval(array)
    if len(array) < 2:
        return {"mean": mean, "low": None, "high": None, "seeds": len(array)}
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": len(array)}


def seed_groups(files: Iterable[Results]) -> list[list[Results]]:
    """Groups of two or more models that differ only in their training seed, one per seed."""
    groups: dict[str, dict[int, Results]] = {}
    for results in files:
        model = results["model"]
        trained = [model["recipe"], model.get("step"), model.get("parameters")]  # parameters include those of a guide
        groups.setdefault(json_digest([trained, results["settings"]]), {}).setdefault(model["seed"], results)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def seeds_table(files: Sequence[Results]) -> str:
    """Mean and interval of every figure over training seeds; empty without several seeds."""
    texts = []
    for group in seed_groups(files):
        rows = []
        for do in interventions_of(group):
            for column in columns_of(group):
                figures = [column.find(results, do, "model") for results in group]
                means = [figure["mean"] for figure in figures if figure is not None and figure["mean"] is not None]
                if means:
                    rows.append([f"do({do})", column.heading, shown(over_seeds(means), column.decimals, interval=True)])
        names = ", ".join(name_of(results) for results in group)
        texts.append(f"over {len(group)} training seeds ({names})")
        texts.append(text_table(["intervention", "figure", "mean"], rows, texts=2))
    return "\n".join(texts)


def non_finite_note(files: Sequence[Results]) -> str:
    """One warning per model and intervention with non-finite pixels."""
    lines = []
    for results in files:
        for do, row in results["results"]["broken"].items():
            if row["images"]:
                what = "reconstructions" if do == "null" else f"images under do({do})"
                counts = f"{row['images']} {what} with {row['pixels']} non-finite pixels"
                lines.append(f"warning: {name_of(results)}: {counts} are excluded from all figures")
    return "\n".join(lines)


def tables(files: Sequence[Results]) -> str:
    """All tables of all data sets."""
    blocks = []
    for title, group in by_dataset(files).items():
        texts = [make(group) for make in (intervention_tables, general_table, effects_table, seeds_table)]
        blocks += [f"== {title}", *filter(None, [*texts, non_finite_note(group)])]
    if blocks:
        blocks.append(textwrap.fill(EXPLANATION, _WIDTH))
    return "\n\n".join(blocks)
