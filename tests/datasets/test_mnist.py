"""MNIST and Fashion-MNIST as class -> image."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from paths import REPO

from causaldiffae.datasets.mnist import FILES, copy_files
from causaldiffae.datasets.registry import can_measure, dataset_spec, measure, read_split, truth_is_known
from causaldiffae.errors import DataError, InputError

SHARE = REPO / "assets" / "mnist_share"


def test_a_split_is_read() -> None:
    data = read_split("mnist", SHARE, "test", limit=7)
    assert data.images.shape == (7, 1, 28, 28) and data.labels.shape == (7, 1) and data.classes is None
    raw = gzip.decompress((SHARE / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    assert data.labels[:, 0].tolist() == [float(byte) for byte in raw[:7]]
    pixels = np.frombuffer(gzip.decompress((SHARE / "t10k-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    np.testing.assert_array_equal(data.images.reshape(-1), pixels[: 7 * 784])
    assert not truth_is_known(data) and not can_measure(data.spec)
    assert np.isnan(measure(data.spec, data.images)).all()


def test_classes_are_named() -> None:
    digits, garments = dataset_spec("mnist"), dataset_spec("fashion_mnist")
    assert digits.check_do({"digit": "5"}) == {"digit": 5.0} == digits.check_do({"digit": 5})
    assert garments.check_do({"garment": "bag"}) == {"garment": 8.0} and garments.format_value("garment", 8.0) == "bag"
    assert garments.category_values(0) == digits.category_values(0) == tuple(range(10))


def test_files_are_copied_once(tmp_path: Path) -> None:
    out = copy_files("mnist", SHARE, tmp_path / "data")
    assert sorted(path.name for path in out.iterdir()) == sorted([*(f"{name}.gz" for name in FILES), "recipe.json"])
    stamp = (out / f"{FILES[0]}.gz").stat().st_mtime_ns
    assert copy_files("mnist", SHARE, out) == out and (out / f"{FILES[0]}.gz").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="another recipe"):
        copy_files("fashion_mnist", SHARE, out)
    shutil.copytree(SHARE, tmp_path / "torchvision" / "MNIST" / "raw")
    copy_files("mnist", tmp_path / "torchvision", tmp_path / "again")
    assert len(read_split("mnist", tmp_path / "again", "test")) == len(read_split("mnist", SHARE, "test"))


def test_damaged_files_are_not_copied(tmp_path: Path) -> None:
    shutil.copytree(SHARE, tmp_path / "bad")
    (tmp_path / "bad" / f"{FILES[1]}.gz").unlink()
    with pytest.raises(InputError, match="train-labels-idx1-ubyte"):
        copy_files("mnist", tmp_path / "bad", tmp_path / "out")
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 1


def test_the_folder_of_another_data_set_in_a_torchvision_root_is_not_read(tmp_path: Path) -> None:
    shutil.copytree(SHARE, tmp_path / "root" / "FashionMNIST" / "raw")
    with pytest.raises(DataError):
        copy_files("mnist", tmp_path / "root", tmp_path / "digits")
    shutil.copytree(SHARE, tmp_path / "root" / "MNIST" / "raw")
    for path in (tmp_path / "root" / "FashionMNIST" / "raw").iterdir():
        path.write_bytes(b"other")
    assert len(read_split("mnist", copy_files("mnist", tmp_path / "root", tmp_path / "digits"), "test"))
