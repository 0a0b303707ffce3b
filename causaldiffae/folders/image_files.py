"""One image file of any size to the pixels that a model sees.

JPEG, PNG and WebP only. The header is read before anything is decoded: an image that would unpack to more than
`MAX_PIXELS`, or a file of more than `MAX_FILE_BYTES`, is refused. An orientation that a camera wrote into the file is
applied. Colours: grey is taken as it is or repeated, colour becomes grey by its luma (ITU-R 601), a palette becomes
its colours. Transparency stays where four channels are wanted and lies on white otherwise; opaque pixels do not change.

An image that has the wanted size already is not touched. Others are resized by one of two rules:

crop    as guided-diffusion does: halved by averaging while the short side is at least twice the wanted one, resized
        bicubically until the short side fits, and cropped to its centre
area    cropped to the centre square, then every new pixel is the average of the area it covers, as in the built-in
        data sets
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageOps

from causaldiffae.errors import DataError
from causaldiffae.image_datasets import resize_area

FORMATS: Final = ("JPEG", "PNG", "WEBP")
MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
MAX_FILE_BYTES: Final = 1 << 26
MAX_PIXELS: Final = 1 << 26
_ORIENTATION: Final = 0x0112


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
        picture = _with_channels(_open(content), self.channels)
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


def _open(content: bytes) -> Image.Image:
    """The decoded picture, upright."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise DataError(f"it is {width}x{height}, more than {MAX_PIXELS} pixels are refused")
            picture.load()
            if picture.getexif().get(_ORIENTATION, 1) != 1:
                return ImageOps.exif_transpose(picture)
            return picture
    except Image.DecompressionBombError:
        raise DataError(f"it unpacks to far too many pixels, {MAX_PIXELS} are allowed") from None
    except DataError:
        raise
    except MemoryError:
        raise DataError("it does not fit into the memory") from None
    except Exception:  # a damaged file makes Pillow's readers raise nearly anything
        raise DataError("it cannot be read as a JPEG, PNG or WebP image") from None


def _with_channels(picture: Image.Image, channels: int) -> Image.Image:
    wanted = MODES[channels]
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        picture = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if picture.mode == wanted:
        return picture
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if channels != 4:
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert(wanted)


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
