"""What every data set can be asked for: specs, splits, measurements and example images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import squares_spec

from causaldiffae.datasets import dataset
from causaldiffae.datasets.registry import (
    dataset_spec,
    example_images,
    measure,
    read_split,
    true_counterfactual,
    truth_is_known,
)
from causaldiffae.errors import DataError, InputError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "celeba"}, "dataset: expected one of .*circuit.*pendulum.*, got 'celeba'"),
        ({"split": "val"}, "split: expected one of train, test, got 'val'"),
        ({"limit": 0}, "limit: expected a positive integer, got 0"),
        ({"image_size": 4}, r"image_size: expected an integer in 8\.\.512, got 4"),
        ({"dataset": "circuit", "image_size": 1000}, r"image_size: expected an integer in 8\.\.512, got 1000"),
        ({"channels": 1}, "channels: expected 3 or 4 for data set pendulum, got 1"),
        ({"dataset": "mnist", "channels": 3}, "channels: expected 1 for data set mnist, got 3"),
        ({"data_dir": "/nowhere"}, "/nowhere: expected a folder, got none"),
        ({"graph": "g.yaml"}, "graph: expected none, got g.yaml; data set pendulum has its own graph"),
        (
            {"spec": squares_spec(), "image_size": 8},
            "spec: expected no image_size, channels or graph together with",
        ),
    ],
)
def test_an_invalid_request_is_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_split(**{"dataset": "pendulum", "data_dir": tmp_path, "split": "train", **arguments})


def test_only_images_of_the_spec_are_measured() -> None:
    for images in (np.zeros((1, 1, 28, 28), np.uint8), np.zeros((1, 4, 28, 28)), None):
        with pytest.raises(InputError, match=r"images: expected a uint8 array \(N, 4, S, S\), got "):
            measure(dataset_spec("pendulum"), images)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "size", "channels"), [("morphomnist", 28, 1), ("pendulum", 32, 3)])
def test_example_images_are_their_own_counterfactuals_without_intervention(name: str, size: int, channels: int) -> None:
    data = example_images(dataset_spec(name, size, channels), 4)
    assert data.images.shape == (4, channels, size, size) and data.images.dtype == np.uint8
    assert truth_is_known(data)
    labels, images = true_counterfactual(data, {})
    np.testing.assert_array_equal(labels, data.labels)
    np.testing.assert_array_equal(images, data.images)
    np.testing.assert_array_equal(example_images(dataset_spec(name, size, channels), 4).images, data.images)


def test_example_images_show_every_class_and_need_no_renderer() -> None:
    digits = example_images(dataset_spec("morphomnist"), 12)
    assert digits.classes is not None and list(digits.classes) == [*range(10), 0, 1]
    mnist = example_images(dataset_spec("mnist"), 11)
    assert list(mnist.labels[:, 0]) == [*range(10), 0] and mnist.images.max() == 255
    circuit = example_images(dataset_spec("circuit", 32), 12)
    assert len(circuit) == 12 and circuit.images.std() > 20
    assert ((circuit.labels >= 0) & (circuit.labels <= 1)).all()


def test_missing_examples_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="examples: expected a data set among circuit, .*, got 'squares'"):
        example_images(squares_spec())
    with pytest.raises(InputError, match=r"examples: expected an integer in 1\.\.64, got 65"):
        example_images(dataset_spec("pendulum"), 65)
    monkeypatch.setattr(dataset, "ASSETS", tmp_path / "assets")
    with pytest.raises(DataError, match="expected a folder, got none; clone the repository"):
        example_images(dataset_spec("morphomnist"), 1)
    assert len(example_images(dataset_spec("pendulum"), 1)) == 1, "rendered on the spot"
