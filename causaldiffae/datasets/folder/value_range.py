"""Ranges of values of images with more than 8 bits per pixel.

Scans and microscopes store 10 to 14 bits in 16-bit files, and tools store fractions as floats. The values that become
black and white follow from the whole data set, so that images stay comparable:

integers    0 .. 2^b - 1 with the smallest b >= 8 that holds the largest value, or the measured range if some values
            are negative or above 65535
floats      0 .. 1, -1 .. 1 or 0 .. 255 if they hold all values, in this order, or the measured range
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from PIL import Image

from causaldiffae.errors import DataError

ValueRange = tuple[float, float]
FULL_RANGE: Final = (0.0, 65535.0)
_FLOAT_RANGES: Final = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
_MAXIMUM: Final = 281  # TIFF tag MaxSampleValue


def is_deep(mode: str) -> bool:
    """Whether images of a Pillow mode have more than 8 bits: 16 and 32-bit integers, and floats."""
    return mode.startswith("I") or mode == "F"


def limits(image: Image.Image, where: str = "") -> ValueRange:
    """Smallest and largest value of a deep image; the largest may be declared by the file (TIFF).

    Raises:
        DataError: starting with `where`, for NaN or infinity.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    _check_finite(np.array([low, high]), where)
    declared = getattr(image, "tag_v2", {}).get(_MAXIMUM)
    declared = declared[0] if isinstance(declared, tuple) and declared else declared
    return low, max(high, float(declared)) if isinstance(declared, int | float) and image.mode != "F" else high


def _check_finite(values: np.ndarray, where: str) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{where + ': ' if where else ''}expected finite pixel values, got NaN or infinity")


def covering_range(measured: Iterable[ValueRange], is_float: bool) -> ValueRange:
    """The range for images with these limits; see the module docstring."""
    low, high = np.array(list(measured)).T
    smallest, largest = float(low.min()), float(high.max())
    standard: Iterable[ValueRange] = _FLOAT_RANGES if is_float else ((0.0, 2.0**bits - 1) for bits in range(8, 17))
    for black, white in standard:
        if black <= smallest and largest <= white:
            return black, white
    return smallest, max(largest, smallest + 1.0)


def measured_range(image: Image.Image, where: str = "") -> ValueRange:
    """The range of a single image."""
    return covering_range([limits(image, where)], image.mode == "F")


def scale_values(values: np.ndarray, value_range: ValueRange, where: str = "") -> np.ndarray:
    """Maps values to uint8; values outside the range become black or white.

    Raises:
        DataError: starting with `where`, for NaN or infinity.
    """
    low, high = value_range
    bits = int(high).bit_length()
    if low == 0 and high == 2**bits - 1 and bits >= 8 and values.dtype.kind in "iu":  # as Pillow reads 16-bit colours
        return (np.clip(values.astype(np.int64), 0, int(high)) >> (bits - 8)).astype(np.uint8)
    wide = values.astype(np.float64)
    _check_finite(wide, where)
    return np.rint(255 * np.clip((wide - low) / (high - low), 0, 1)).astype(np.uint8)
