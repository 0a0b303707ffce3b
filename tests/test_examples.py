"""The example data sets of examples/."""

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from paths import REPO
from PIL import Image

from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.errors import InputError
from causaldiffae.evaluation.protocol import ProtocolSettings
from causaldiffae.evaluation.questions import export_questions, open_task, read_answers
from causaldiffae.generators import morphomnist


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPO / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(REPO / "examples"))  # as for a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


@pytest.fixture(scope="module")
def attributes() -> ModuleType:
    return load("attributes")


def test_a_null_intervention_reproduces_the_picture(attributes: ModuleType) -> None:
    rng = np.random.default_rng(1)
    for noise in [attributes.draw_noise(rng) for _ in range(20)]:
        labels = attributes.labels_of(noise)
        assert all(attributes.labels_of(noise, {name: value}) == labels for name, value in labels.items())


def test_interventions_change_descendants_only(attributes: ModuleType) -> None:
    rng, rings, patterns = np.random.default_rng(2), [], []
    for noise in [attributes.draw_noise(rng) for _ in range(300)]:
        labels = attributes.labels_of(noise)
        larger = attributes.labels_of(noise, {"size": 18.0})
        assert {name for name in labels if larger[name] != labels[name]} <= {"size", "ring"}
        assert not (labels["ring"] == "yes" and larger["ring"] == "no"), "the probability of a ring rises with size"
        rings.append(larger["ring"] == "yes")
        dotted = attributes.labels_of(noise, {"shape": "triangle"})
        assert {name for name in labels if dotted[name] != labels[name]} <= {"shape", "pattern"}
        patterns.append(dotted["pattern"] == "dots")
        assert attributes.labels_of(noise, {"ring": "no", "size": 18.0})["ring"] == "no"
    assert np.mean(rings) == pytest.approx(1 / (1 + np.exp(-1.5 * 4)), abs=0.03)
    assert np.mean(patterns) == pytest.approx(np.exp(3) / (np.exp(3) + 2), abs=0.05)


def test_the_folder_is_a_data_set_with_true_counterfactuals(attributes: ModuleType, tmp_path: Path) -> None:
    attributes.main(["--out", str(tmp_path / "set"), "--num", "40", "--pairs", "3"])
    data = read_split("folder", tmp_path / "set", "test")
    assert data.images.shape == (4, 3, 64, 64)
    assert data.spec.graph.edges == (("size", "ring"), ("shape", "pattern"))
    assert [data.spec.kind(i) for i in range(5)] == [
        *("continuous", "categorical", "continuous", "binary", "categorical"),
    ]
    with (tmp_path / "set" / "counterfactuals.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 13
    nulls = 0
    for row in rows:
        factual, true = (Image.open(tmp_path / "set" / row[name]) for name in ("file", "true_file"))
        same = bool((np.asarray(factual) == np.asarray(true)).all())
        name, value = row["do"].split("=")
        assert row[name] == value or float(row[name]) == float(value)
        nulls += same
    assert nulls >= 3 * 3, "the values of shape, ring and pattern that the pictures have"


def test_a_small_set_has_as_many_true_counterfactuals_as_test_images(attributes: ModuleType, tmp_path: Path) -> None:
    attributes.main(["--out", str(tmp_path / "set"), "--num", "20"])
    with (tmp_path / "set" / "counterfactuals.csv").open(encoding="utf-8") as file:
        assert len({row["file"] for row in csv.DictReader(file)}) == 2


def test_figures_of_interventions_differ_from_the_factual_ones_as_their_labels_do(tmp_path: Path) -> None:
    figures, rng = load("figures"), np.random.default_rng(3)
    for noise in [figures.draw_noise(rng) for _ in range(20)]:
        labels = figures.labels_of(noise)
        assert all(figures.labels_of(noise, {name: value}) == pytest.approx(labels) for name, value in labels.items())
        larger = figures.labels_of(noise, {"size": 16.0})
        assert larger["brightness"] > labels["brightness"]
        assert {name for name in labels if larger[name] != labels[name]} == {"size", "brightness"}
        dark = figures.labels_of(noise, {"size": 16.0, "brightness": 0.45})
        assert dark["brightness"] == 0.45
        background = [np.asarray(figures.picture(each, noise))[:, :2] for each in (labels, larger, dark)]
        assert (background[0] == background[1]).all() and (background[0] == background[2]).all()
        disc = figures.labels_of(noise, {"shape": "disc", "height": 30.0})
        drawn = np.asarray(figures.picture(disc, noise)).astype(int)
        rows, columns = np.nonzero(np.ptp(drawn, axis=2) > 40)  # only the figure has a colour
        middle = (float(disc["position"]), 30.0)
        assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(middle, abs=0.5)
    figures.main(["--out", str(tmp_path / "set"), "--num", "40", "--pairs", "2"])
    data = read_split("folder", tmp_path / "set", "test")
    assert data.images.shape == (4, 3, 64, 64) and data.spec.graph.edges == (("size", "brightness"),)
    assert data.pairs is not None and len(data.pairs.rows) == 2 * len(figures.INTERVENTIONS)
    chosen = data.pairs.rows == 0
    moved = [np.asarray(image) for image in data.pairs.images[chosen]]
    assert sum((image != data.images[0]).any() for image in moved) >= len(moved) - 1
    figures.main(["--out", str(tmp_path / "more"), "--num", "40", "--pairs", "2", "--label_height"])
    more = read_split("folder", tmp_path / "more", "test")
    assert (more.images == data.images).all() and more.spec.graph.names == (*data.spec.graph.names, "height")
    heights = more.labels[:, -1]
    assert len(set(heights)) == 4 and ((heights >= 26) & (heights <= 38)).all()
    assert more.pairs is not None and (more.pairs.labels[more.pairs.rows == 0][:, -1] == heights[0]).all()


@pytest.mark.parametrize("flags", [("--num", "5"), ("--num", "40", "--pairs", "5"), ()])
def test_impossible_requests_are_refused(attributes: ModuleType, tmp_path: Path, flags: tuple[str, ...]) -> None:
    out = tmp_path if not flags else tmp_path / "set"
    with pytest.raises(InputError, match="expected"):
        attributes.main(["--out", str(out), *flags])
    assert not list(tmp_path.iterdir())


def test_another_system_answers_the_questions_of_the_evaluation(tmp_path: Path) -> None:
    share, data_dir = REPO / "assets" / "mnist_share", tmp_path / "morphomnist"
    morphomnist.write_dataset(share, data_dir, num_train=200, num_test=6, workers=1, progress=False)
    settings = ProtocolSettings(num_images=4)
    task = open_task(dataset_spec("morphomnist"), str(data_dir), settings)
    export_questions(tmp_path / "asked", task, settings)
    load("conditional_vae").main(["--questions", str(tmp_path / "asked"), "--data_dir", str(data_dir), "--steps=400"])
    answers = read_answers(tmp_path / "asked", task)
    assert set(answers) == {"", "thickness", "intensity"}
    error = np.abs(answers[""].astype(float) - task.data.images).mean()
    blank = task.data.images.mean()
    assert error < 0.8 * blank, "it has learned to reconstruct digits"
    assert (answers["thickness"] != answers["intensity"]).any()
