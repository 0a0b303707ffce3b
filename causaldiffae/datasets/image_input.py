"""Converts images to the input of a model, (N, C, S, S) in [-1, 1].

Supports uint8 arrays (0..255), float arrays and tensors in [-1, 1], PIL images of every mode, and paths of image
files; one image or a list; and a split in memory. Files and PIL images are decoded like those of an image folder
(folder/image_files.py): orientation, range of values, number of channels, centre crop, resizing. Sizes are checked
before decoding. If the data set has light objects on a dark background, as MNIST has, files and PIL images with a light
border are inverted.

The explorer prepares uploads by `prepare_file`, too, so the same file gives the same result there and in Python.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from causaldiffae.datasets.dataset import DATASETS
from causaldiffae.datasets.folder.image_files import MAX_FILE_BYTES, ImageRule
from causaldiffae.datasets.images import ImageData, resize_area, to_model_range
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.images import MAX_PIXELS, MAX_SIDE
from causaldiffae.files.reading import read_file

Images = np.ndarray | Tensor | Image.Image | str | Path | Sequence[Any] | ImageData


def as_model_images(images: Images, spec: DatasetSpec) -> Tensor:
    """Converts images to a float32 tensor (N, C, S, S) in [-1, 1] on the CPU; a tensor stays on its device.

    Args:
        images: see the module docstring; arrays are (N, C, H, W) or (C, H, W), uint8 ones are resized if square.

    Warns:
        UserWarning: if all values of a float image are in [0, 1], the range of torchvision's `ToTensor`, and if a file
            or PIL image is inverted.

    Raises:
        InputError: for an unsupported type or shape, values out of range, or an empty list.
        DataError: for a file or PIL image that cannot be read.
    """
    images = images.images if isinstance(images, ImageData) else images
    if isinstance(images, np.ndarray) and images.dtype.kind == "f":
        return _checked_floats(torch.from_numpy(images.astype(np.float32)), spec)
    if isinstance(images, Tensor) and images.is_floating_point():
        return _checked_floats(images, spec)
    if isinstance(images, np.ndarray | Tensor):
        array = images.cpu().numpy() if isinstance(images, Tensor) else images
        return to_model_range(_checked_bytes(array, spec))
    several = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    if not several:
        raise InputError("images: expected at least one image, got an empty list")
    arrays = [each for each in several if isinstance(each, np.ndarray | Tensor)]
    if len(arrays) == len(several):
        return torch.cat([as_model_images(each, spec) for each in several])
    if arrays:
        kinds = ", ".join(dict.fromkeys(type(each).__name__ for each in several))
        raise InputError(f"images: expected a list of one kind, arrays or files and PIL images, got {kinds:.200}")
    prepared = [_prepare(each, spec) for each in several]
    if inverted := [i for i, each in enumerate(prepared) if each.inverted]:
        which = "the image is" if len(several) == 1 else f"{len(inverted)} of {len(several)} images are"
        warnings.warn(
            f"images: {which} dark on light and inverted, as those of data set {spec.name} are light on dark",
            UserWarning,
            stacklevel=2,
        )
    return to_model_range(np.stack([each.pixels for each in prepared]))


def _checked_floats(images: Tensor, spec: DatasetSpec) -> Tensor:
    batch = images[None] if images.dim() == 3 else images
    c, s = spec.channels, spec.image_size
    if batch.dim() != 4 or tuple(batch.shape[1:]) != (c, s, s) or not len(batch):
        raise InputError(f"images: expected a tensor (N, {c}, {s}, {s}), got shape {tuple(images.shape)}")
    low, high = float(batch.min()), float(batch.max())
    if not (low >= -1.001 and high <= 1.001):  # also false for NaN
        hint = "; for values in 0..255, use images / 127.5 - 1" if low >= 0 and 1 < high <= 255.5 else ""
        raise InputError(
            f"images: expected floats in [-1, 1] or uint8 in 0..255, got floats in {low:g}..{high:g}{hint}"
        )
    if low >= 0:
        warnings.warn(
            f"images: expected floats in [-1, 1], got no value below 0 ({low:g}..{high:g}); if they are in [0, 1], as "
            "from ToTensor, use images * 2 - 1",
            UserWarning,
            stacklevel=3,
        )
    return batch.float()


def _checked_bytes(images: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    batch = images[None] if images.ndim == 3 else images
    if batch.dtype != np.uint8:
        raise InputError(f"images: expected a uint8 array or floats in [-1, 1], got an array of {batch.dtype}")
    if batch.ndim != 4 or batch.shape[1] != spec.channels or batch.shape[2] != batch.shape[3] or not batch.size:
        channels_last = batch.ndim == 4 and batch.shape[3] == spec.channels
        axes = "2, 0, 1" if images.ndim == 3 else "0, 3, 1, 2"
        advice = f"; channels come before rows: images.transpose({axes})" if channels_last else ""
        raise InputError(f"images: expected an array (N, {spec.channels}, S, S), got shape {images.shape}{advice}")
    return resize_area(batch, spec.image_size)


class PreparedImage(NamedTuple):
    """Pixels (C, S, S) uint8 of a file or PIL image, and whether they were inverted."""

    pixels: np.ndarray
    inverted: bool


def _prepare(image: Any, spec: DatasetSpec) -> PreparedImage:
    if isinstance(image, Image.Image):
        return _light_on_dark(_convert(image, spec), spec)
    if isinstance(image, str | Path):
        return prepare_file(read_file(Path(image), MAX_FILE_BYTES), spec, str(image))
    raise InputError(f"images: expected an array, a tensor, a PIL image or a path, got {type(image).__name__}")


def prepare_file(content: bytes, spec: DatasetSpec, where: str = "") -> PreparedImage:
    """Decodes the bytes of an image file for a model; a `DataError` starts with `where`."""
    return _light_on_dark(_rule(spec).decode(content, where), spec)


def _light_on_dark(pixels: np.ndarray, spec: DatasetSpec) -> PreparedImage:
    """Inverts an image (C, S, S) with a light border if those of the data set are light on dark."""
    if spec.name not in DATASETS or not DATASETS[spec.name].light_on_dark:
        return PreparedImage(pixels, False)
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1)
    is_light = bool(np.median(border) > 127)
    return PreparedImage(255 - pixels if is_light else pixels, is_light)


def _convert(image: Image.Image, spec: DatasetSpec) -> np.ndarray:
    """Converts a PIL image like a file of the same content."""
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise DataError(f"image: expected at most {MAX_PIXELS} pixels and {MAX_SIDE} a side, got {width}x{height}")
    try:
        return _rule(spec).convert(image, "image")
    except InputError:
        raise
    except Exception as error:  # the pixels of an opened file are decoded here; Pillow raises various errors
        reason = " ".join(str(error).split())[:80]
        raise DataError(f"image: expected a complete PIL image, got one that cannot be decoded ({reason})") from None


def _rule(spec: DatasetSpec) -> ImageRule:
    value_range = (spec.value_range[0], spec.value_range[1]) if spec.value_range else None
    return ImageRule(spec.image_size, spec.channels, spec.resize, value_range)
