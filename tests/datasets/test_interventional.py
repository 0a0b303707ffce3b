"""Interventional images: independent, exact labels that the images show, and their cache."""

from pathlib import Path

import numpy as np
import pytest
from support import pendulum_images

from causaldiffae.datasets.interventional import cached_interventional, independent_labels, interventional
from causaldiffae.datasets.morphomnist import deformed
from causaldiffae.datasets.pendulum import PENDULUM
from causaldiffae.datasets.registry import dataset_spec, measure, read_split
from causaldiffae.errors import DataError
from causaldiffae.generators.morphology import mean_thickness

SPEC = dataset_spec("pendulum", 32, 3)


def test_labels_are_independent_and_can_be_shown() -> None:
    labels = independent_labels(dataset_spec("morphomnist"), 4000, np.random.default_rng(0))
    assert abs(np.corrcoef(labels.T)[0, 1]) < 0.05
    assert labels[:, 0].min() < 1.0 and labels[:, 0].max() > 6.0
    shadows = independent_labels(SPEC, 200, np.random.default_rng(0))
    assert len(shadows) == 200 and PENDULUM.shows_all(shadows).all()


def test_images_show_their_labels() -> None:
    drawn = interventional(pendulum_images(40), 2, 0, False)
    assert len(drawn) == 80 and drawn.images.shape == (80, 3, 32, 32)
    errors = np.abs(measure(SPEC, drawn.images) - drawn.labels)
    assert np.nanmedian(errors, axis=0) == pytest.approx([0, 0, 0, 0], abs=0.3)
    assert abs(np.corrcoef(drawn.labels.T)[1, 3]) < 0.45, "the shadow does not follow the light"


def test_deformed_digits_show_their_labels(morphomnist_dir: Path) -> None:
    data = read_split("morphomnist", morphomnist_dir, "train")
    assert data.base_images is not None
    rng = np.random.default_rng(0)
    digit = deformed(data.base_images[0], rng)
    assert digit.dtype == np.uint8 and not np.array_equal(digit, data.base_images[0])
    assert np.array_equal(deformed(np.zeros((28, 28), np.uint8), rng), np.zeros((28, 28)))
    drawn = interventional(data, 1, 0, True)
    np.testing.assert_array_equal(drawn.classes, data.classes)
    assert np.abs(mean_thickness(drawn.images[:, 0]) - drawn.labels[:, 0]).mean() < 0.35
    assert not np.array_equal(drawn.images, interventional(data, 1, 1, True).images)


def test_images_are_cached(tmp_path: Path) -> None:
    data = pendulum_images(5)
    first = cached_interventional(data, tmp_path, 2, 0, False)
    (cached,) = tmp_path.glob("interventional_*.npz")
    again = cached_interventional(data, tmp_path, 2, 0, False)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_allclose(first.labels, again.labels)
    cached_interventional(data, tmp_path, 2, 1, False)
    assert len(list(tmp_path.glob("interventional_*.npz"))) == 2, "one file per seed"
    cached.write_bytes(b"nothing")
    with pytest.raises(DataError, match="delete"):
        cached_interventional(data, tmp_path, 2, 0, False)
