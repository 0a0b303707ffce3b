"""Results as tables of text, and over training seeds: what the console and the report show.

Models that differ in nothing but their training seed are one recipe: their figures are also given as the mean over
seeds with a 95 % interval of Student's t distribution, which says how much luck in training matters.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Results = Mapping[str, Any]
Figure = Mapping[str, Any]

ANSWER_NAMES = {
    "truth": "the truth (floor)",
    "do_nothing": "do nothing",
    "nearest": "nearest training image",
}


@dataclass(frozen=True)
class Column:
    """One figure of an answer: its heading, where it is found, decimals, and whether less is better."""

    heading: str
    find: Callable[[Results, str, str], Figure | None]
    decimals: int = 3
    less_is_better: bool | None = True


EXPLANATION = (
    "L1 in grey levels, PSNR in dB and SSIM against the true counterfactual image. NAME err: absolute error of the "
    "label that the predictor reads off the picture, label units; NAME meas: the same, measured by geometry. class: "
    "share of pictures in which the predictor sees the right class. CLD 0.693 is best, 1.313 no change. FID-own and "
    "KID-own are on the predictor's features, not Inception's. back: L1 after going there and back, once and over many "
    "cycles. Less is better but for PSNR, SSIM and class."
)


def short(name: str) -> str:
    """A variable's name for a narrow column: "shadow_position" -> "sha_pos"."""
    return name if len(name) < 10 else "_".join(part[:3] for part in name.split("_"))


def dig(value: Any, *keys: str) -> Any:
    """The entry under several keys of nested mappings; None where there is none."""
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def _answer(*keys: str) -> Callable[[Results, str, str], Figure | None]:
    return lambda found, do, kind: dig(found, "results", "interventions", do, "answers", kind, *keys)


def _of_model(*keys: str) -> Callable[[Results, str, str], Figure | None]:
    return lambda found, do, kind: dig(found, "results", "interventions", do, *keys) if kind == "model" else None


def columns_of(found: Results) -> list[Column]:
    """The columns of the table of one data set."""
    variables = found["data"]["variables"]
    columns = [
        Column("L1", _answer("truth", "l1"), 2),
        Column("PSNR", _answer("truth", "psnr"), 2, False),
        Column("SSIM", _answer("truth", "ssim"), 3, False),
    ]
    columns += [Column(f"{short(name)} err", _answer("effectiveness", "predictor", name)) for name in variables]
    columns += [Column(f"{short(name)} meas", _answer("effectiveness", "measured", name)) for name in variables]
    if any(_answer("class_accuracy")(found, do, "model") for do in dig(found, "results", "interventions") or {}):
        columns.append(Column("class", _answer("class_accuracy"), 3, False))
    columns += [
        Column("CLD", _answer("cld")),
        Column("FID-own", _answer("realism", "fid_own"), 2),
        Column("KID-own", _answer("realism", "kid_own")),
        Column("FID", _answer("realism", "fid"), 2),
        Column("back 1", _of_model("reversibility", "1"), 2),
        Column("back long", _of_model("reversibility", "long"), 2),
    ]
    return columns


def kinds_of(found: Results, do: str) -> list[str]:
    """The answers to a question that a results file holds, the model's first."""
    answers = dig(found, "results", "interventions", do, "answers") or {}
    return [kind for kind in ("model", *ANSWER_NAMES) if kind in answers]


def shown(figure: Figure | None, decimals: int = 3, interval: bool = False) -> str:
    """A figure as text: "0.123", with its interval "0.123 [0.110, 0.140]"; "-" where there is none."""
    if figure is None or figure.get("mean") is None:
        return "-"
    text = f"{figure['mean']:.{decimals}f}"
    return f"{text} [{figure['low']:.{decimals}f}, {figure['high']:.{decimals}f}]" if interval else text


def filled(columns: Sequence[Column], files: Sequence[Results]) -> list[Column]:
    """The columns in which any model has a figure."""
    return [
        column
        for column in columns
        if any(
            shown(column.find(found, do, kind)) != "-"
            for found in files
            for do in found["results"]["interventions"]
            for kind in kinds_of(found, do)
        )
    ]


def by_dataset(files: Sequence[Results]) -> dict[str, list[Results]]:
    """Results files that may stand in one table: of one data set, of the same images and the same judge."""
    groups: dict[str, list[Results]] = {}
    for found in files:
        data, judge = found["data"], found["predictor"]["digest"]
        key = (
            f"{data['dataset']}, {data['images']} images of {data['image_size']} px ({data['digest'][:6]}/{judge[:6]})"
        )
        groups.setdefault(key, []).append(found)
    return groups


def intervention_table(files: Sequence[Results]) -> str:
    """One block for each intervention: a row for each model, then the floor and the baselines."""
    columns = filled(columns_of(files[0]), files)
    width = max(24, *(len(str(found["model"]["name"])) + 2 for found in files))
    heads = "".join(f"{column.heading:>{max(len(column.heading) + 2, 10)}s}" for column in columns)
    lines = []
    for do in _interventions(files):
        lines.append(f"{f'do({do})':{width}s}{heads}")
        rows: list[tuple[str, Results, str]] = [(str(found["model"]["name"]), found, "model") for found in files]
        rows += [(ANSWER_NAMES[kind], files[0], kind) for kind in kinds_of(files[0], do) if kind != "model"]
        for name, found, kind in rows:
            cells = [shown(column.find(found, do, kind), column.decimals) for column in columns]
            padded = [f"{cell:>{max(len(c.heading) + 2, 10)}s}" for cell, c in zip(cells, columns, strict=True)]
            lines.append(f"{name:{width}s}" + "".join(padded))
        lines.append("")
    return "\n".join(lines).rstrip()


def _interventions(files: Sequence[Results]) -> list[str]:
    names: list[str] = []
    for found in files:
        names += [do for do in found["results"]["interventions"] if do not in names]
    return names


def general_table(files: Sequence[Results]) -> str:
    """Composition, DCI and broken images of every model."""
    keys: list[tuple[str, ...]] = [("composition", "1"), ("composition", "long")]
    keys += [
        ("dci", regressor, score)
        for regressor in ("boosting", "lasso")
        for score in ("block_disentanglement", "block_completeness", "informativeness")
    ]
    heads = ["null, 1", "null, long"]
    heads += [f"{regressor} {score}" for regressor in ("GBT", "lasso") for score in ("D", "C", "R2")]
    width = max(24, *(len(str(found["model"]["name"])) + 2 for found in files))
    lines = [f"{'':{width}s}" + "".join(f"{head:>12s}" for head in [*heads, "broken"])]
    for found in files:
        cells = [shown(dig(found["results"], *key)) for key in keys]
        cells.append(str(sum(row["images"] for row in found["results"]["broken"].values())))
        lines.append(f"{found['model']['name']!s:{width}s}" + "".join(f"{cell:>12s}" for cell in cells))
    return "\n".join(lines)


def effects_table(files: Sequence[Results]) -> str:
    """Average treatment effects on descendants: the model's, the truth's, and the error, with intervals."""
    lines = []
    for do in _interventions(files):
        for found in files:
            effects = dig(found, "results", "interventions", do, "answers", "model", "effects") or {}
            for name, effect in effects.items():
                texts = [f"{key} {shown(effect[key], 3, True)}" for key in ("model", "truth", "error")]
                lines.append(f"{found['model']['name']}: do({do}) on {name}: " + ", ".join(texts))
    return "\n".join(lines)


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean over training seeds with Student's 95 % interval; no interval for one seed."""
    from scipy import stats

    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return {"mean": float(array[0]), "low": float(array[0]), "high": float(array[0]), "seeds": 1}
    half = float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5)
    mean = float(array.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": len(array)}


def seed_groups(files: Iterable[Results]) -> list[list[Results]]:
    """Files of models that differ only in their training seed, where there are several."""
    groups: dict[str, list[Results]] = {}
    for found in files:
        groups.setdefault(found["model"]["recipe"], []).append(found)
    return [group for group in groups.values() if len({found["model"]["seed"] for found in group}) > 1]


def seeds_table(files: Sequence[Results]) -> str:
    """For recipes with several seeds: every figure's mean and interval over seeds."""
    lines = []
    for group in seed_groups(files):
        names = ", ".join(str(found["model"]["name"]) for found in group)
        lines.append(f"over {len(group)} training seeds ({names})")
        for do in _interventions(group):
            for column in filled(columns_of(group[0]), group):
                figures = [column.find(found, do, "model") for found in group]
                means = [figure["mean"] for figure in figures if figure is not None and figure["mean"] is not None]
                if means:
                    text = shown(over_seeds(means), column.decimals, True)
                    lines.append(f"  do({do})  {column.heading:24s}{text}")
    return "\n".join(lines)


def broken_note(files: Sequence[Results]) -> str:
    """Which models drew pixels that are no numbers; their images are in no figure."""
    lines = []
    for found in files:
        for do, row in found["results"]["broken"].items():
            if row["images"]:
                what = "reconstructions" if do == "null" else f"images under do({do})"
                text = f"{row['images']} {what} hold {row['pixels']} pixels that are NaN or infinite; they are left out"
                lines.append(f"warning: {found['model']['name']}: {text}")
    return "\n".join(lines)


def tables(files: Sequence[Results]) -> str:
    """All tables of all data sets."""
    blocks = []
    for title, group in by_dataset(files).items():
        blocks.append(f"== {title}")
        texts = [make(group) for make in (intervention_table, general_table, effects_table, seeds_table)]
        blocks += [text for text in (*texts, broken_note(group)) if text]
    if blocks:
        blocks.append("\n".join(textwrap.wrap(EXPLANATION, 116)))
    return "\n\n".join(blocks)
