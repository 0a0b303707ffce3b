"""Converts images to the input of a model, (N, C, S, S) in [-1, 1].

Supports uint8 arrays (0..255), float tensors in [-1, 1], PIL images, and paths of JPEG, PNG or WebP files; one image or
a list. Files and PIL images are decoded like those of an image folder (folder/image_files.py): orientation, number of
channels, centre crop, resizing. Sizes are checked before decoding.
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
    """Converts images to a float32 tensor (N, C, S, S) in [-1, 1] on the CPU; a tensor stays on its device.

    Args:
        images: see the module docstring; arrays are (N, C, H, W) or (C, H, W), square ones are resized.

    Raises:
        InputError: for an unsupported type or shape, values out of range, or an empty list.
        DataError: for a file that cannot be read.
    """
    if isinstance(images, Tensor) and images.is_floating_point():
        return _checked_floats(images, spec)
    if isinstance(images, np.ndarray | Tensor):
        array = images.cpu().numpy() if isinstance(images, Tensor) else images
        return to_model_range(_checked_bytes(array, spec))
    several = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    if not several:
        raise InputError("images: expected at least one image, got an empty list")
    if all(isinstance(each, np.ndarray | Tensor) for each in several):
        return torch.cat([as_model_images(each, spec) for each in several])
    return to_model_range(np.stack([_decode(each, spec) for each in several]))


def _checked_floats(images: Tensor, spec: DatasetSpec) -> Tensor:
    batch = images[None] if images.dim() == 3 else images
    c, s = spec.channels, spec.image_size
    if batch.dim() != 4 or tuple(batch.shape[1:]) != (c, s, s) or not len(batch):
        raise InputError(f"images: expected a tensor (N, {c}, {s}, {s}), got shape {tuple(images.shape)}")
    low, high = float(batch.min()), float(batch.max())
    if not (low >= -1.001 and high <= 1.001):  # also false for NaN
        raise InputError(f"images: expected floats in [-1, 1] or uint8 in 0..255, got floats in {low:g}..{high:g}")
    return batch.float()


def _checked_bytes(images: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    batch = images[None] if images.ndim == 3 else images
    if batch.dtype != np.uint8:
        raise InputError(f"images: expected a uint8 array or a float tensor in [-1, 1], got an array of {batch.dtype}")
    if batch.ndim != 4 or batch.shape[1] != spec.channels or batch.shape[2] != batch.shape[3] or not batch.size:
        raise InputError(f"images: expected an array (N, {spec.channels}, S, S), got shape {images.shape}")
    return resize_area(batch, spec.image_size)


def _decode(image: Any, spec: DatasetSpec) -> np.ndarray:
    """Decodes one PIL image or file to (C, S, S) uint8."""
    if isinstance(image, Image.Image):
        return decode_image(_png(image), spec, "image")
    if isinstance(image, str | Path):
        return decode_image(read_file(Path(image), MAX_FILE_BYTES), spec, str(image))
    raise InputError(f"images: expected an array, a tensor, a PIL image or a path, got {type(image).__name__}")


def decode_image(content: bytes, spec: DatasetSpec, where: str = "") -> np.ndarray:
    """Decodes the bytes of a file to (C, S, S) uint8; a `DataError` starts with `where`."""
    return ImageRule(spec.image_size, spec.channels, spec.resize).decode(content, where)


def _png(image: Image.Image) -> bytes:
    """Encodes a PIL image as PNG, so that it is decoded like a file."""
    kept = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16") else image.convert("RGB")
    buffer = io.BytesIO()
    try:
        kept.save(buffer, "PNG", compress_level=1)
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"image: cannot read the PIL image ({' '.join(str(error).split())[:80]})") from None
    return buffer.getvalue()
