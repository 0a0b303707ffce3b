"""Decodes an image file to the pixels of a model input.

Accepts JPEG, PNG, WebP, TIFF, BMP and GIF files of at most `MAX_FILE_BYTES`; see also files/images.py. The first frame
is read, and the EXIF orientation is applied. Greyscale is repeated to RGB, and colours are converted to greyscale by
their luma (ITU-R 601). With four channels transparency is kept; otherwise the image is composited on white.

Grey images with more than 8 bits (16 and 32-bit integers, floats) are scaled by a range of values, see value_range.py.

Images of the target size are unchanged. Others are resized by one of three rules:

crop    as in guided-diffusion: halved by box filtering while the short side is at least twice the size, resized
        bicubically, and cropped to the centre square
area    cropped to the centre square and resized by area averaging, like the built-in data sets
pad     resized as in `crop`, but until the long side has the size, and padded with black to a square
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageOps

from causaldiffae.datasets.folder.value_range import ValueRange, is_deep, measured_range, scale_values
from causaldiffae.datasets.images import resize_area
from causaldiffae.errors import DataError
from causaldiffae.files.images import MAX_PIXELS, open_image

FORMATS: Final = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
CHANNELS: Final = " (grey, RGB or RGBA)"
MAX_FILE_BYTES: Final = 1 << 26
_ORIENTATION: Final = 0x0112
_STRIP: Final = 1 << 20  # pixels


@dataclass(frozen=True)
class ImageRule:
    """Conversion of files to images (channels, image_size, image_size) uint8.

    Attributes:
        resize: "crop", "area" or "pad".
        value_range: values of images with more than 8 bits that become black and white; None measures each image.
    """

    image_size: int
    channels: int
    resize: str
    value_range: ValueRange | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, S, S) of one image."""
        return self.channels, self.image_size, self.image_size

    def decode(self, content: bytes, where: str = "") -> np.ndarray:
        """Decodes the bytes of a file to (C, S, S) uint8; a `DataError` starts with `where`."""
        with open_image(content, FORMATS, where) as image:
            return self.convert(image, where)

    def convert(self, image: Image.Image, where: str = "") -> np.ndarray:
        """Converts a PIL image of any mode to (C, S, S) uint8; a `DataError` starts with `where`."""
        image.load()
        rotated = image.getexif().get(_ORIENTATION, 1) != 1
        image = ImageOps.exif_transpose(image) if rotated else image
        if is_deep(image.mode):
            image = self._with_8_bits(image, where)
        return self._resized(_with_channels(image, self.channels), where)

    def _with_8_bits(self, image: Image.Image, where: str) -> Image.Image:
        low_high = self.value_range or measured_range(image, where)
        return _by_strips(image, "L", lambda strip: Image.fromarray(scale_values(np.asarray(strip), low_high, where)))

    def _resized(self, image: Image.Image, where: str) -> np.ndarray:
        if self.resize == "crop":
            image = _resize_and_crop(image, self.image_size, where)
        elif self.resize == "pad":
            image = _resize_and_pad(image, self.image_size)
        else:
            image = image.crop(_centre(image.size, min(image.size)))
        pixels = np.asarray(image).reshape(image.height, image.width, self.channels).transpose(2, 0, 1)
        return resize_area(pixels[None], self.image_size)[0]


def _with_channels(image: Image.Image, channels: int) -> Image.Image:
    mode = MODES[channels]
    if image.mode == mode:
        return image
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if channels != 4:
            image = _by_strips(image, "RGB", _on_white)
    elif image.mode not in ("1", "L", "P", "RGB"):  # some modes, such as LAB, convert to RGB only
        image = image.convert("RGB")
    return image.convert(mode)


def _by_strips(image: Image.Image, mode: str, function: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Applies `function` to a few rows at a time, to limit the memory of intermediate copies."""
    width, height = image.size
    whole = Image.new(mode, image.size)
    rows = max(_STRIP // width, 1)
    for top in range(0, height, rows):
        whole.paste(function(image.crop((0, top, width, min(top + rows, height)))), (0, top))
    return whole


def _on_white(strip: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB")


def _resize_and_crop(image: Image.Image, size: int, where: str) -> Image.Image:
    if image.size == (size, size):
        return image
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    ratio = size / min(image.size)
    width, height = round(image.width * ratio), round(image.height * ratio)
    if width * height > MAX_PIXELS:
        lead = f"{where}: " if where else ""
        raise DataError(f"{lead}expected a less elongated image, got {width}x{height} pixels after resizing")
    return image.resize((width, height), Image.Resampling.BICUBIC).crop(_centre((width, height), size))


def _resize_and_pad(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    while max(image.size) >= 2 * size and min(image.size) > 1:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    ratio = size / max(image.size)
    width, height = max(round(image.width * ratio), 1), max(round(image.height * ratio), 1)
    padded = Image.new(image.mode, (size, size))  # black, and transparent with four channels
    padded.paste(image.resize((width, height), Image.Resampling.BICUBIC), ((size - width) // 2, (size - height) // 2))
    return padded


def _centre(size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """The box of the centre square."""
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side
