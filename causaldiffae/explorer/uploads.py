"""An uploaded file into a picture of the kind that a model knows, or one sentence why not.

Files go the way of a folder of images (`folders/image_files.py`): upright, the centre square, grey or colour as the
data set has it, every new pixel the average of the area it covers. Size and form are read in the header, before
anything is decoded. Digits in MNIST are light on dark: dark ones on light paper are inverted, and the page says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from causaldiffae.datasets.folder.image_files import FORMATS
from causaldiffae.datasets.image_input import decode_image
from causaldiffae.datasets.registry import find_dataset
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError
from causaldiffae.explorer.session import Picture
from causaldiffae.files.images import open_image, without_size_warnings
from causaldiffae.files.reading import read_file

MAX_BYTES: Final = 32 << 20
MAX_PIXELS: Final = 32_000_000
_LONGEST_NAME: Final = 60


def read_upload(path: str | Path, spec: DatasetSpec) -> Picture:
    """The picture in an uploaded file.

    Raises:
        DataError: naming the file, for one that is too large, unpacks to too many pixels, or is no picture.
    """
    file = Path(path)
    name = file.name[-_LONGEST_NAME:]
    try:
        size = file.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DataError(f"{name}: it cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    if size > MAX_BYTES:
        raise DataError(f"{name}: it is larger than {MAX_BYTES >> 20} MB; shrink it first")
    content = read_file(file, MAX_BYTES)
    width, height = _size(content, name)
    try:
        image = decode_image(content, spec)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    note = f"{width}x{height} pixels became {spec.image_size}x{spec.image_size}"
    note += ", grey" if spec.channels == 1 else ", in colour"
    if find_dataset(spec.name).light_on_dark and _is_light(image):
        image, note = 255 - image, note + ", inverted to light on dark"
    return Picture(image, name, note=note + ".")


def _size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height as the header says."""
    with without_size_warnings(), open_image(content, FORMATS, name) as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            megapixels = f"{width * height / 1e6:.0f} megapixels"
            raise DataError(f"{name}: it has {width}x{height} pixels ({megapixels}), at most {MAX_PIXELS // 10**6} "
                            "megapixels are read; shrink it first")  # fmt: skip
    return width, height


def _is_light(image: np.ndarray) -> bool:
    """Whether the rim of a picture (C, S, S) is light."""
    rim = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], axis=1)
    return bool(np.median(rim) > 127)
