"""Training of a predictor: validation split, augmentation, and a short training that never uses test images."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from folders import make_folder, table_rows
from paths import REPO
from support import pendulum_images
from tiny import squares

from causaldiffae.errors import InputError
from causaldiffae.generators import morphomnist
from causaldiffae.predictors.common import Head
from causaldiffae.predictors.predictor import Predictor, Readings
from causaldiffae.training import predictor as training
from causaldiffae.training.fitting import fit


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mnist, out = REPO / "assets" / "mnist_share", tmp_path_factory.mktemp("data") / "digits"
    return morphomnist.write_dataset(mnist, out, num_train=24, num_test=8, workers=1, progress=False)


def test_validation_images_are_split_off() -> None:
    train, held_out = training.split_validation(100, 0)
    assert len(held_out) == 6 and not set(train) & set(held_out) and len(train) == 94
    np.testing.assert_array_equal(training.split_validation(100, 0)[1], held_out)
    with pytest.raises(InputError, match="2 or more"):
        training.split_validation(1, 0)


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21])
def test_any_number_of_steps_can_be_fitted(steps: int) -> None:
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    rates: list[float] = []

    def loss(step: int) -> torch.Tensor:
        rates.append(optimizer.param_groups[0]["lr"])
        return network(torch.ones(1, 1)).square().sum()

    fit(network, optimizer, loss, lambda: 0.0, steps=steps, warmup=0.05)
    assert len(rates) == steps and max(rates) <= 0.1 + 1e-9


def test_augmentation_shifts_and_adds_noise() -> None:
    images = torch.full((8, 1, 10, 10), -1.0)
    images[:, :, 4:6, 4:6] = 1.0
    generator = torch.Generator().manual_seed(0)
    shifted = training.augment(images, 0.0, 2, generator)
    assert shifted.shape == images.shape and not torch.equal(shifted, images)
    torch.testing.assert_close(shifted.sum(dim=(1, 2, 3)), images.sum(dim=(1, 2, 3)))
    noisy = training.augment(images, 10.0, 0, generator)
    assert 0 < (noisy - images).abs().max() < 0.5
    torch.testing.assert_close(training.augment(images, 0.0, 0, generator), images)
    assert training.augment(images.to("meta"), 10.0, 2, generator).device.type == "meta", "draws are on the CPU"


def test_the_device_is_a_flag(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device: expected auto, cpu, mps, cuda or cuda:N, got 'gpu'"):
        training.run_training(["--data_dir=d", f"--out={tmp_path}", "--device=gpu"], "", "morphomnist")


def test_a_short_training_lowers_the_loss_without_test_images(digits: Path, tmp_path: Path) -> None:
    config = training.PredictorTraining(
        str(digits), str(tmp_path / "predictor"), steps=60, batch_size=16, vae_steps=3, cache_dir=str(tmp_path)
    )
    prepared = training.prepare(config, "morphomnist", progress=False)
    assert prepared.interventional_train is not None and len(prepared.interventional_train) == 3 * len(prepared.train)
    used = {image.tobytes() for image in prepared.train.images}
    assert not used & {image.tobytes() for image in (*prepared.validation.images, *prepared.test.images)}
    untrained, _ = training.train_predictor(replace(config, steps=1, lr=1e-9), prepared)
    trained, best = training.train_predictor(config, prepared)
    assert best < 0.8 * training.validation_loss(untrained, prepared)
    assert best == pytest.approx(training.validation_loss(trained, prepared)), "the best weights are kept"
    encoder = {name: value.clone() for name, value in trained.vae_encoder.state_dict().items()}
    labels = trained.read(prepared.test.images).labels
    assert np.isfinite(training.train_vae(config, trained, prepared.train))
    assert any(not torch.equal(value, encoder[name]) for name, value in trained.vae_encoder.state_dict().items())
    np.testing.assert_array_equal(trained.read(prepared.test.images).labels, labels)
    figures = training.errors_on(trained, prepared.test)
    assert figures is not None and set(figures) == {"images", "thickness", "intensity", "class_accuracy"}


def test_without_repeats_only_observational_images_are_trained_on(digits: Path, tmp_path: Path) -> None:
    config = training.PredictorTraining(
        str(digits), str(tmp_path / "predictor"), steps=2, batch_size=16, repeats=0, cache_dir=str(tmp_path)
    )
    prepared = training.prepare(config, "morphomnist", progress=False)
    assert prepared.interventional_train is None and prepared.interventional_validation is None
    assert prepared.interventional_test is not None  # its errors are still reported
    trained, best = training.train_predictor(config, prepared)
    assert best == pytest.approx(training.validation_loss(trained, prepared))


def test_missing_labels_are_left_out_by_variable(tmp_path: Path) -> None:
    rows = [{**row, "hat": "" if i % 3 else row["hat"], "age": "" if i % 2 else row["age"]}
            for i, row in enumerate(table_rows(60))]  # fmt: skip
    rows = [{**row, "split": ("train", "val", "test")[i // 20]} for i, row in enumerate(rows)]
    rows[1]["grey"] = ""  # no label at all
    folder = make_folder(tmp_path / "set", [{**row, "hat": row["hat"] and "cap" if i < 6 else row["hat"]}
                                            for i, row in enumerate(rows)])  # fmt: skip
    config = training.PredictorTraining(str(folder), "out", steps=4, batch_size=8, vae_steps=1)
    prepared = training.prepare(config, "folder", progress=False)
    assert [len(part) for part in (prepared.train, prepared.validation, prepared.test)] == [19, 20, 20]
    predictor, _ = training.train_predictor(config, prepared)
    targets = training.head_targets(prepared.train, predictor)
    missing = np.isnan(prepared.train.labels)
    np.testing.assert_array_equal(targets.isnan().numpy(), missing)
    outputs = torch.randn(19, predictor.last.out_features, requires_grad=True)
    training.prediction_loss(predictor, outputs, targets).backward()
    assert outputs.grad is not None and bool(outputs.grad.isfinite().all())
    for head, column in zip(predictor.heads, missing.T, strict=True):
        gradient = outputs.grad[:, head.start : head.start + head.size]
        np.testing.assert_array_equal((gradient == 0).all(dim=1).numpy(), column)
    training.refit_last_layer(predictor, prepared)
    figures = training.errors_on(predictor, prepared.test)
    assert figures is not None and all(np.isfinite(value) for value in figures.values())


def test_accuracies_compare_categories_not_their_values_in_another_precision() -> None:
    """Labels are float32, and 0.1 is not; an image without the label is left out."""
    category = np.array([0, 1, 1, 0])
    labels = np.append(np.array([0.1, 0.9], np.float32)[category], np.float32(np.nan))[:, None]
    data, spec, heads = (
        replace(squares(5), labels=labels),
        SimpleNamespace(graph=["on"]),
        [Head("on", 0, 2, (0.1, 0.9))],
    )
    for read, accuracy in ((category, 1.0), (1 - category, 0.0)):
        readings = Readings(np.array([0.1, 0.9])[np.append(read, 0)][:, None], None, np.empty((5, 0), np.float32))
        predictor = SimpleNamespace(spec=spec, heads=heads, read=lambda _, readings=readings: readings)
        figures = training.errors_on(predictor, data)  # type: ignore[arg-type]
        assert figures == {"images": 5.0, "on_accuracy": accuracy, "on_images": 4.0}


def test_columns_of_the_table_are_as_wide_as_their_names() -> None:
    long = "angle of the lamp"
    figures = {"observational": {long: 0.25, f"{long}_images": 7}, "interventional": None}
    _, header, row = training.figures_table(figures).splitlines()
    assert header.split() == ["angle", "of", "the", "lamp", "angle", "of", "the", "lamp_images"]
    assert row.split() == ["observational", "0.2500", "7"] and len(row) == len(header)


def test_the_best_weights_are_kept_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    train = pendulum_images(12)
    prepared = training.PredictorData(train, train, train, None, None, None)
    weights: list[torch.Tensor] = []

    def scripted(predictor: Predictor, _: training.PredictorData) -> float:
        weights.append(predictor.last.weight.detach().clone())
        return [5.0, 1.0, 9.0, 2.0][len(weights) - 1]

    monkeypatch.setattr(training, "validation_loss", scripted)
    config = training.PredictorTraining("here", "there", steps=4, batch_size=4)
    trained, best = training.train_predictor(config, prepared)
    assert best == 1.0 and torch.equal(trained.last.weight, weights[1]) and not torch.equal(weights[1], weights[3])


def test_missing_and_invalid_settings_are_refused() -> None:
    with pytest.raises(InputError, match="data_dir: expected a value, got none; set --data_dir"):
        training.PredictorTraining(out="x")
    with pytest.raises(InputError, match="steps: expected 1 or more, got 0"):
        training.PredictorTraining("a", "b", steps=0)


def test_an_output_folder_that_cannot_be_written_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "step_0000001").mkdir(parents=True)
    monkeypatch.setattr(training, "train_predictor", lambda *_: pytest.fail("it is trained"))
    given = [f"--data_dir={make_folder(tmp_path / 'data')}", f"--out={tmp_path / 'run'}", "--image_size=16"]
    with pytest.raises(InputError, match="run: expected a folder without checkpoints"):
        training.run_training(given, "", "folder")
