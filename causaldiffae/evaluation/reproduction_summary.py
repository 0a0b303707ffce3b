"""The results of a comparison (`reproduction.py`) in one small file, from which tables are written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from causaldiffae.errors import DataError
from causaldiffae.evaluation.reproduction import ENTRIES, Plan
from causaldiffae.evaluation.run import read_results
from causaldiffae.evaluation.tables import BASELINES, dig
from causaldiffae.files.reading import replace_file

SUMMARY = "summary.json"
Results = Mapping[str, Any]


def finished_results(plan: Plan) -> dict[str, dict[int, Results]]:
    """Results by entry and seed, of all seeds in the folder.

    Raises:
        DataError: if there are none."""
    found: dict[str, dict[int, Results]] = {}
    for name in ENTRIES:
        for path in sorted(plan.folder.glob(f"results/{name}_seed*.json")):
            seed = path.stem.removeprefix(f"{name}_seed")
            if seed.isdecimal():
                found.setdefault(name, {})[int(seed)] = read_results(path)
    if not found:
        raise DataError(f"{plan.folder}: expected results, got none")
    return found


def over_seeds(figures: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Mean of the seeds' figures, half the width of their intervals over images, and the seeds' own means."""
    known = [figure for figure in figures if figure is not None and figure.get("mean") is not None]
    if not known:
        return None
    widths = [figure["high"] - figure["low"] for figure in known if figure.get("low") is not None]
    means = [figure["mean"] for figure in known]
    half = float(np.mean(widths)) / 2 if widths else None
    return {"mean": float(np.mean(means)), "half_width": half, "seeds": means}


def summarise(plan: Plan) -> dict[str, Any]:
    """Figures of every model that has results, over its seeds, and of the references."""
    found = finished_results(plan)
    first = next(iter(next(iter(found.values())).values()))
    models = {
        name: {
            "title": ENTRIES[name].title,
            "labels": ENTRIES[name].labels,
            "training_seeds": list(seeds),
            "training_steps": [results["model"]["step"] for results in seeds.values()],
            **_figures(list(seeds.values()), "model"),
        }
        for name, seeds in found.items()
    }
    kinds = [kind for kind in BASELINES if kind in next(iter(first["results"]["interventions"].values()))["answers"]]
    references = {kind: {"title": BASELINES[kind], **_figures([first], kind)} for kind in kinds}
    settings = {key: first["settings"][key] for key in ("num_images", "seed", "solver", "steps")}
    return {
        "dataset": plan.dataset,
        "size": plan.size,
        "images": first["data"]["images"],
        "data": first["data"]["digest"],
        "settings": settings,
        "protocol": first["protocol"],
        "models": models,
        "references": references,
    }


def _figures(files: Sequence[Results], kind: str) -> dict[str, Any]:
    """Figures of one candidate over its results files."""
    interventions: dict[str, Any] = {}
    for do, row in files[0]["results"]["interventions"].items():
        errors = [do, *(dig(row, "answers", "model", "effects") or {})]
        path = ("results", "interventions", do, "answers", kind)
        interventions[do] = {
            "l1": over_seeds([dig(each, *path, "truth", "l1") for each in files]),
            "errors": {
                name: over_seeds([dig(each, *path, "effectiveness", "predictor", name) for each in files])
                for name in errors
            },
        }
    found: dict[str, Any] = {"interventions": interventions}
    if kind == "model":
        for name, keys in _GENERAL.items():
            found[name] = over_seeds([dig(each["results"], *keys) for each in files])
    return found


_GENERAL = {
    "composition": ("composition", "1"),
    "composition_long": ("composition", "long"),
    "disentanglement": ("dci", "boosting", "block_disentanglement"),
    "completeness": ("dci", "boosting", "block_completeness"),
    "informativeness": ("dci", "boosting", "informativeness"),
}


def write_summary(plan: Plan) -> Path:
    """Writes the summary of all results of a plan into its folder."""
    path = plan.folder / SUMMARY
    replace_file(path, (json.dumps(summarise(plan), indent=1, allow_nan=False) + "\n").encode())
    return path
