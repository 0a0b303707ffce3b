"""Uploaded files: conversion to the data set's images, and what is refused."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from paths import REPO
from PIL import Image

from causaldiffae.checkpoints.model_folders import PREDICTOR_FOLDER
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.errors import DataError
from causaldiffae.explorer import uploads
from causaldiffae.explorer.session import Request, Session
from causaldiffae.explorer.uploads import read_upload
from causaldiffae.predictors.predictor import open_predictor
from causaldiffae.pretrained import CounterfactualModel
from causaldiffae.script_util import STEPS, load_model

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


@pytest.mark.parametrize("name", ["morphomnist_causaldae_mini", "pendulum_causaldae_mini"])
def test_a_file_gives_the_same_result_in_python(name: str, tmp_path: Path) -> None:
    """Labels, class and counterfactual; dark strokes on light paper, which are inverted for digits."""
    pixels = np.full((90, 120, 3), 240, np.uint8)
    pixels[15:75, 40:50] = pixels[15:25, 40:80] = (30, 20, 40)
    path = save(tmp_path / "photo.png", Image.fromarray(pixels))
    model = CounterfactualModel.from_pretrained(REPO / "weights" / name, steps=STEPS)
    do = {model.graph.roots[0]: model.spec.low[0] + 0.3 * (model.spec.high[0] - model.spec.low[0])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the inversion
        cf = model.counterfactual(path, do=do)
        from_pil = model.counterfactual(Image.open(path), do=do)
        read = model.read(path)
    session = Session(model.loaded)
    upload = read_upload(path, session.spec)
    result = session.run(Request(upload, do))
    assert cf.factual is not None and cf.factual_labels is not None
    np.testing.assert_array_equal(cf.factual[0], upload.image)
    np.testing.assert_array_equal(cf.images[0], result.counterfactual)
    np.testing.assert_array_equal(from_pil.images, cf.images)
    for i, variable in enumerate(model.graph.names):
        assert cf.labels[variable][0] == result.predicted[i]
        assert cf.factual_labels[variable][0] == result.encoded[i]
    assert result.digit == (None if read.classes is None or not model.network.class_cond else read.classes[0])


def test_the_predictor_of_a_model_folder_reads_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Python: that of the folder, not the one shipped for the data set."""
    folder = tmp_path / "model"
    shutil.copytree(REPO / "weights" / "morphomnist_causaldae_mini", folder)
    shutil.copytree(REPO / "weights" / "morphomnist_28_predictor", folder / PREDICTOR_FOLDER)
    opened: list[str] = []

    def spy(spec: object, path: str = "", device: object = "cpu") -> object:
        opened.append(path)
        return open_predictor(DIGITS, path)

    monkeypatch.setattr("causaldiffae.explorer.session.open_predictor", spy)
    image = read_upload(save(tmp_path / "dark.png", Image.new("L", (28, 28), 3)), DIGITS)
    Session(load_model(str(folder))).run(Request(image, steps=4))
    assert opened == [str(folder / PREDICTOR_FOLDER)]


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
    monkeypatch.setattr(uploads, "prepare_file", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match="^huge.png: .*10000x5000"):
        read_upload(path, DIGITS)
