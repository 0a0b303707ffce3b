"""One image file of any size to the pixels that a model sees.

JPEG, PNG and WebP only, of at most `MAX_FILE_BYTES`; safe_images.py says what is refused besides. An orientation that a
camera wrote into the file is applied. Colours: grey is taken as it is or repeated, colour becomes grey by its luma
(ITU-R 601), a palette becomes its colours. Transparency stays where four channels are wanted and lies on white
otherwise; opaque pixels do not change.

An image that has the wanted size already is not touched. Others are resized by one of two rules:

crop    as guided-diffusion does: halved by averaging while the short side is at least twice the wanted one, resized
        bicubically until the short side fits, and cropped to its centre
area    cropped to the centre square, then every new pixel is the average of the area it covers, as in the built-in
        data sets
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageOps

from causaldiffae.datasets.images import resize_area
from causaldiffae.errors import DataError
from causaldiffae.files.images import MAX_PIXELS, open_image

FORMATS: Final = ("JPEG", "PNG", "WEBP")
MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
MAX_FILE_BYTES: Final = 1 << 26
_ORIENTATION: Final = 0x0112
_STRIP: Final = 1 << 20  # pixels


@dataclass(frozen=True)
class ImageRule:
    """How files become images: (channels, image_size, image_size) uint8 by the rule `resize`, "crop" or "area"."""

    image_size: int
    channels: int
    resize: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (C, S, S)."""
        return self.channels, self.image_size, self.image_size

    def decode(self, content: bytes) -> np.ndarray:
        """A file's bytes to (C, S, S) uint8; a `DataError` that starts with "it" says what is wrong with them."""
        with open_image(content, FORMATS) as picture:
            picture.load()
            turned = picture.getexif().get(_ORIENTATION, 1) != 1
            return self._resized(_with_channels(ImageOps.exif_transpose(picture) if turned else picture, self.channels))

    def _resized(self, picture: Image.Image) -> np.ndarray:
        size = self.image_size
        if self.resize == "crop":
            pixels = np.asarray(_resize_and_crop(picture, size))
        else:
            side = min(picture.size)
            pixels = np.asarray(picture.crop(_centre(picture.size, side)))
            if side != size:
                channels_first = pixels.reshape(1, side, side, self.channels).transpose(0, 3, 1, 2)
                return resize_area(channels_first, size)[0]
        return pixels.reshape(size, size, self.channels).transpose(2, 0, 1)


def _with_channels(picture: Image.Image, channels: int) -> Image.Image:
    wanted = MODES[channels]
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        picture = _by_strips(picture, "L", _high_bytes)
    if picture.mode == wanted:
        return picture
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if channels != 4:
            picture = _by_strips(picture, "RGB", _on_white)
    return picture.convert(wanted)


def _by_strips(picture: Image.Image, mode: str, function: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`function` on a few rows at a time, so that only they are in memory several times over."""
    width, height = picture.size
    whole = Image.new(mode, picture.size)
    rows = max(_STRIP // width, 1)
    for top in range(0, height, rows):
        whole.paste(function(picture.crop((0, top, width, min(top + rows, height)))), (0, top))
    return whole


def _high_bytes(strip: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(strip).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def _on_white(strip: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB")


def _resize_and_crop(picture: Image.Image, size: int) -> Image.Image:
    if picture.size == (size, size):
        return picture
    while min(picture.size) >= 2 * size:
        width, height = picture.size
        picture = picture.resize((width // 2, height // 2), Image.Resampling.BOX)
    width, height = picture.size
    ratio = size / min(width, height)
    width, height = round(width * ratio), round(height * ratio)
    if width * height > MAX_PIXELS:
        raise DataError(f"it is too narrow: with a short side of {size} pixels it would be {width}x{height}")
    return picture.resize((width, height), Image.Resampling.BICUBIC).crop(_centre((width, height), size))


def _centre(size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """The box of the square in the middle."""
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side
