"""IM1 and IM2 in closed form on constructed autoencoders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from paths import REPO
from running import assert_refused, run
from support import Scaled
from torch import nn

from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.errors import DataError, InputError
from causaldiffae.metrics.interpretability import (
    EPSILON,
    ClassAutoencoders,
    all_class_autoencoder,
    class_autoencoder,
    class_numbers,
    load_autoencoders,
    save_autoencoders,
    steps_to_train,
    train_class_autoencoders,
)

SHARE = REPO / "assets" / "mnist_share"


def constructed(*factors: float, of_all: float) -> ClassAutoencoders:
    networks = ClassAutoencoders(dataset_spec("mnist"))
    networks.of_class = nn.ModuleList([Scaled(factor) for factor in factors])
    networks.of_all = Scaled(of_all)  # type: ignore[assignment]
    return networks


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 28, 28)).astype(np.uint8)


def test_the_definitions() -> None:
    networks, x = constructed(1.0, 0.5, 0.9, of_all=0.7), images()
    found = networks.score(x, np.array([0, 1, 2]), np.array([1, 0, 1]))
    unit = x.reshape(3, -1) / 255.0
    squares, sums = (unit**2).sum(axis=1), unit.sum(axis=1)
    errors = np.array([0.0, 0.5, 0.1]) ** 2 * squares, np.array([0.5, 0.0, 0.5]) ** 2 * squares
    np.testing.assert_allclose(found.im1[[0, 2]], (errors[0] / (errors[1] + EPSILON))[[0, 2]], rtol=1e-4, atol=1e-12)
    assert found.im1[1] > 1e6, "its old class reconstructs it perfectly"
    new, old = np.array([1.0, 0.5, 0.9]), np.array([0.5, 1.0, 0.5])
    np.testing.assert_allclose(found.im2, (new - 0.7) ** 2 * squares / (sums + EPSILON), rtol=1e-4)
    np.testing.assert_allclose(found.im2_old, (old - 0.7) ** 2 * squares / (sums + EPSILON), rtol=1e-4)


def test_im2_depends_on_the_range_and_is_finite_for_an_empty_image() -> None:
    networks = constructed(1.0, 0.5, of_all=0.5)
    bright, dark = images(1), images(1) // 2
    found = networks.score(np.concatenate([bright, dark, 0 * dark]), np.zeros(3), np.ones(3))
    assert found.im2[0] > 1.8 * found.im2[1] and np.isfinite(found.im2).all() and found.im2[2] == 0


def test_scores_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    networks, x = ClassAutoencoders(dataset_spec("mnist")).eval(), images(300)
    target, given = np.arange(300) % 10, (np.arange(300) + 3) % 10
    whole = networks.score(x, target, given)
    one = networks.score(x[200:201], target[200:201], given[200:201])
    np.testing.assert_allclose([part[200] for part in whole], [part[0] for part in one], rtol=1e-5)


def test_layers_are_those_of_the_report() -> None:
    def widths(network: nn.Sequential) -> list[int]:
        return [layer.out_channels for layer in network if isinstance(layer, nn.Conv2d)]

    assert widths(class_autoencoder()) == [16, 8, 8, 8, 16, 1]
    assert widths(all_class_autoencoder()) == [16, 16, 1, 16, 16, 1]
    for network in (class_autoencoder(), all_class_autoencoder()):
        assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 1, 28, 28)


def test_trained_autoencoders_distinguish_classes(tmp_path: Path) -> None:
    train = read_split("mnist", SHARE, "train")
    calls: list[None] = []
    networks, figures = train_class_autoencoders(train, 40, 4, on_step=lambda: calls.append(None))
    assert len(calls) == steps_to_train(train, 40, 4)
    assert len(figures["class_losses"]) == 10 and figures["all_loss"] < 0.1
    numbers = class_numbers(train.spec, train.labels)
    ones, zeros = train.images[numbers == 1], train.images[numbers == 0]
    rebuilt = networks.score(ones, np.full(len(ones), 1), np.full(len(ones), 0)).im1.mean()
    swapped = networks.score(ones, np.full(len(ones), 0), np.full(len(ones), 1)).im1.mean()
    assert rebuilt < 1 < swapped and len(zeros)
    folder = save_autoencoders(tmp_path / "a", networks, figures)
    again = load_autoencoders(folder).score(ones, np.full(len(ones), 1), np.full(len(ones), 0)).im1.mean()
    assert again == pytest.approx(rebuilt, rel=0.02)


def test_an_image_without_a_class_is_refused() -> None:
    with pytest.raises(InputError, match="digit: expected the class of every image, got none for 1"):
        class_numbers(dataset_spec("mnist"), np.array([[3.0], [np.nan]]))


def test_data_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dataset: expected one categorical variable for IM1 and IM2, got pendulum"):
        ClassAutoencoders(dataset_spec("pendulum"))
    with pytest.raises(InputError, match="image_size: expected a multiple of 4 for IM1 and IM2, got 30"):
        ClassAutoencoders(dataset_spec("mnist", 30))
    train = read_split("mnist", SHARE, "train")
    with pytest.raises(InputError, match="expected training images of every class, got none of class"):
        train_class_autoencoders(train.subset([0, 1, 2]), 1, 1)
    with pytest.raises(DataError, match="expected a model of type 'class_autoencoders' .*, got 'predictor'"):
        load_autoencoders(REPO / "weights" / "pendulum_32_predictor")
    script = REPO / "classifiers" / "class_autoencoders.py"
    assert_refused(run(script, f"--out={tmp_path}"), "data_dir: ")
    (tmp_path / "run" / "step_0000001").mkdir(parents=True)
    few = ("--num_images=40", "--class_epochs=1", "--all_epochs=1")
    refused = run(script, f"--data_dir={SHARE}", f"--out={tmp_path / 'run'}", *few)
    assert_refused(refused, "run: expected a folder without checkpoints")
