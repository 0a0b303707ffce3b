"""Anti-causal predictors: heads, files, training data off the observational distribution, and a short training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import REPO

from causaldiffae.datasets.images import ImageData, resize_area
from causaldiffae.datasets.interventional import (
    cached_interventional,
    independent_labels,
    interventional,
)
from causaldiffae.datasets.morphomnist import deformed
from causaldiffae.datasets.pendulum import PENDULUM
from causaldiffae.datasets.registry import dataset_spec, exact_labels, measure, read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.generators import morphomnist, pendulum
from causaldiffae.generators.morphology import mean_thickness
from causaldiffae.predictors.predictor import (
    Predictor,
    check_fits,
    find_predictor,
    heads_of,
    load_predictor,
    save_predictor,
)
from causaldiffae.training import predictor as training

SPEC = dataset_spec("pendulum", 32, 3)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    morphomnist.write_dataset(
        REPO / "assets" / "mnist_share", folder, num_train=24, num_test=8, workers=1, progress=False
    )
    return folder


def pendulums(count: int, seed: int = 0) -> ImageData:
    rng = np.random.default_rng(seed)
    labels = pendulum.file_labels(rng.integers(-40, 44, count), rng.integers(60, 100, count))
    images = np.stack([pendulum.render(*row[:2])[..., :3].transpose(2, 0, 1) for row in labels])
    ids = [str(i) for i in range(count)]
    return ImageData(SPEC, "train", resize_area(images, 32), labels.astype(np.float32), None, ids)


def test_heads_follow_the_kinds_of_variables() -> None:
    assert [(head.name, head.start, head.size) for head in heads_of(dataset_spec("morphomnist"))] == [
        ("thickness", 0, 1),
        ("intensity", 1, 1),
        ("class", 2, 10),
    ]
    mixed = DatasetSpec.from_dict(
        SPEC.to_dict()
        | {"kinds": ["categorical", "binary", "continuous", "continuous"], "categories": [["a", "b", "c"], [], [], []]}
    )
    assert [head.values for head in heads_of(mixed)] == [(0.0, 1.0, 2.0), (60.0, 147.0), (), ()]
    predictor = Predictor(mixed).eval()
    outputs = np.array([[0.0, 2.0, 1.0, -1.0, 1.0, 0.5, -0.5]])
    labels, classes = predictor.labels_of(outputs)
    np.testing.assert_allclose(labels, [[1.0, 147.0, 7.5 + 0.5 * 4.5, 11 - 0.5 * 8]])
    assert classes is None
    read = predictor.read(np.zeros((2, 3, 32, 32), np.uint8))
    assert read.labels.shape == (2, 4) and set(read.labels[:, 1]) <= {60.0, 147.0}


def test_predictors_are_kept_in_model_folders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    predictor = Predictor(SPEC).eval()
    folder = save_predictor(tmp_path / "judge", predictor, {"observational": {"angle": 0.5}})
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1 << 20
    loaded = load_predictor(folder)
    assert loaded.figures == {"observational": {"angle": 0.5}}
    assert loaded.predictor.spec == SPEC and loaded.predictor.config == predictor.config
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    before, after = predictor.read(images), loaded.predictor.read(images)
    np.testing.assert_allclose(after.labels, before.labels, atol=0.5)
    assert after.features.shape == (3, 96)
    mean, logvar = loaded.predictor.posteriors(images)
    assert mean.shape == logvar.shape == (3, 12)
    with pytest.raises(InputError, match="images"):
        predictor.read(images[:, :, :16])


def test_what_is_no_predictor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a predictor is needed"):
        load_predictor(REPO / "weights" / "pendulum_causaldae_mini")
    folder = save_predictor(tmp_path / "judge", Predictor(SPEC), {})
    described = json.loads((folder / "config.json").read_text())
    for network in (None, {"widths": [1]}, {"widths": [8, "x"], "patch_size": 2, "features": 8}):
        (folder / "config.json").write_text(json.dumps({**described, "network": network}))
        with pytest.raises(DataError, match="network is"):
            load_predictor(folder)
    with pytest.raises(InputError, match="patch_size: 2 given"):
        Predictor(dataset_spec("pendulum", 33, 3))


def test_a_predictor_must_fit_the_model() -> None:
    predictor = Predictor(SPEC)
    check_fits(predictor, SPEC, "here")
    with pytest.raises(InputError, match="is for image_size 32, 96 is needed"):
        check_fits(predictor, dataset_spec("pendulum"), "here")
    with pytest.raises(InputError, match="is for name 'pendulum', 'morphomnist' is needed"):
        check_fits(predictor, dataset_spec("morphomnist"), "here")
    assert find_predictor(SPEC, "given") == "given"
    with pytest.raises(InputError, match="there is no weights/pendulum_40_predictor"):
        find_predictor(dataset_spec("pendulum", 40, 3))


def test_exact_labels_are_what_pendulums_show() -> None:
    on_disk = pendulums(6)
    exact = exact_labels(on_disk)
    assert np.abs(exact - on_disk.labels).max() > 0.2
    np.testing.assert_array_equal(exact[:, :2], on_disk.labels[:, :2])
    inside = PENDULUM.shows_all(exact)
    shown = measure(SPEC, on_disk.images)
    assert np.abs(shown - exact)[inside, 3].max() < 0.3


def test_interventional_labels_are_independent_and_shown() -> None:
    labels = independent_labels(dataset_spec("morphomnist"), 4000, np.random.default_rng(0))
    assert abs(np.corrcoef(labels.T)[0, 1]) < 0.05
    assert labels[:, 0].min() < 1.0 and labels[:, 0].max() > 6.0
    shadows = independent_labels(SPEC, 200, np.random.default_rng(0))
    assert len(shadows) == 200 and PENDULUM.shows_all(shadows).all()
    drawn = interventional(pendulums(40), 2, 0, False)
    assert len(drawn) == 80 and drawn.images.shape == (80, 3, 32, 32)
    read = measure(SPEC, drawn.images)
    assert np.nanmedian(np.abs(read - drawn.labels), axis=0) == pytest.approx([0, 0, 0, 0], abs=0.3)
    assert abs(np.corrcoef(drawn.labels.T)[1, 3]) < 0.45, "the shadow does not follow the light"


def test_deformed_digits_keep_their_label(digits: Path) -> None:
    data = read_split("morphomnist", digits, "test")
    assert data.base_images is not None
    rng = np.random.default_rng(0)
    deformed_digit = deformed(data.base_images[0], rng)
    assert deformed_digit.dtype == np.uint8 and not np.array_equal(deformed_digit, data.base_images[0])
    assert np.array_equal(deformed(np.zeros((28, 28), np.uint8), rng), np.zeros((28, 28)))
    drawn = interventional(data, 1, 0, True)
    np.testing.assert_array_equal(drawn.classes, data.classes)
    thick = mean_thickness(drawn.images[:, 0])
    assert np.abs(thick - drawn.labels[:, 0]).mean() < 0.35
    assert not np.array_equal(drawn.images, interventional(data, 1, 1, True).images)


def test_drawn_images_are_kept(tmp_path: Path) -> None:
    data = pendulums(5)
    first = cached_interventional(data, tmp_path, 2, 0, False)
    (kept,) = tmp_path.glob("interventional_*.npz")
    again = cached_interventional(data, tmp_path, 2, 0, False)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_allclose(first.labels, again.labels)
    cached_interventional(data, tmp_path, 2, 1, False)
    assert len(list(tmp_path.glob("interventional_*.npz"))) == 2, "another seed is another set"
    kept.write_bytes(b"nothing")
    with pytest.raises(DataError, match="delete it"):
        cached_interventional(data, tmp_path, 2, 0, False)


def test_validation_is_cut_from_training() -> None:
    train, held = training.split_validation(100, 0)
    assert len(held) == 6 and not set(train) & set(held) and len(train) == 94
    np.testing.assert_array_equal(training.split_validation(100, 0)[1], held)
    with pytest.raises(InputError, match="2 or more"):
        training.split_validation(1, 0)


def test_augmentation_moves_and_blurs_no_label() -> None:
    images = torch.full((8, 1, 10, 10), -1.0)
    images[:, :, 4:6, 4:6] = 1.0
    generator = torch.Generator().manual_seed(0)
    moved = training.augment(images, 0.0, 2, generator)
    assert moved.shape == images.shape and not torch.equal(moved, images)
    torch.testing.assert_close(moved.sum(dim=(1, 2, 3)), images.sum(dim=(1, 2, 3)))
    noisy = training.augment(images, 10.0, 0, generator)
    assert 0 < (noisy - images).abs().max() < 0.5
    torch.testing.assert_close(training.augment(images, 0.0, 0, generator), images)


def test_a_short_training_learns_and_never_sees_the_test_images(digits: Path, tmp_path: Path) -> None:
    config = training.PredictorTraining(
        str(digits), str(tmp_path / "judge"), steps=60, batch_size=16, vae_steps=3, cache_dir=str(tmp_path)
    )
    prepared = training.prepare(config, "morphomnist", progress=False)
    assert prepared.drawn_train is not None and len(prepared.drawn_train) == 3 * len(prepared.train)
    seen = {image.tobytes() for image in prepared.train.images}
    assert not seen & {image.tobytes() for image in (*prepared.validation.images, *prepared.test.images)}
    untrained, _ = training.train_predictor(replace(config, steps=1, lr=1e-9), prepared)
    trained, best = training.train_predictor(config, prepared)
    assert best < 0.8 * training.validation_loss(untrained, prepared)
    assert best == pytest.approx(training.validation_loss(trained, prepared)), "the best weights are kept"
    encoder = {name: value.clone() for name, value in trained.vae_encoder.state_dict().items()}
    reader = trained.read(prepared.test.images).labels
    assert np.isfinite(training.train_vae(config, trained, prepared.train))
    assert any(not torch.equal(value, encoder[name]) for name, value in trained.vae_encoder.state_dict().items())
    np.testing.assert_array_equal(trained.read(prepared.test.images).labels, reader)
    figures = training.errors_on(trained, prepared.test)
    assert figures is not None and set(figures) == {"images", "thickness", "intensity", "class_accuracy"}


def test_training_says_what_is_missing() -> None:
    with pytest.raises(InputError, match="data_dir: expected a value, got none; set --data_dir"):
        training.PredictorTraining(out="x")
    with pytest.raises(InputError, match="steps: expected 1 or more, got 0"):
        training.PredictorTraining("a", "b", steps=0)


@pytest.mark.parametrize("name", ["morphomnist_28_predictor", "pendulum_32_predictor"])
def test_shipped_predictors_say_how_good_they_are(name: str) -> None:
    folder = REPO / "weights" / name
    loaded = load_predictor(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1 << 20
    for kind in ("observational", "interventional"):
        assert loaded.figures[kind]["images"] >= 1000
    assert loaded.figures["train_digest"] != loaded.figures["test_digest"]


def test_the_shipped_pendulum_predictor_reads_pendulums() -> None:
    data = pendulums(40, seed=7)
    read = load_predictor(REPO / "weights" / "pendulum_32_predictor").predictor.read(data.images).labels
    assert np.abs(read - exact_labels(data)).mean(axis=0) == pytest.approx([0, 0, 0, 0], abs=1.5)


def test_the_best_weights_are_kept_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    train = replace(pendulums(12), labels=exact_labels(pendulums(12)))
    prepared = training.PredictorData(train, train, train, None, None, None)
    seen: list[torch.Tensor] = []

    def scripted(predictor: Predictor, _: training.PredictorData) -> float:
        seen.append(predictor.last.weight.detach().clone())
        return [5.0, 1.0, 9.0, 2.0][len(seen) - 1]

    monkeypatch.setattr(training, "validation_loss", scripted)
    trained, best = training.train_predictor(
        training.PredictorTraining("here", "there", steps=4, batch_size=4), prepared
    )
    assert best == 1.0 and torch.equal(trained.last.weight, seen[1]) and not torch.equal(seen[1], seen[3])
