"""Converts an uploaded file to an image of the model's data set.

Files are decoded as in a folder of images (`datasets/folder/image_files.py`). Size and format are checked in the header
before anything is decoded. Dark digits on light paper are inverted, as MNIST has light digits on dark ground.
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
from causaldiffae.explorer.session import SourceImage
from causaldiffae.files.images import open_image
from causaldiffae.files.reading import read_file

MAX_BYTES: Final = 32 << 20
MAX_PIXELS: Final = 32_000_000
_LONGEST_NAME: Final = 60


def read_upload(path: str | Path, spec: DatasetSpec) -> SourceImage:
    """Reads an uploaded file.

    Raises:
        DataError: with the file's name, if it is too large or is not an image.
    """
    name = Path(path).name[-_LONGEST_NAME:]
    try:
        content = read_file(Path(path), MAX_BYTES)
        with open_image(content, FORMATS, max_pixels=MAX_PIXELS) as opened:
            width, height = opened.size
        image = decode_image(content, spec)
    except DataError as error:
        raise DataError(f"{name}: {str(error).removeprefix(f'{path}: ')}") from None
    note = f"{width}x{height} pixels became {spec.image_size}x{spec.image_size}"
    note += ", grey" if spec.channels == 1 else ", in colour"
    if find_dataset(spec.name).light_on_dark and _has_light_border(image):
        image, note = 255 - image, note + ", inverted to light on dark"
    return SourceImage(image, name, note=note + ".")


def _has_light_border(image: np.ndarray) -> bool:
    border = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], axis=1)
    return bool(np.median(border) > 127)
