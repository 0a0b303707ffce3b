"""One split of a data set in memory, and images between their three forms.

Images are uint8 (N, C, H, W) at rest and float in [-1, 1] at the network. A picture that is not of the wanted size is
averaged over the area of each new pixel (`resize_area`), true counterfactuals by the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError

_RESIZED_AT_ONCE: Final = 1 << 24  # pixels


@dataclass
class ImageData:
    """One split of a data set, in memory.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N, n) float32, label units, columns in the graph's order.
        classes: (N,) int64 where the data set has classes.
        ids: what each image is called on disk: a file name, or its index.
        base_images: (N, 28, 28) uint8, the digits that the images were drawn from, where the folder holds them.
        labelled: (N,) bool, the images whose labels may be used; None for all.
    """

    spec: DatasetSpec
    split: str
    images: np.ndarray
    labels: np.ndarray
    classes: np.ndarray | None
    ids: list[str]
    base_images: np.ndarray | None = None
    labelled: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageData:
        """The images at `indices` (integers, in this order)."""
        places = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            images=self.images[places],
            labels=self.labels[places],
            classes=None if self.classes is None else self.classes[places],
            ids=[self.ids[i] for i in places],
            base_images=None if self.base_images is None else self.base_images[places],
            labelled=None if self.labelled is None else self.labelled[places],
        )


def resize_area(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes square (N, C, S, S) uint8 to (N, C, size, size): every new pixel averages the area it covers.

    For a whole ratio this is Pillow's box filter; for others the shares of split pixels are exact too.
    """
    if images.shape[-1] == size:
        return images
    weights = _area_weights(images.shape[-1], size)
    planes = images.reshape(-1, *images.shape[2:])
    resized = np.empty((len(planes), size, size), np.uint8)
    step = max(min(_RESIZED_AT_ONCE // planes[0].size, 1024), 1) if len(planes) else 1  # bounds the memory
    for start in range(0, len(planes), step):
        block = weights @ planes[start : start + step].astype(np.float32) @ weights.T
        resized[start : start + step] = np.clip(np.rint(block), 0, 255)
    return resized.reshape(*images.shape[:2], size, size)


@lru_cache(maxsize=16)  # a folder's images may all be of another size, and each is some megabytes
def _area_weights(old: int, new: int) -> np.ndarray:
    """(new, old) float32: the share of each old pixel in each new one; rows sum to 1."""
    edges, pixels = np.arange(new + 1) * (old / new), np.arange(old)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(overlap, 0.0, None) * (new / old)).astype(np.float32)


def to_model_range(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 images to float32 in [-1, 1], 0 to -1 and 255 to 1; a tensor stays on its device."""
    tensor = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    if tensor.dtype != torch.uint8:
        raise InputError(f"images: {tensor.dtype} given, uint8 is needed")
    return tensor.float() / 127.5 - 1.0


def to_uint8(images: Any) -> Any:
    """Images in [-1, 1] to uint8, rounded and clipped; tensor to tensor (same device), array to array."""
    if isinstance(images, torch.Tensor):
        return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.clip(np.rint((np.asarray(images, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


class ModelInputs(NamedTuple):
    """Images as models are asked about them: x_start (N, C, H, W) in [-1, 1], classes (N,) or None, labels (N, n)."""

    x_start: torch.Tensor
    classes: torch.Tensor | None
    labels: torch.Tensor


def model_inputs(data: ImageData, device: torch.device | str = "cpu") -> ModelInputs:
    """All images of a split on a device, with their classes and labels; labels keep their own units."""
    classes = None if data.classes is None else torch.from_numpy(data.classes).to(device)
    return ModelInputs(to_model_range(data.images).to(device), classes, torch.from_numpy(data.labels).to(device))


def evenly_spread(count: int, total: int) -> np.ndarray:
    """(count,) places in 0..total-1, rising, from the first to the last."""
    return np.linspace(0, total - 1, count).round().astype(np.int64)
