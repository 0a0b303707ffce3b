"""Pendulum: labels in file names, images checked before they are decoded, true counterfactuals."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from causaldiffae.datasets.pendulum import exact_labels, parse_pendulum_name
from causaldiffae.datasets.registry import measure, read_split, true_counterfactual
from causaldiffae.errors import DataError, InputError
from causaldiffae.generators import pendulum


def test_a_split_is_read(pendulum_dir: Path) -> None:
    data = read_split("pendulum", pendulum_dir, "train")
    assert data.images.shape == (12, 4, 96, 96) and data.labels.dtype == np.float32 and data.classes is None
    assert data.ids[0] == "a_-30_70_3_4.png" and np.trunc(data.labels[0]).tolist() == [-30, 70, 3, 4]
    np.testing.assert_array_equal(data.images[0].transpose(1, 2, 0), pendulum.render(-30, 70))
    small = read_split("pendulum", pendulum_dir, "test", image_size=48, channels=3, limit=2)
    assert small.images.shape == (2, 3, 48, 48) and len(small) == 2
    assert read_split("pendulum", pendulum_dir, "train", limit=3).labels[:, 0].tolist() == [-30, 0, 25]
    error = np.abs(measure(small.spec, small.images) - small.labels)
    assert (error < (0.5, 0.5, 0.6, 0.6)).all()


def test_labels_are_exact_though_file_names_truncate_them(pendulum_dir: Path) -> None:
    data = read_split("pendulum", pendulum_dir, "train")
    np.testing.assert_allclose(data.labels, pendulum.true_labels(*data.labels[:, :2].T), rtol=1e-6)
    angle, light = pendulum.grid()
    exact = pendulum.true_labels(angle, light)
    in_name = np.array([parse_pendulum_name(pendulum.file_name(row)) for row in exact])
    np.testing.assert_array_equal(exact_labels(in_name), exact)
    np.testing.assert_allclose((exact - in_name).mean(axis=0), [0, 0, 0.29, 0.5], atol=0.01)


def test_labels_of_another_generator_are_the_centres_of_their_bins() -> None:
    names = np.array([[20, 80, 9, 15], [20, 80, 4, -2], [20, 250, 7, 1]])
    np.testing.assert_array_equal(exact_labels(names)[:, :2], names[:, :2])
    np.testing.assert_array_equal(exact_labels(names)[:, 2:], [[9.5, 15.5], [4.5, -2.5], [7.5, 1.5]])


@given(*[st.integers(-999999, 999999)] * 4)
def test_names_round_trip(angle: int, light: int, length: int, position: int) -> None:
    name = pendulum.file_name(np.array([angle, light, length, position]))
    assert parse_pendulum_name(name) == (angle, light, length, position)


@given(st.text(max_size=30) | st.from_regex(r"a_-?\d+_\d+(_\d+){1,3}\.(png|PNG)\n?", fullmatch=True))
def test_any_name_is_read_or_refused(name: str) -> None:
    try:
        labels = parse_pendulum_name(name)
    except DataError as error:
        assert "expected a file name a_ANGLE_LIGHT_LENGTH_POSITION.png" in str(error)
    else:
        assert name.startswith("a_") and len(labels) == 4 and all(abs(label) < 10**6 for label in labels)


def test_true_counterfactuals(pendulum_dir: Path) -> None:
    data = read_split("pendulum", pendulum_dir, "train", image_size=48, channels=3)
    labels, images = true_counterfactual(data, {})
    np.testing.assert_array_equal(images, data.images)
    np.testing.assert_array_equal(labels, data.labels)
    labels, images = true_counterfactual(data, {"light": 95})
    assert labels.dtype == np.float32 and images.shape == data.images.shape and images.dtype == np.uint8
    assert np.abs(measure(data.spec, images) - labels).mean() < 0.2
    with pytest.raises(InputError, match="do: expected one of .*, got 'sun'"):
        true_counterfactual(data, {"sun": 1})


def save(size: tuple[int, int], mode: str, form: str = "PNG") -> Callable[[Path], None]:
    return lambda folder: Image.new(mode, size).save(folder / "a_1_70_3_9.png", format=form)


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = next(folder.glob("*.png"))
        path.write_bytes(change(path.read_bytes()))

    return damage


def remove_images(folder: Path) -> None:
    for path in folder.glob("*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "a_1_2_3.png").touch(), "train/a_1_2_3.png: expected a file name a_ANGLE_LIGHT_"),
        (save((64, 96), "RGBA"), "a_1_70_3_9.png: expected 96x96 RGBA, got 64x96 RGBA"),
        (save((96, 96), "L"), "a_1_70_3_9.png: expected 96x96 RGBA, got 96x96 L"),
        (save((96, 96), "RGB", "JPEG"), "a_1_70_3_9.png: .*PNG image"),
        (save((20000, 20000), "1"), "a_1_70_3_9.png: .*pixels"),
        (rewrite(lambda content: content[:300]), "png: .*PNG image"),
        (rewrite(lambda content: content + bytes(2 << 20)), "png: .*1048576"),
        (remove_images, "train: expected PNG images, got none"),
        (shutil.rmtree, "train: expected a folder, got none"),
    ],
)
def test_a_damaged_folder_is_refused(
    pendulum_dir: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(pendulum_dir, tmp_path / "set")
    damage(tmp_path / "set/train")
    with pytest.raises(DataError, match=message):
        read_split("pendulum", tmp_path / "set", "train")
