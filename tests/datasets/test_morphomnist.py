"""MorphoMNIST: IDX files, a table of labels, and base digits for true counterfactuals."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causaldiffae.datasets.registry import (
    labels_are_known,
    measure,
    read_split,
    true_counterfactual,
    true_labels,
    truth_is_known,
)
from causaldiffae.errors import DataError, InputError
from causaldiffae.files import idx
from causaldiffae.generators import morphomnist


def test_a_split_is_read(morphomnist_dir: Path) -> None:
    data = read_split("morphomnist", morphomnist_dir, "train")
    assert data.images.shape == (8, 1, 28, 28) and data.base_images is not None
    assert data.classes is not None and data.classes.tolist() == list(range(8)) and data.classes.dtype == np.int64
    assert data.ids == [str(i) for i in range(8)] and data.labels.shape == (8, 2)
    large = read_split("morphomnist", morphomnist_dir, "test", image_size=56, limit=2)
    assert large.images.shape == (2, 1, 56, 56)
    test = read_split("morphomnist", morphomnist_dir, "test", limit=2)
    np.testing.assert_array_equal(measure(large.spec, large.images), measure(test.spec, test.images))


def test_true_counterfactuals_need_base_digits(morphomnist_dir: Path, tmp_path: Path) -> None:
    data = read_split("morphomnist", morphomnist_dir, "train")
    labels, images = true_counterfactual(data, {})
    np.testing.assert_array_equal(images, data.images)
    np.testing.assert_array_equal(labels, data.labels)
    labels, images = true_counterfactual(data.subset([0, 1]), {"thickness": 3.0})
    assert np.abs(measure(data.spec, images) - labels).max() < 1.0 and images.shape == (2, 1, 28, 28)
    shutil.copytree(morphomnist_dir, tmp_path / "published", ignore=shutil.ignore_patterns("*base*"))
    published = read_split("morphomnist", tmp_path / "published", "train")
    assert published.base_images is None
    with pytest.raises(InputError, match="true counterfactual: expected base digits"):
        true_counterfactual(published, {"thickness": 3.0})
    assert labels_are_known(published) and not truth_is_known(published)
    for do in ({"thickness": 3.0}, {"intensity": 100.0}, {"thickness": 2.0, "digit": 7}):
        np.testing.assert_array_equal(true_labels(published, do), true_labels(data, do))
    np.testing.assert_array_equal(true_labels(published.subset([0, 1]), {"thickness": 3.0}), labels)


def test_the_true_image_of_another_digit_is_unknown_but_not_its_labels(morphomnist_dir: Path) -> None:
    data = read_split("morphomnist", morphomnist_dir, "train").subset([0, 1])
    own, other = {"digit": data.classes, "thickness": 3.0}, {"digit": 7, "thickness": 3.0}
    assert truth_is_known(data, own) and not truth_is_known(data, other) and truth_is_known(data)
    labels, images = true_counterfactual(data, {"thickness": 3.0})
    np.testing.assert_array_equal(true_counterfactual(data, own)[1], images)
    np.testing.assert_array_equal(true_labels(data, other), labels)
    with pytest.raises(InputError, match="do: digit: expected the class of the image, as the true image of another"):
        true_counterfactual(data, other)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-morpho.csv", "index,thickness,intensity\n0,1,100\n", "train-morpho.csv: expected 8 rows .*, got 1"),
        ("train-morpho.csv", "index,thickness\n", "train-morpho.csv: .*intensity"),
        ("train-morpho.csv", None, "train-morpho.csv or train-morpho.csv.gz"),
        ("train-labels-idx1-ubyte.gz", np.zeros(5, np.uint8), r"labels-idx1-ubyte.gz: .*shape.* \(5,\)"),
        ("train-labels-idx1-ubyte.gz", np.full(8, 11, np.uint8), "labels-idx1-ubyte.gz: .*11"),
        ("train-images-idx3-ubyte.gz", np.zeros((8, 9, 9), np.uint8), r"images-idx3-ubyte.gz: .*shape.*\(8, 9, 9\)"),
        (
            "train-base-idx3-ubyte.gz",
            np.zeros((2, 28, 28), np.uint8),
            r"expected shape \(8, 28, 28\), got \(2, 28, 28\)",
        ),
    ],
)
def test_a_damaged_folder_is_refused(
    morphomnist_dir: Path, tmp_path: Path, name: str, content: Any, message: str
) -> None:
    shutil.copytree(morphomnist_dir, tmp_path / "set")
    path = tmp_path / "set" / name
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_text(content)
    else:
        idx.write_idx(path, content)
    with pytest.raises(DataError, match=message):
        read_split("morphomnist", tmp_path / "set", "train")


def test_an_empty_split_is_refused(morphomnist_dir: Path, tmp_path: Path) -> None:
    mnist = morphomnist_dir.parent / "mnist"
    morphomnist.write_dataset(mnist, tmp_path / "set", num_test=0, num_train=1, workers=1, progress=False)
    with pytest.raises(DataError, match="set: t10k-images-idx3-ubyte: expected at least one image, got none"):
        read_split("morphomnist", tmp_path / "set", "test")
