"""Results files and the images beside them are validated before they are shown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causaldiffae.errors import DataError
from causaldiffae.evaluation.report import bars, read_images
from causaldiffae.evaluation.results_file import check_results
from causaldiffae.evaluation.tables import Column

FIGURE = {"mean": 1.0, "low": 0.5, "high": 2.0}
EFFECT = {"model": FIGURE, "truth": FIGURE, "error": FIGURE}
RESULTS = {
    "model": {"name": "a", "recipe": "r", "seed": 0},
    "data": {"dataset": "d", "digest": "0", "images": 3, "image_size": 8, "variables": ["x"]},
    "predictor": {"digest": "0", "figures": {"observational": {"x": 0.1}}},
    "settings": {},
    "results": {
        "interventions": {
            "x": {
                "range": [0.0, 1.0],
                "reversibility": {"1": FIGURE},
                "answers": {"model": {"truth": {"l1": FIGURE}, "cld": {"mean": None}, "effects": {"y": EFFECT}}},
            }
        },
        "composition": {"1": FIGURE},
        "dci": None,
        "broken": {"null": {"images": 0, "pixels": 0}},
    },
}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("model.name", 3, "model.name: expected a string, got 3"),
        ("model.seed", "0", "model.seed: expected an integer, got '0'"),
        ("data.images", True, "data.images: expected an integer, got True"),
        ("data.variables", "x", "data.variables: expected a list of names, got 'x'"),
        ("predictor.figures.observational.x", "<b>", "observational.x: expected a number, got '<b>'"),
        ("results.interventions", [], r"results.interventions: expected a mapping, got \[\]"),
        ("results.interventions.x.range", [1], r"x.range: expected two numbers, got \[1\]"),
        ("results.interventions.x.range", [1, "2"], "x.range.1: expected a number, got '2'"),
        ("results.interventions.x.range", [True, 2], "x.range.0: expected a number, got True"),
        ("results.interventions.x.answers.other", {}, "answers: expected one of model, truth, .*, got 'other'"),
        ("results.interventions.x.answers.model.truth.l1", 3, "truth.l1: expected a figure, got 3"),
        ("results.interventions.x.answers.model.truth.l1.low", None, "truth.l1.low: expected a number, got None"),
        ("results.interventions.x.answers.model.cld", {"low": 1}, "cld: expected the keys mean, low, high"),
        ("results.interventions.x.answers.model.effects.y.error", None, "y.error: expected a figure, got None"),
        ("results.composition.1.mean", 10**400, "composition.1.mean: expected a number, got 1000"),
        ("results.dci", {"lasso": {"D": 3}}, "dci.lasso.D: expected a figure, got 3"),
        ("results.broken.null.images", 0.5, "broken.null.images: expected an integer, got 0.5"),
        ("versions", [1], r"versions: expected a mapping, got \[1\]"),
    ],
)
def test_invalid_results_are_refused(place: str, value: Any, message: str) -> None:
    results = json.loads(json.dumps(RESULTS))
    check_results(results, "a.json")
    *path, last = place.split(".")
    node = results
    for key in path:
        node = node[key]
    node[last] = value
    with pytest.raises(DataError, match=f"^a.json: .*{message}.*; delete the file and evaluate again"):
        check_results(results, "a.json")


def test_a_figure_of_one_image_has_no_interval() -> None:
    results, figure = json.loads(json.dumps(RESULTS)), {"mean": 1.0, "low": None, "high": None}
    answers = results["results"]["interventions"]["x"]["answers"]
    answers["model"]["truth"]["l1"] = answers["model"]["effects"]["y"]["error"] = figure
    results["results"]["composition"]["1"] = figure
    check_results(results, "a.json")
    (bar,) = bars(Column("L1", ("truth", "l1")), [("a", results, "model")], "x")
    assert bar["low"] == bar["mean"] == bar["high"] > 0


IMAGES = np.zeros((2, 1, 8, 8), np.uint8)
ARRAYS = {"factual": IMAGES, "reconstruction": IMAGES, "values/x": np.zeros(2), "images/x": IMAGES}


@pytest.mark.parametrize(
    "change",
    [
        {"factual": None},
        {"images/x": None},
        {"images/x": IMAGES[:1]},
        {"reconstruction": IMAGES.astype(np.float32)},
        {"values/x": np.zeros(3)},
        {"factual": np.zeros((2, 2, 8, 8), np.uint8)},
    ],
    ids=str,
)
def test_invalid_images_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "a.pictures.npz"
    np.savez(path, **ARRAYS)  # type: ignore[arg-type]
    assert set(read_images(path) or {}) == set(ARRAYS)
    np.savez(path, **{key: value for key, value in {**ARRAYS, **change}.items() if value is not None})
    with pytest.raises(DataError, match="expected factual images, counterfactuals and values of one shape"):
        read_images(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="delete the file or run the evaluation again"):
        read_images(path)
