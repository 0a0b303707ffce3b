"""Images in every common form are converted to the same tensor."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import squares, squares_spec

from causaldiffae.datasets.image_input import as_model_images
from causaldiffae.datasets.images import to_model_range, to_uint8
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.errors import DataError, InputError

SPEC = squares_spec()


def test_every_form_gives_the_same_tensor(tmp_path: Path) -> None:
    arrays = squares(2).images
    expected = to_model_range(arrays)
    images = [Image.fromarray(image[0]) for image in arrays]
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    for given in (
        arrays,
        torch.from_numpy(arrays),
        expected,
        expected.numpy(),
        list(arrays),
        images,
        paths,
        [str(p) for p in paths],
    ):
        torch.testing.assert_close(as_model_images(given, SPEC), expected, rtol=0, atol=0)
    for single in (arrays[0], expected[0], images[0], str(paths[0])):
        torch.testing.assert_close(as_model_images(single, SPEC), expected[:1], rtol=0, atol=0)


def test_a_split_gives_its_images() -> None:
    data = squares(3)
    torch.testing.assert_close(as_model_images(data, SPEC), to_model_range(data.images), rtol=0, atol=0)


def test_a_list_of_files_and_arrays_is_refused() -> None:
    array = squares(1).images[0]
    with pytest.raises(
        InputError, match=r"^images: expected a list of one kind, arrays or files and PIL images, got str, ndarray$"
    ):
        as_model_images(["a.png", array, array], SPEC)


def test_other_sizes_are_averaged_and_colours_become_grey() -> None:
    large = squares(1).images.repeat(3, axis=2).repeat(3, axis=3)
    torch.testing.assert_close(as_model_images(large, SPEC), to_model_range(squares(1).images))
    red = Image.new("RGB", (50, 40), (255, 0, 0))
    assert as_model_images(red, SPEC).shape == (1, 1, 8, 8)
    assert as_model_images(red.convert("CMYK"), replace(SPEC, channels=3)).shape == (1, 3, 8, 8)
    np.testing.assert_allclose(as_model_images(red, SPEC).numpy(), 76 / 127.5 - 1, atol=0.01)  # the luma of red


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.double])
def test_floats_without_negative_values_are_reported(convert: Callable[[torch.Tensor], Any]) -> None:
    bright = torch.rand(2, 1, 8, 8)  # as from ToTensor
    with pytest.warns(UserWarning, match=r"expected floats in \[-1, 1\], got no value below 0 .* use images \* 2 - 1"):
        torch.testing.assert_close(as_model_images(convert(bright), SPEC), bright)


def test_a_pil_image_is_read_like_its_file(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 12), "black")
    image.paste("white", (0, 0, 16, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "photo.jpg", exif=exif)
    given = as_model_images(Image.open(tmp_path / "photo.jpg"), SPEC)
    torch.testing.assert_close(given, as_model_images(tmp_path / "photo.jpg", SPEC), rtol=0, atol=0)
    assert given[0, 0, :, 7].mean() > given[0, 0, :, 0].mean() + 0.5, "the light side is on the right"


def test_files_and_pil_images_of_digits_are_inverted_if_dark_on_light(tmp_path: Path) -> None:
    spec = dataset_spec("morphomnist")
    pixels = np.full((28, 28), 240, np.uint8)
    pixels[4:24, 12:16] = 10
    dark, light = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    dark.save(tmp_path / "dark.png")
    expected = to_model_range(255 - pixels[None, None])
    for given in (dark, tmp_path / "dark.png"):
        with pytest.warns(
            UserWarning, match="images: the image is dark on light and inverted, as those of data set mor"
        ):
            torch.testing.assert_close(as_model_images(given, spec), expected, rtol=0, atol=0)
    with pytest.warns(UserWarning, match="images: 1 of 2 images are dark on light"):
        torch.testing.assert_close(as_model_images([light, dark], spec), expected.expand(2, -1, -1, -1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(as_model_images(light, spec), expected, rtol=0, atol=0)
        unchanged = as_model_images(pixels[None], spec)  # an array has the model's pixels
        torch.testing.assert_close(unchanged, to_model_range(pixels[None, None]), rtol=0, atol=0)
        scene = as_model_images(dark, dataset_spec("pendulum", 28, 3))
        assert scene[0, :, 0, 0].min() > 0.8, "only data sets of light objects on a dark background"


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "RGBa", "La"]
)
def test_every_mode_is_read(mode: str) -> None:
    for channels in (1, 3, 4):
        converted = as_model_images(Image.new(mode, (9, 7)), replace(SPEC, channels=channels))
        assert converted.shape == (1, channels, 8, 8) and torch.isfinite(converted).all()


@pytest.mark.parametrize(
    ("pixels", "value_range", "expected"),
    [
        (np.array([0, 1000, 4095], np.uint16), (), [0, 62, 255]),
        (np.array([0, 100, 200], np.uint16), (), [0, 100, 200]),
        (np.array([0, 32768, 65535], np.uint16), (), [0, 128, 255]),
        (np.array([0, 1000, 4095], np.uint16), (0, 65535), [0, 3, 15]),
        (np.array([-1000, 0, 1000], np.int32), (), [0, 128, 255]),
        (np.array([0, 0.5, 1], np.float32), (), [0, 128, 255]),
        (np.array([-1, 0, 1], np.float32), (), [0, 128, 255]),
        (np.array([0, 20, 40], np.float32), (0, 20), [0, 255, 255]),
    ],
)
def test_deep_images_are_scaled_by_their_range(pixels: np.ndarray, value_range: Any, expected: list[int]) -> None:
    image = Image.fromarray(np.repeat(pixels, 3)[None].repeat(9, 0))
    spec = replace(SPEC, image_size=9, value_range=value_range)
    assert to_uint8(as_model_images(image, spec))[0, 0, 4, 1::3].tolist() == expected


def test_a_damaged_pil_image_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    with pytest.raises(DataError, match="image: expected a complete PIL image, got one that cannot be decoded"):
        as_model_images(Image.open(tmp_path / "a.png"), SPEC)
    with pytest.raises(DataError, match=r"image: expected at most .*, got 1x70000"):
        as_model_images(Image.new("1", (1, 70_000)), SPEC)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 1, 8, 8), np.uint16), r"expected a uint8 array or floats in \[-1, 1\], got an array of uint16"),
        (np.full((2, 1, 8, 8), 2.0), r"expected floats in \[-1, 1\] .*, got floats in 2..2; for values in 0..255, use"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"expected an array \(N, 1, S, S\), got shape \(2, 3, 8, 8\)"),
        (np.array(7, np.uint8), r"expected an array \(N, 1, S, S\), got shape \(\)$"),
        (np.zeros((2, 8, 8, 1), np.uint8), r"got shape \(2, 8, 8, 1\); channels come before rows"),
        (np.zeros((2, 1, 8, 9), np.uint8), r"got shape \(2, 1, 8, 9\)"),
        (np.zeros((0, 1, 8, 8), np.uint8), r"got shape \(0, 1, 8, 8\)"),
        (torch.zeros(2, 1, 9, 9), r"expected a tensor \(N, 1, 8, 8\), got shape \(2, 1, 9, 9\)"),
        (torch.full((1, 1, 8, 8), 3.0), r"expected floats in \[-1, 1\] or uint8 in 0..255, got floats in 3\.\.3; .*"),
        (torch.full((1, 1, 8, 8), float("nan")), r"got floats in nan\.\.nan"),
        ([], "expected at least one image, got an empty list"),
        ([7], "expected an array, a tensor, a PIL image or a path, got int"),
        (7, "got int"),
    ],
)
def test_anything_else_is_refused(given: object, message: str) -> None:
    with pytest.raises(InputError, match=f"^images: .*{message}"):
        as_model_images(given, SPEC)  # type: ignore[arg-type]


def test_files_that_are_not_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png: .*JPEG, PNG, WebP, TIFF, BMP or GIF image"):
        as_model_images(tmp_path / "text.png", SPEC)
    with pytest.raises(DataError, match=r"none\.png: "):
        as_model_images(str(tmp_path / "none.png"), SPEC)


def test_an_array_with_channels_last_is_refused_with_advice() -> None:
    for shape, axes in (((8, 8, 3), "2, 0, 1"), ((2, 8, 8, 3), "0, 3, 1, 2")):
        with pytest.raises(InputError, match=rf"channels come before rows: images.transpose\({axes}\)$"):
            as_model_images(np.zeros(shape, np.uint8), replace(SPEC, channels=3))
