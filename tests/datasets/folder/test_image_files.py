"""Image files of every kind become pixels of one size and number of channels."""

import io
from typing import Any

import numpy as np
import pytest
from folders import paint
from PIL import Image

from causaldiffae.datasets.folder.image_files import MAX_PIXELS, ImageRule
from causaldiffae.errors import DataError

ACCEPTED = "expected a JPEG, PNG, WebP, TIFF, BMP or GIF image"


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **options)
    return file.getvalue()


def centre_crop_as_published(image: Image.Image, size: int) -> np.ndarray:
    """What guided-diffusion does, step by step, on an RGB image whose short side is between 2 and 4 times `size`."""
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    ratio = size / min(half.size)
    small = np.array(half.resize((round(half.width * ratio), round(half.height * ratio)), Image.Resampling.BICUBIC))
    top, left = (small.shape[0] - size) // 2, (small.shape[1] - size) // 2
    return small[top : top + size, left : left + size].transpose(2, 0, 1)


def test_any_size_is_resized_and_cropped_as_in_guided_diffusion() -> None:
    for width, height in ((50, 37), (37, 61), (32, 40)):
        image = paint(0, width, height)
        decoded = ImageRule(16, 3, "crop").decode(encoded(image))
        np.testing.assert_array_equal(decoded, centre_crop_as_published(image, 16))
    enlarged = ImageRule(16, 3, "crop").decode(encoded(paint(0, 5, 9)))
    assert enlarged.shape == (3, 16, 16)


def test_an_image_of_the_right_size_is_not_changed() -> None:
    for rule in ("crop", "area", "pad"):
        for channels, mode in ((1, "L"), (3, "RGB"), (4, "RGBA")):
            image = paint(1, mode=mode)
            decoded = ImageRule(8, channels, rule).decode(encoded(image))
            np.testing.assert_array_equal(decoded, np.asarray(image).reshape(8, 8, channels).transpose(2, 0, 1))


def test_pad_keeps_the_whole_image() -> None:
    image = Image.new("L", (40, 20), 200)
    padded = ImageRule(8, 1, "pad").decode(encoded(image))[0]
    assert (padded[2:6] == 200).all() and not padded[:2].any() and not padded[6:].any()
    assert ImageRule(8, 4, "pad").decode(encoded(image))[3, 0, 0] == 0, "the border is transparent"
    tall = ImageRule(8, 1, "pad").decode(encoded(image.rotate(90, expand=True)))[0]
    np.testing.assert_array_equal(tall, padded.T)
    assert ImageRule(8, 3, "pad").decode(encoded(Image.new("RGB", (1, 900)))).shape == (3, 8, 8)


def test_area_averages_the_centre_square() -> None:
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 2:4], pixels[:, 4:6] = 100, 50
    assert ImageRule(8, 1, "area").decode(encoded(Image.fromarray(pixels).resize((16, 8), 0))).shape == (1, 8, 8)
    small = ImageRule(2, 1, "area").decode(encoded(Image.fromarray(pixels)))
    assert small.tolist() == [[[100, 50], [100, 50]]]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_all_formats_are_decoded(form: str) -> None:
    image = Image.new("RGB", (12, 12), (200, 30, 60))
    for channels in (1, 3, 4):
        decoded = ImageRule(8, channels, "crop").decode(encoded(image, form)).astype(int)
        expected = {1: [84], 3: [200, 30, 60], 4: [200, 30, 60, 255]}[channels]
        assert np.abs(decoded - np.array(expected)[:, None, None]).max() <= 4


def test_channels_are_converted() -> None:
    def pixel(image: Image.Image, channels: int, form: str = "PNG") -> list[int]:
        return ImageRule(8, channels, "crop").decode(encoded(image, form))[:, 4, 4].tolist()

    glass = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    assert pixel(glass, 3) == [255, 255, 255] and pixel(glass, 1) == [255]  # transparent: white
    assert pixel(glass, 4)[3] == 0
    assert pixel(Image.new("RGBA", (8, 8), (10, 20, 30, 255)), 3) == [10, 20, 30]
    assert pixel(Image.new("LA", (8, 8), (10, 0)), 3) == [255, 255, 255]
    assert pixel(Image.new("LA", (8, 8), (10, 255)), 1) == [10]
    assert pixel(Image.new("L", (8, 8), 77), 3) == [77, 77, 77] and pixel(Image.new("L", (8, 8), 77), 4)[3] == 255
    assert pixel(Image.new("1", (8, 8), 1), 1) == [255]
    palette = Image.new("RGB", (8, 8), (10, 200, 30)).quantize(4)
    assert palette.mode == "P" and pixel(palette, 3) == [10, 200, 30]
    deep = Image.fromarray(np.full((8, 8), 0x8040, np.uint16))
    assert deep.mode.startswith("I") and pixel(deep, 1) == [0x80]
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(np.array(pixel(ink, 3, "JPEG")) - (255, 0, 0)).max() < 10


@pytest.mark.parametrize("strip", [1, 20, 1 << 20])
def test_large_images_are_converted_in_strips(monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    monkeypatch.setattr("causaldiffae.datasets.folder.image_files._STRIP", strip)
    image = paint(0, mode="RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", (8, 8), "white"), image).convert("RGB")
    found = ImageRule(8, 3, "crop").decode(encoded(image))
    np.testing.assert_array_equal(found.transpose(1, 2, 0), np.asarray(on_white))
    np.testing.assert_array_equal(ImageRule(8, 1, "area").decode(encoded(image))[0], np.asarray(on_white.convert("L")))
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
    np.testing.assert_array_equal(ImageRule(8, 1, "crop").decode(encoded(Image.fromarray(deep)))[0], deep >> 8)


def test_not_a_number_is_refused() -> None:
    pixels = np.zeros((8, 8), np.float32)
    pixels[3, 4] = np.nan
    for value_range in (None, (0.0, 1.0)):
        with pytest.raises(DataError, match="^a.tif: expected finite pixel values, got NaN or infinity"):
            ImageRule(8, 1, "crop", value_range).decode(encoded(Image.fromarray(pixels), "TIFF"), "a.tif")


def test_the_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    decoded = ImageRule(16, 1, "crop").decode(encoded(image, "JPEG", exif=exif))
    assert decoded[0, 2].mean() < 20 and decoded[0, 13].mean() > 235


def bomb(width: int, height: int) -> bytes:
    """A small file that decodes to a large black image."""
    return encoded(Image.new("1", (width, height)), compress_level=9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bomb(20_000, 20_000), f"expected at most {MAX_PIXELS} pixels, got many more"),
        (bomb(9000, 8000), f"expected at most {MAX_PIXELS} pixels, got 9000x8000"),
        (bomb(1, 600_000), "expected sides of at most 65536 pixels, got 1x600000"),
        (encoded(paint(0, 40, 40))[:900], f"{ACCEPTED}, got a truncated PNG file of 900 bytes"),
        (encoded(paint(0, 40, 40), "JPEG")[:300], f"{ACCEPTED}, got a truncated JPEG file of 300 bytes"),
        (encoded(paint(0, 40, 40), "PPM"), f"{ACCEPTED}, got another format or a damaged file"),
        (b"", f"{ACCEPTED}, got an empty file"),
    ],
    ids=["bomb", "large", "narrow", "cut png", "cut jpeg", "ppm", "empty"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_harmful_or_damaged_image_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        ImageRule(64, 3, "crop").decode(content)
