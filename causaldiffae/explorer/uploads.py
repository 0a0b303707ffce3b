"""Converts an uploaded file to an image of the model's data set.

Files are prepared as in Python (`datasets/image_input.py`). Size and format are checked in the header before anything
is decoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from causaldiffae.datasets.folder.image_files import FORMATS
from causaldiffae.datasets.image_input import prepare_file
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
        image = prepare_file(content, spec)
    except DataError as error:
        raise DataError(f"{name}: {str(error).removeprefix(f'{path}: ')}") from None
    note = f"{width}x{height} pixels became {spec.image_size}x{spec.image_size}"
    note += ", grey" if spec.channels == 1 else ", in colour"
    note += ", inverted to light on dark" if image.inverted else ""
    return SourceImage(image.pixels, name, note=note + ".")
