"""Results files as Markdown: one function per kind of table, from the content of a file to text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final

from causaldiffae.evaluation.tables import BASELINES, MISSING, dig

Results = Any
_ByDo = Mapping[str, Mapping[str, Any]]
"""Intervened variable -> label -> figure."""
_WIDTH: Final = 100


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, one line per row."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in lines)


def rounded(value: float | str | None, decimals: int = 2) -> str:
    """A number with its decimals, halves rounded up; `MISSING` for None."""
    if value is None:
        return MISSING
    return str(Decimal(str(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP))


def plus_minus(figure: Mapping[str, Any] | None, decimals: int = 2) -> str:
    """The mean with half the width of its interval, "1.23 ± 0.04"."""
    if figure is None or figure.get("mean") is None:
        return MISSING
    if figure.get("low") is None or figure.get("high") is None:
        return rounded(figure["mean"], decimals)
    return f"{rounded(figure['mean'], decimals)} ± {rounded((figure['high'] - figure['low']) / 2, decimals)}"


def mean_of(figure: Mapping[str, Any] | None, decimals: int) -> str:
    """The mean of a figure."""
    return rounded(None if figure is None else figure.get("mean"), decimals)


def demo_table(results: Results) -> str:
    """report.json of scripts/demo.py: one row per intervention."""
    rows = []
    for dataset, entry in results.items():
        for row in (entry, entry["also"]):
            errors = row["mean_error_of_measured_labels"].items()
            rows.append(
                [
                    dataset,
                    f"do({row['variable']} = {row['requested']:g})",
                    f"{rounded(row['counterfactual_l1'])} ± {rounded(row['counterfactual_l1_interval'])}",
                    rounded(row["do_nothing_l1"]),
                    rounded(row["measured"]),
                    ", ".join(f"{name} {rounded(error)}" for name, error in errors),
                ]
            )
    headings = ["data", "intervention", "L1 to the truth", "L1 of the factual image", "measured"]
    return markdown_table([*headings, "mean error of the measured labels"], rows)


def demo_reconstruction(results: Results) -> str:
    """report.json of scripts/demo.py: the errors of reconstructions as a sentence."""
    parts = [f"{entry['reconstruction_l1']:.1g} ({dataset})" for dataset, entry in results.items()]
    steps = next(iter(results.values()))["steps_each_way"]
    return f"Reconstruction ({steps} steps in, {steps} steps out): L1 {', '.join(parts)}."


def evaluation_table(results: Results) -> str:
    """A results file of scripts/evaluate.py: rows for every intervention's model and references."""
    variables, names = results["data"]["variables"], {"model": "the model"} | BASELINES
    headings = ["", "L1", "PSNR", "SSIM", *(f"{name} error" for name in variables), "class", "CLD", "FID-own"]
    columns: list[tuple[tuple[str, ...], int]] = [(("truth", key), digits) for key, digits in
                                                  (("l1", 2), ("psnr", 1), ("ssim", 3))]  # fmt: skip
    columns += [(("effectiveness", "predictor", name), 3) for name in variables]
    columns += [(("class_accuracy",), 3), (("cld",), 3), (("realism", "fid_own"), 2)]
    rows = []
    for do, found in results["results"]["interventions"].items():
        for kind, answer in found["answers"].items():
            cells = [mean_of(dig(answer, *keys), digits) for keys, digits in columns]
            back = mean_of(dig(found, "reversibility", "1"), 2) if kind == "model" else MISSING
            rows.append([f"do({do}): {names[kind]}" if kind == "model" else names[kind], *cells, back])
    headings.append("reversibility")
    used = [j for j in range(len(headings)) if j == 0 or any(row[j] != MISSING for row in rows)]
    return markdown_table([headings[j] for j in used], [[row[j] for j in used] for row in rows])


def evaluation_summary(results: Results) -> str:
    """A results file of scripts/evaluate.py: composition, DCI and average effects as sentences."""
    found, settings = results["results"], results["settings"]
    one, many = (mean_of(dig(found, "composition", key), 3) for key in ("1", "long"))
    sentences = [
        f"Composition (null intervention, unrounded) is {one} after one cycle and {many} after {settings['cycles']}."
    ]
    if found.get("dci"):
        block = {name: mean_of(dig(found, "dci", name, "block_disentanglement"), 3) for name in ("boosting", "lasso")}
        r2 = mean_of(dig(found, "dci", "boosting", "informativeness"), 2)
        sentences.append(f"DCI by blocks is {block['boosting']} (boosting) and {block['lasso']} (lasso), R² {r2}.")
    for do, row in found["interventions"].items():
        for effect, figures in (dig(row, "answers", "model", "effects") or {}).items():
            model, truth, error = (figures[key] for key in ("model", "truth", "error"))
            sentences.append(
                f"The average effect of do({do}) on {effect} is {_with_ends(model)} against the true "
                f"{mean_of(truth, 2)}, an error of {_with_ends(error)}."
            )
    return textwrap.fill(" ".join(sentences), _WIDTH)


def _with_ends(figure: Mapping[str, Any]) -> str:
    return f"{mean_of(figure, 2)} [{rounded(figure['low'])}, {rounded(figure['high'])}]"


def peers_table(results: Results) -> str:
    """A results file of `evaluate.py --protocol melistas`: errors against the labels that the model itself predicts.

    Since version 2 there are a second row of each figure, read with batch statistics, and rows of the true images.
    """
    rows = []
    for abduction, found in results["abduction"].items():
        running, batch = ({name: row["own"] for name, row in found.get(key, {}).items()} for key in _STATISTICS)
        rows += _peers_rows(abduction, running, batch, results["class_name"])
    if "floors" in results:
        running, batch = (
            {name: each.get(f"do({name})", {}) for name in running} for each in results["floors"].values()
        )
        rows += _peers_rows("(true images)", running, batch, results["class_name"])
    return markdown_table(["abduction from", "figure", *(f"do({name})" for name in running)], rows)


_STATISTICS: Final = ("interventions", "batch_statistics")
"""Keys of the figures that are read with running statistics, and since version 2 with those of the batch."""


def _peers_rows(title: str, running: _ByDo, batch: _ByDo, class_name: str) -> list[list[str]]:
    """Rows of `peers_table`: one for each label, and with figures by batch statistics a second one."""
    rows: list[list[str]] = []
    for column in dict.fromkeys(column for row in running.values() for column in row):
        is_class = column == class_name
        largest = max(row[column]["mean"] or 0.0 for row in running.values() if row)
        digits = 3 if is_class or largest < 1 else 2
        name = f"{column} {'accuracy' if is_class else 'error'}"
        for figure, by_do in ((name, running), ("by batch statistics", batch)):
            cells = [mean_of(row.get(column), digits) for row in by_do.values()]
            rows += [["" if rows else title, figure, *cells]] if cells else []
    return rows


def peers_summary(results: Results) -> str:
    """A results file of `evaluate.py --protocol melistas`: composition, and errors against the data's true labels."""
    found = results["abduction"]
    first = next(iter(found.values()))
    composition = [
        f"{' and '.join(mean_of(each, 3) for each in figures['composition'].values())} from {abduction}"
        for abduction, figures in found.items()
    ]
    text = f"Composition after {' and '.join(first['composition'])} cycles: {', '.join(composition)}."
    for key, reading in zip(_STATISTICS, ("", " by batch statistics"), strict=True):
        errors = []
        for do, row in first.get(key, {}).items():
            for column in row.get("true", {}):
                if column not in (do, results["class_name"]):
                    means = [mean_of(each[key][do]["true"][column], 2) for each in found.values()]
                    errors.append(f"{' and '.join(means)} ({column} under do({do}))")
        if errors:
            text += f" Against the true labels of the data, the errors{reading} are {', '.join(errors)}."
    if "floors" in results:
        running, batch = (row["factual"] for row in results["floors"].values())
        names = {name: f"{name} accuracy" if name == results["class_name"] else name for name in running}
        floors = [
            f"{mean_of(running[name], 3)} and {mean_of(batch[name], 3)} ({title})" for name, title in names.items()
        ]
        text += f" On the factual images, by running and by batch statistics, they are {', '.join(floors)}."
    return textwrap.fill(text, _WIDTH)


def steps_table(results: Results) -> str:
    """steps.csv of scripts/sweep_steps.py: L1 of the null intervention and of every intervention, and label errors."""
    titles = {"null": "null intervention"}
    for key in results[0]:
        kind, _, rest = key.partition(":")
        if kind in ("truth", "error") and not key.endswith(("_low", "_high")):
            do, _, label = rest.partition("):")
            titles[key] = f"its {label}" if label else do.replace("=", " = ")
    rows = []
    for row in results:
        cells = []
        for key in titles:
            figure = {end: float(row[f"{key}{suffix}"]) for end, suffix in _ENDS.items()} if row[key] else None
            small = figure is not None and abs(figure["mean"]) < 1
            cells.append(plus_minus(figure, 3 if small else 2))
        name = _SOLVERS.get(row["solver"], row["solver"]) + f", {row['steps']}"
        count = int(row.get("corrections", 0))
        rows.append([name + (f", {count} correction{'s' * (count > 1)}" if count else ""), *cells])
    return markdown_table(["solver, evaluations each way", *titles.values()], rows)


_ENDS: Final = {"mean": "", "low": "_low", "high": "_high"}
_SOLVERS: Final = {
    "ddim": "DDIM loops (published)",
    "dpmpp2m": "DPM-Solver++(2M)",
    "obelm": "O-BELM with both states",
    "exact_ddim": "exact DDIM",
    "few_step": "student",
}


def interventions_table(results: Results) -> str:
    """summary.json of the scripts image_*_test.py: one row per intervention."""
    rows = []
    for do, row in results["results"].items():
        rows.append(
            [do.replace("=", " = "), *(rounded(row.get(key)) for key in ("counterfactual_l1", "do_nothing_l1"))]
        )
    return markdown_table(["intervention", "L1 to the truth", "factual image"], rows)


def reproduction_table(results: Results) -> str:
    """summary.json of scripts/reproduce.py: L1 to the truth, composition and DCI, one row per model."""
    rows = []
    for key, row in _rows_of(results):
        l1 = [_seeds(found["l1"], 2) for found in row["interventions"].values()]
        general = [_seeds(row.get(name), 3, interval=False) for name in _GENERAL]
        rows.append([row["title"], *l1, *general] if key else [row["title"], *l1, *["" for _ in general]])
    dos = [f"do({do})" for do in _interventions(results)]
    return markdown_table(["model", *dos, *_GENERAL.values()], rows)


def reproduction_errors(results: Results) -> str:
    """summary.json of scripts/reproduce.py: errors of the variable that is set and of its descendants, over images."""
    columns = [(do, name) for do, found in _interventions(results).items() for name in found["errors"]]
    rows = []
    for _, row in _rows_of(results):
        cells = [_seeds(row["interventions"][do]["errors"][name], 3, seeds=False) for do, name in columns]
        rows.append([row["title"], *cells])
    return markdown_table(["model", *(f"do({do}): {name}" for do, name in columns)], rows)


def reproduction_labels(results: Results) -> str:
    """summary.json of scripts/reproduce.py: errors with few labels divided by those with all labels."""
    models = [row for row in results["models"].values() if row["labels"] is not None]
    models.sort(key=lambda row: -row["labels"])
    full = models[0]["interventions"] if models and models[0]["labels"] == 1 else {}
    columns = [(do, name) for do, found in full.items() for name in found["errors"]]
    rows = []
    for row in models if full else []:
        pairs = [(row["interventions"][do]["errors"][name], full[do]["errors"][name]) for do, name in columns]
        rows.append([f"{row['labels']:.0%}", *(_ratio(few, all_) for few, all_ in pairs)])
    return markdown_table(["labels", *(f"do({do}): {name}" for do, name in columns)], rows)


def _ratio(few: Mapping[str, Any] | None, full: Mapping[str, Any] | None) -> str:
    """A ratio of means with the half-width of its interval, to first order and as if the two were independent."""
    if not few or not full or not few["mean"] or not full["mean"]:
        return MISSING
    ratio = few["mean"] / full["mean"]
    if few is full or None in (few["half_width"], full["half_width"]):
        return rounded(ratio)
    relative = math.hypot(*(each["half_width"] / each["mean"] for each in (few, full)))
    return f"{rounded(ratio)} ± {rounded(ratio * relative)}"


_GENERAL: Final = {
    "composition": "composition",
    "composition_long": "after ten cycles",
    "disentanglement": "DCI D",
    "completeness": "C",
    "informativeness": "R²",
}


def _interventions(results: Results) -> Mapping[str, Any]:
    return next(iter(results["models"].values()))["interventions"]


def _rows_of(results: Results) -> list[tuple[str, Mapping[str, Any]]]:
    """The references under an empty key, then the models that were trained with all labels."""
    few = {key for key, row in results["models"].items() if row["labels"] not in (None, 1)}
    models = [(key, row) for key, row in results["models"].items() if key not in few]
    return [*(("", row) for row in results["references"].values()), *models]


def _seeds(figure: Mapping[str, Any] | None, decimals: int, interval: bool = True, seeds: bool = True) -> str:
    """Mean, half-width of the interval over images, and in brackets the means of the seeds if there are several."""
    if figure is None:
        return MISSING
    text = rounded(figure["mean"], decimals)
    if interval and figure["half_width"] is not None:
        text += f" ± {rounded(figure['half_width'], decimals)}"
    if interval and seeds and len(figure["seeds"]) > 1:
        text += f" ({', '.join(rounded(mean, decimals) for mean in figure['seeds'])})"
    return text


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def gpu_check_table(results: Results) -> str:
    """A report of scripts/gpu_check.py: name, value, bound and note of every measured check."""
    rows = []
    for check in (each for each in results["checks"] if each["verdict"] != "skipped"):
        value, bound = (None if check[key] is None else _short(check[key]) for key in ("value", "bound"))
        measured = check["verdict"] if value is None else f"{value} {check['unit']}".strip()
        rows.append([check["name"], measured, bound or "", check["note"].replace("|", "\\|")])
    return markdown_table(["check", "value", "bound", ""], rows)


KINDS: Final[dict[str, Callable[[Results], str]]] = {
    "demo": demo_table,
    "demo_reconstruction": demo_reconstruction,
    "evaluation": evaluation_table,
    "evaluation_summary": evaluation_summary,
    "peers": peers_table,
    "peers_summary": peers_summary,
    "steps": steps_table,
    "interventions": interventions_table,
    "gpu_check": gpu_check_table,
    "reproduction": reproduction_table,
    "reproduction_errors": reproduction_errors,
    "reproduction_labels": reproduction_labels,
}
"""Kinds of tables, as they are named in the marks."""
