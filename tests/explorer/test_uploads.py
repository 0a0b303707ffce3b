"""Uploaded files: conversion to the data set's images, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.errors import DataError
from causaldiffae.explorer import uploads
from causaldiffae.explorer.uploads import read_upload

DIGITS = dataset_spec("morphomnist")


def save(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


def test_uploads_become_images_of_the_data_set(tmp_path: Path) -> None:
    photo = save(tmp_path / "photo.jpg", Image.new("RGB", (300, 200), (250, 250, 250)))
    digit = read_upload(photo, DIGITS)
    assert digit.image.shape == (1, 28, 28) and digit.image.max() < 10
    assert digit.note == "300x200 pixels became 28x28, grey, inverted to light on dark."
    scene = read_upload(photo, dataset_spec("pendulum", 32, 3))
    assert scene.image.shape == (3, 32, 32) and scene.image.min() > 245 and scene.note.endswith("in colour.")
    dark = read_upload(save(tmp_path / "dark.png", Image.new("L", (28, 28), 3)), DIGITS)
    assert (dark.image == 3).all() and "inverted" not in dark.note
    assert dark.labels is None and dark.source is None and dark.digit is None


def test_files_that_are_no_images_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 90), np.uint8)
    whole = save(tmp_path / "whole.png", Image.fromarray(noise)).read_bytes()
    monkeypatch.setattr(uploads, "MAX_BYTES", 1 << 20)
    for name, content in (
        ("text.png", b"this is no image"),
        ("empty.png", b""),
        ("half.png", whole[:3000]),
        ("long.png", bytes((1 << 20) + 1)),
        ("gone.png", None),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"^{name}: ") as refused:
            read_upload(tmp_path / name, DIGITS)
        assert str(tmp_path) not in str(refused.value)
    with pytest.raises(DataError, match=r"^a\?\.png: "):
        read_upload(f"{tmp_path}/a\0.png", DIGITS)


def test_fifty_megapixels_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "huge.png", Image.new("1", (10_000, 5_000)))
    monkeypatch.setattr(uploads, "decode_image", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match="^huge.png: .*10000x5000"):
        read_upload(path, DIGITS)
