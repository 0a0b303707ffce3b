"""Example images: drawn or read without a data set, as a model sees them, with a truth that can be drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import squares_spec

from causaldiffae.datasets import dataset
from causaldiffae.datasets.registry import dataset_spec, example_images, true_counterfactual, truth_is_known
from causaldiffae.errors import DataError, InputError


@pytest.mark.parametrize(("name", "size", "channels"), [("morphomnist", 28, 1), ("pendulum", 32, 3)])
def test_examples_are_the_data_sets_own_pictures(name: str, size: int, channels: int) -> None:
    """Redrawn from their own labels, nothing changes: labels, pictures and base digits belong together."""
    data = example_images(dataset_spec(name, size, channels), 4)
    assert data.images.shape == (4, channels, size, size) and data.images.dtype == np.uint8
    assert truth_is_known(data)
    labels, images = true_counterfactual(data, {})
    np.testing.assert_array_equal(labels, data.labels)
    np.testing.assert_array_equal(images, data.images)
    again = example_images(dataset_spec(name, size, channels), 4)
    np.testing.assert_array_equal(again.images, data.images)


def test_digits_are_one_of_each_class() -> None:
    data = example_images(dataset_spec("morphomnist"), 12)
    assert data.classes is not None
    assert list(data.classes) == [*range(10), 0, 1]


def test_plain_digits() -> None:
    data = example_images(dataset_spec("mnist"), 11)
    assert list(data.labels[:, 0]) == [*range(10), 0] and data.images.max() == 255


def test_the_circuit_needs_no_renderer() -> None:
    data = example_images(dataset_spec("circuit", 32), 12)
    assert len(data) == 12 and data.images.std() > 20
    assert ((data.labels >= 0) & (data.labels <= 1)).all()


def test_what_there_is_not() -> None:
    with pytest.raises(InputError, match="data set 'squares' has none, there are some of circuit"):
        example_images(squares_spec())
    with pytest.raises(InputError, match=r"65 asked for, 1\.\.64 are there"):
        example_images(dataset_spec("pendulum"), 65)


def test_without_a_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dataset, "ASSETS", tmp_path / "assets")
    with pytest.raises(DataError, match="come with a clone of the repository"):
        example_images(dataset_spec("morphomnist"), 1)
    assert len(example_images(replace(dataset_spec("pendulum")), 1)) == 1  # drawn on the spot
