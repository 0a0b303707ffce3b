"""Images as people have them, turned into what a model sees: (N, C, S, S) in [-1, 1].

Taken are uint8 arrays (pixels 0..255), float tensors in [-1, 1], PIL images, and paths of JPEG, PNG or WebP files,
one or a list. Files and PIL images go the way of a folder of images (`folders/image_files.py`): orientation, grey or
colour as the data set has it, the centre square, area averaging. Sizes are checked before anything is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from causaldiffae.datasets.folder.image_files import MAX_FILE_BYTES, ImageRule
from causaldiffae.datasets.images import resize_area, to_model_range
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import read_file

Images = np.ndarray | Tensor | Image.Image | str | Path | Sequence[Any]


def as_model_images(images: Images, spec: DatasetSpec) -> Tensor:
    """Images as `Images` says, as a float32 tensor (N, C, S, S) in [-1, 1] on the CPU (a tensor stays on its device).

    Args:
        images: (N, C, H, W) or one (C, H, W); arrays of another square size than the model's are averaged over areas.

    Raises:
        InputError: for another type or shape, values out of range, or none at all.
        DataError: naming a file that cannot be read.
    """
    if isinstance(images, Tensor) and images.is_floating_point():
        return _checked_floats(images, spec)
    if isinstance(images, np.ndarray | Tensor):
        array = images.cpu().numpy() if isinstance(images, Tensor) else images
        return to_model_range(_checked_bytes(array, spec))
    several = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    if not several:
        raise InputError("images: an empty list is given, one image or more is needed")
    if all(isinstance(each, np.ndarray | Tensor) for each in several):
        return torch.cat([as_model_images(each, spec) for each in several])
    return to_model_range(np.stack([_decode(each, spec) for each in several]))


def _checked_floats(images: Tensor, spec: DatasetSpec) -> Tensor:
    batch = images[None] if images.dim() == 3 else images
    wanted = (spec.channels, spec.image_size, spec.image_size)
    if batch.dim() != 4 or tuple(batch.shape[1:]) != wanted or not len(batch):
        raise InputError(f"images: a tensor of shape {tuple(images.shape)} given, (N, {', '.join(map(str, wanted))}) "
                         "is needed")  # fmt: skip
    low, high = float(batch.min()), float(batch.max())
    if not (low >= -1.001 and high <= 1.001):  # also false for NaN
        raise InputError(f"images: a float tensor spans {low:g}..{high:g}, [-1, 1] is needed (or uint8, 0..255)")
    return batch.float()


def _checked_bytes(images: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    batch = images[None] if images.ndim == 3 else images
    if batch.dtype != np.uint8:
        raise InputError(f"images: an array of {batch.dtype} given, uint8 is needed, or a float tensor in [-1, 1]")
    if batch.ndim != 4 or batch.shape[1] != spec.channels or batch.shape[2] != batch.shape[3] or not batch.size:
        raise InputError(f"images: an array of shape {images.shape} given, (N, {spec.channels}, S, S) is needed")
    return resize_area(batch, spec.image_size)


def _decode(image: Any, spec: DatasetSpec) -> np.ndarray:
    """One PIL image or file as (C, S, S) uint8."""
    where, content = "image", b""
    if isinstance(image, Image.Image):
        content = _png(image)
    elif isinstance(image, str | Path):
        where = str(image)
        try:
            Path(image).stat()
        except OSError as error:
            raise DataError(f"{where}: it cannot be opened ({error.strerror})") from None
        content = read_file(Path(image), MAX_FILE_BYTES)
    else:
        raise InputError(f"images: {type(image).__name__} given, an array, a tensor, a PIL image or a path is needed")
    try:
        return decode_image(content, spec)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def decode_image(content: bytes, spec: DatasetSpec) -> np.ndarray:
    """A file's bytes as the data set has its images: (C, S, S) uint8; `DataError` starting with "it"."""
    return ImageRule(spec.image_size, spec.channels, spec.resize).decode(content)


def _png(picture: Image.Image) -> bytes:
    """The same pixels as a PNG file, so that PIL images and files go one way."""
    kept = picture if picture.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16") else picture.convert("RGB")
    buffer = io.BytesIO()
    try:
        kept.save(buffer, "PNG", compress_level=1)
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"image: this PIL image cannot be read ({' '.join(str(error).split())[:80]})") from None
    return buffer.getvalue()
