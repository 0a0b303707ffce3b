"""Anti-causal predictors: heads, predictions, model folders, and the shipped predictors."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPO
from support import pendulum_images

from causaldiffae.datasets.images import to_model_range
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.predictors.predictor import (
    Predictor,
    check_fits,
    config_for,
    find_predictor,
    heads_of,
    load_predictor,
    predictor_is_shipped,
    save_predictor,
)

SPEC = dataset_spec("pendulum", 32, 3)
WEIGHTS = REPO / "weights"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_predictor(tmp_path / "predictor", Predictor(SPEC), {"observational": {"angle": 0.5}})


def test_heads_follow_the_kinds_of_variables() -> None:
    heads = [(head.name, head.start, head.size) for head in heads_of(dataset_spec("morphomnist"))]
    assert heads == [("thickness", 0, 1), ("intensity", 1, 1), ("class", 2, 10)]


def test_outputs_become_labels() -> None:
    kinds = {
        "kinds": ["categorical", "binary", "continuous", "continuous"],
        "categories": [["a", "b", "c"], [], [], []],
    }
    mixed = DatasetSpec.from_dict(SPEC.to_dict() | kinds)
    assert [head.values for head in heads_of(mixed)] == [(0.0, 1.0, 2.0), (60.0, 147.0), (), ()]
    predictor = Predictor(mixed).eval()
    labels, classes = predictor.labels_of(np.array([[0.0, 2.0, 1.0, -1.0, 1.0, 0.5, -0.5]]))
    np.testing.assert_allclose(labels, [[1.0, 147.0, 7.5 + 0.5 * 4.5, 11 - 0.5 * 8]])
    assert classes is None
    found = predictor.read(np.zeros((2, 3, 32, 32), np.uint8))
    assert found.labels.shape == (2, 4) and set(found.labels[:, 1]) <= {60.0, 147.0}


@pytest.mark.parametrize(("size", "patch"), [(28, 2), (64, 4), (33, 1), (96, 6)])
def test_patches_divide_the_image(size: int, patch: int) -> None:
    assert config_for(dataset_spec("pendulum", size, 3)).patch_size == patch


def test_a_saved_predictor_predicts_the_same(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1 << 20
    loaded = load_predictor(folder)
    assert loaded.figures == {"observational": {"angle": 0.5}} and loaded.predictor.spec == SPEC
    torch.manual_seed(0)
    predictor = Predictor(SPEC).eval()
    assert loaded.predictor.config == predictor.config
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    before, after = predictor.read(images), loaded.predictor.read(images)
    np.testing.assert_allclose(after.labels, before.labels, atol=0.5)  # weights are in half precision
    assert after.features.shape == (3, 96)
    mean, logvar = loaded.predictor.posteriors(images)
    assert mean.shape == logvar.shape == (3, 12)
    with pytest.raises(InputError, match=r"images: expected uint8 \(N, 3, 32, 32\), got uint8 \(3, 3, 16, 32\)"):
        predictor.read(images[:, :, :16])


def test_batch_statistics_are_those_of_the_images_and_leave_the_running_ones() -> None:
    """The oracle is the network in training mode; 300 images are one batch, though `read` takes 256 at a time."""
    torch.manual_seed(0)
    predictor = Predictor(SPEC).eval()
    before = {key: value.clone() for key, value in predictor.state_dict().items()}
    images = np.random.default_rng(0).integers(0, 256, (300, 3, 32, 32), dtype=np.uint8)
    running = predictor.read(images)
    found = predictor.read(images, batch_statistics=True)
    after = predictor.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(module.training for module in predictor.modules())
    np.testing.assert_array_equal(predictor.read(images).labels, running.labels)
    with torch.no_grad():
        outputs = deepcopy(predictor).train()(to_model_range(images))
    np.testing.assert_allclose(found.labels, predictor.labels_of(outputs.double().numpy())[0], rtol=1e-5)
    assert np.abs(found.labels - running.labels).max() > 0.01
    assert predictor.read(images[:0], batch_statistics=True).labels.shape == (0, 4)


def test_other_models_are_refused() -> None:
    with pytest.raises(DataError, match="expected a model of type 'predictor'"):
        load_predictor(WEIGHTS / "pendulum_causaldae_mini")
    with pytest.raises(InputError, match="patch_size: expected a divisor of the image size 33, got 2"):
        Predictor(dataset_spec("pendulum", 33, 3))


@pytest.mark.parametrize(
    "network",
    [
        None,
        {"widths": [1]},
        {"widths": [8, "x"], "patch_size": 2, "features": 8},
        {"widths": [8], "patch_size": 0, "features": 8},
        {"widths": [8], "patch_size": 2, "features": 10**6},
    ],
)
def test_damaged_configurations_are_refused(folder: Path, network: Any) -> None:
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "network": network}))
    with pytest.raises(DataError, match="(network|widths|patch_size|features): expected"):
        load_predictor(folder)


def test_a_predictor_must_fit_the_model() -> None:
    predictor = Predictor(SPEC)
    check_fits(predictor, SPEC, "here")
    expected = "predictor: here: expected image_size 96, as the model, got 32; train it with --image_size 96"
    with pytest.raises(InputError, match=expected):
        check_fits(predictor, dataset_spec("pendulum"), "here")
    with pytest.raises(InputError, match="predictor: here: expected name 'morphomnist', as the model, got 'pendulum'"):
        check_fits(predictor, dataset_spec("morphomnist"), "here")


def test_shipped_predictors_are_found() -> None:
    assert find_predictor(SPEC, "given") == "given"
    assert predictor_is_shipped(SPEC) and Path(find_predictor(SPEC)).name == "pendulum_32_predictor"
    with pytest.raises(InputError, match="predictor: .*weights/pendulum_40_predictor"):
        find_predictor(dataset_spec("pendulum", 40, 3))


@pytest.mark.parametrize("name", ["morphomnist_28_predictor", "pendulum_32_predictor"])
def test_shipped_predictors_have_figures(name: str) -> None:
    loaded = load_predictor(WEIGHTS / name)
    assert sum(path.stat().st_size for path in (WEIGHTS / name).iterdir()) < 1 << 20
    for kind in ("observational", "interventional"):
        assert loaded.figures[kind]["images"] >= 1000
    assert loaded.figures["train_digest"] != loaded.figures["test_digest"]


def test_the_shipped_pendulum_predictor_predicts_labels() -> None:
    data = pendulum_images(40, seed=7)
    found = load_predictor(WEIGHTS / "pendulum_32_predictor").predictor.read(data.images).labels
    assert np.abs(found - data.labels).mean(axis=0) == pytest.approx([0, 0, 0, 0], abs=1.5)
