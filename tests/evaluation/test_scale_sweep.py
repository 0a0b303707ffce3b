"""The sweep over guidance scales, with an engine of known counterfactuals: nothing done, and the right class drawn."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPO
from running import assert_refused, run
from support import Scaled
from tiny_models import write_diffscm
from torch import nn

from causaldiffae.counterfactual import Counterfactual
from causaldiffae.datasets.images import ImageData, to_model_range
from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.errors import InputError
from causaldiffae.evaluation.scale_sweep import (
    METRICS,
    ScaleResult,
    Scorers,
    choose_images,
    draw_sweep,
    other_classes,
    recommend,
    sweep_scale,
    sweep_table,
    write_sweep,
)
from causaldiffae.guidance import Guidance
from causaldiffae.metrics.interpretability import ClassAutoencoders, class_numbers, save_autoencoders
from causaldiffae.predictors.predictor import load_predictor

SHARE = REPO / "assets" / "mnist_share"
SCRIPT = REPO / "scripts" / "sweep_scale.py"


class Engine:
    """Returns the factual image at scale 0, and a training image of the target class at any other scale."""

    def __init__(self, store: ImageData) -> None:
        self.store = store

    def abduct(self, x_start: torch.Tensor, classes: Any, generator: Any, labels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(images=x_start, labels=labels)

    def predict(
        self, abducted: SimpleNamespace, dos: Sequence[Mapping[str, Any]], guidances: Sequence[Guidance]
    ) -> list[Counterfactual]:
        results = []
        for do, guidance in zip(dos, guidances, strict=True):
            firsts = [int(np.flatnonzero(self.store.labels[:, 0] == value)[0]) for value in do["digit"]]
            drawn = to_model_range(self.store.images[firsts]) if guidance.w else abducted.images
            results.append(Counterfactual(drawn, abducted.labels, abducted.labels))
        return results


@pytest.fixture(scope="module")
def scorers() -> Scorers:
    networks = ClassAutoencoders(dataset_spec("mnist"))
    networks.of_class = nn.ModuleList([Scaled(0.5 + k / 20) for k in range(10)])
    networks.of_all = Scaled(0.5)  # type: ignore[assignment]
    predictor = load_predictor(REPO / "weights" / "mnist_28_predictor").predictor
    return Scorers(predictor, networks.eval(), read_split("mnist", SHARE, "test"))


@pytest.fixture(scope="module")
def results(scorers: Scorers) -> list[ScaleResult]:
    data, store = (read_split("mnist", SHARE, split, limit=60) for split in ("test", "train"))
    return sweep_scale(Engine(store), data, [0.0, 1.0], scorers, batch_size=25)  # type: ignore[arg-type]


def test_metrics_of_doing_nothing_and_of_the_right_class(results: list[ScaleResult], scorers: Scorers) -> None:
    nothing, drawn = results
    assert nothing.values["accuracy"].mean() < 0.05 and drawn.values["accuracy"].mean() > 0.95
    np.testing.assert_allclose(nothing.values["cld"], np.log(1 + np.e), rtol=1e-6)
    assert nothing.values["l1"].max() == 0 < drawn.values["l1"].min()
    assert drawn.values["cld"].mean() != pytest.approx(1.313, abs=1e-3)
    data = read_split("mnist", SHARE, "test", limit=60)
    factual = class_numbers(data.spec, data.labels)
    expected = scorers.autoencoders.score(drawn.images, other_classes(factual, 10, seed=0), factual)
    np.testing.assert_allclose(drawn.values["im1"], expected.im1)
    np.testing.assert_allclose(drawn.values["im2_old"], expected.im2_old)
    np.testing.assert_array_equal(nothing.images, data.images)


def test_target_classes_differ_from_factual_ones_and_are_uniform() -> None:
    classes = np.arange(1000) % 10
    target = other_classes(classes, 10, seed=3)
    assert (target != classes).all() and set(target) == set(range(10))
    np.testing.assert_array_equal(target[:100], other_classes(classes[:100], 10, seed=3))
    assert (target != other_classes(classes, 10, seed=4)).any()
    assert np.bincount((target - classes) % 10, minlength=10)[1:].min() > 70


def constructed(scale: float, accuracy: float, divergence: float) -> ScaleResult:
    values = {name: np.full(10, 0.5) for name in METRICS}
    values["accuracy"] = (np.arange(10) < 10 * accuracy).astype(float)
    values["cld"] = np.array([divergence] * 9 + [np.nan])
    return ScaleResult(scale, np.zeros((10, 1, 4, 4), np.uint8), values)


def test_the_recommended_scale_is_accurate_and_close() -> None:
    found = [constructed(0, 0, 1.3), constructed(1, 0.9, 0.8), constructed(2, 1, 1.0), constructed(3, 1, 1.1)]
    assert recommend(found).scale == 2
    assert recommend(found, 0.85).scale == 1
    assert recommend(found[:2]).scale == 1, "the most accurate one where none reaches the target"


def test_the_scale_is_chosen_and_compared_on_other_images_than_those_reported() -> None:
    train = read_split("mnist", SHARE, "train")
    validation, reference = choose_images(train)
    assert len(validation) == len(train) // 16 and len(validation) + len(reference) == len(train)
    assert not set(validation.ids) & set(reference.ids)
    few = choose_images(train, 5, 7)
    assert [len(part) for part in few] == [5, 7]
    spread = [
        [part.ids.index(each) for each in some.ids] for part, some in zip((validation, reference), few, strict=True)
    ]
    assert spread[0][-1] > len(validation) // 2 and spread[1][-1] > len(reference) // 2, "over all images"


def test_table_csv_and_plot(results: list[ScaleResult], tmp_path: Path) -> None:
    write_sweep(tmp_path / "scale.csv", results)
    rows = list(csv.DictReader((tmp_path / "scale.csv").open()))
    assert [row["scale"] for row in rows] == ["0", "1"]
    assert float(rows[1]["accuracy"]) == pytest.approx(results[1].values["accuracy"].mean(), rel=1e-5)
    assert float(rows[1]["l1_low"]) < float(rows[1]["l1"]) < float(rows[1]["l1_high"])
    image = draw_sweep(results, results[1])
    assert image.dtype == np.uint8 and image.shape[2] == 3 and len(np.unique(image)) > 20
    assert "1.00*" in sweep_table(results, results[1])


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_diffscm(tmp_path_factory.mktemp("diffscm") / "model")


def test_the_script(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_autoencoders(tmp_path / "networks", ClassAutoencoders(dataset_spec("mnist")), {})
    base = [f"--model_path={model_folder}", f"--data_dir={SHARE}", f"--out_dir={out}", "--steps=2"]
    base += [f"--autoencoders={tmp_path / 'networks'}", "--num_images=12", "--num_reference=100", "--num_validation=9"]
    outcome = run(SCRIPT, *base, "--scales=1,0", "--wanted_accuracy=0.5")
    assert outcome.returncode == 0, outcome.stderr
    assert "recommended: s = " in outcome.stdout and ", chosen on 9 validation images (accuracy " in outcome.stdout
    report = json.loads((out / "scale.json").read_text())
    assert list(report["scales"]) == list(report["scales_on_validation"]) == ["0", "1"]
    assert report["scales"]["1"]["l1"]["images"] == 12 and report["scales_on_validation"]["1"]["l1"]["images"] == 9
    assert "100%" in outcome.stderr
    assert "warning: wanted_accuracy: deprecated, use target_accuracy" in outcome.stderr
    assert {path.name for path in out.iterdir()} == {"scale.csv", "scale.png", "counterfactuals.png", "scale.json"}
    rows = (out / "scale.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["scale", "0", "1"]
    for scales, message in (("a", "finite numbers"), ("1,inf", "finite numbers"), ("", "at least one number")):
        assert_refused(run(SCRIPT, *base, f"--scales={scales}"), "scales: expected", message, repr(scales))
    causal = REPO / "weights" / "pendulum_causaldae_mini"
    assert_refused(run(SCRIPT, f"--model_path={causal}", *base[1:]), "expected a Diff-SCM, got a causaldae model")


def test_an_empty_sweep_is_refused(scorers: Scorers) -> None:
    data = read_split("mnist", SHARE, "test", limit=3)
    with pytest.raises(InputError, match="scales: expected at least one number"):
        sweep_scale(Engine(data), data, [], scorers)  # type: ignore[arg-type]
