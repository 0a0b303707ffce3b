"""A split of a data set in memory, and operations on images.

Images are stored as uint8 (N, C, H, W); networks take floats in [-1, 1]. Images and true counterfactuals of another
size are resized by area averaging (`resize_area`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from causaldiffae.datasets.spec import CheckedDo, DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.nn import neighbour_reach

KEEP_UNCHANGED: Final = 0.1
"""Change from which a pixel is that of the counterfactual, as a fraction of the largest one of its image."""
_STILL_SHARE: Final = 0.3
"""Share of the pixels that an intervention is taken to leave unchanged, see `keep_unchanged`."""
_DRIFTS: Final = 8.0
"""Lowest threshold, in multiples of the change of the pixels that are left unchanged."""
_RESIZED_AT_ONCE: Final = 1 << 24  # pixels


@dataclass(frozen=True)
class TruePairs:
    """True counterfactuals of some images of a split, for some interventions.

    Attributes:
        rows: (P,) int64 index of the factual image of each pair.
        dos: the intervention of each pair.
        images: (P, C, H, W) uint8 true images.
        labels: (P, n) float32 true labels in label units, NaN where they are unknown.
    """

    rows: np.ndarray
    dos: list[CheckedDo]
    images: np.ndarray
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> TruePairs:
        """The pairs of a subset of the images."""
        chosen = [(new, int(pair)) for new, row in enumerate(rows) for pair in np.flatnonzero(self.rows == row)]
        pairs = [pair for _, pair in chosen]
        new_rows = np.array([new for new, _ in chosen], np.int64)
        return TruePairs(new_rows, [self.dos[pair] for pair in pairs], self.images[pairs], self.labels[pairs])

    def find(self, do: Mapping[str, Any], count: int) -> np.ndarray:
        """Index of the pair with this intervention for each of `count` images, -1 for none.

        Args:
            do: one value per variable, or (count,) values, one per image.
        """
        found = np.full(count, -1, np.int64)
        for pair, (row, given) in enumerate(zip(self.rows.tolist(), self.dos, strict=True)):
            if given.keys() == do.keys() and found[row] < 0:
                asked = [float(np.broadcast_to(do[name], count)[row]) for name in given]
                if np.allclose(asked, list(given.values()), rtol=1e-6, atol=1e-9):
                    found[row] = pair
        return found

    def values_of(self, name: str, count: int) -> np.ndarray:
        """The value that the first pair of each image sets a variable to, alone; NaN where there is none, (count,)."""
        values = np.full(count, np.nan)
        for row, do in zip(reversed(self.rows.tolist()), reversed(self.dos), strict=True):
            if list(do) == [name]:
                values[row] = do[name]
        return values


@dataclass
class ImageData:
    """A split of a data set in memory.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N, n) float32 in label units, with columns in graph order; NaN where a label is missing.
        classes: (N,) int64; None without classes.
        ids: file name of each image, or its index in the file.
        base_images: (N, 28, 28) uint8 digits from which the images were rendered, if available.
        labelled: bool mask of the labels that may be used, (N, n) by label or (N,) by image; None for all.
        pairs: true counterfactuals that the folder of the data set contains; None without any.
        groups: (N,) text, equal for images that belong together, such as those of a patient; None without a column.
    """

    spec: DatasetSpec
    split: str
    images: np.ndarray
    labels: np.ndarray
    classes: np.ndarray | None
    ids: list[str]
    base_images: np.ndarray | None = None
    labelled: np.ndarray | None = None
    pairs: TruePairs | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def observed(self) -> np.ndarray:
        """(N, n) bool mask of the labels that are not missing and may be used."""
        known = ~np.isnan(self.labels)
        if self.labelled is None:
            return known
        return known & (self.labelled if self.labelled.ndim == 2 else self.labelled[:, None])

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageData:
        """The subset at `indices`, in this order."""
        rows = np.asarray(indices, dtype=np.int64)
        names = ("images", "labels", "classes", "base_images", "labelled", "groups")
        arrays: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        chosen = {name: array[rows] for name, array in arrays.items()}
        pairs = None if self.pairs is None else self.pairs.take(rows)
        return replace(self, ids=[self.ids[i] for i in rows], pairs=pairs, **chosen)


def resize_area(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes square images (N, C, S, S) uint8 to (N, C, size, size): each new pixel averages the area it covers.

    For integer ratios this equals Pillow's box filter; for other ratios, partly covered pixels are weighted exactly.
    """
    if images.shape[-1] == size:
        return images
    weights = _area_weights(images.shape[-1], size)
    planes = images.reshape(-1, *images.shape[2:])
    resized = np.empty((len(planes), size, size), np.uint8)
    step = max(min(_RESIZED_AT_ONCE // planes[0].size, 1024), 1) if len(planes) else 1  # limits the memory used
    for start in range(0, len(planes), step):
        block = weights @ planes[start : start + step].astype(np.float32) @ weights.T
        resized[start : start + step] = np.clip(np.rint(block), 0, 255)
    return resized.reshape(*images.shape[:2], size, size)


@lru_cache(maxsize=16)  # a matrix takes a few megabytes, and a folder can have images of many sizes
def _area_weights(old: int, new: int) -> np.ndarray:
    """(new, old) float32 weight of each old pixel in each new one; rows sum to 1."""
    edges, pixels = np.arange(new + 1) * (old / new), np.arange(old)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(overlap, 0.0, None) * (new / old)).astype(np.float32)


def to_model_range(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Maps uint8 images to float32 in [-1, 1]; a tensor stays on its device."""
    tensor = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    if tensor.dtype != torch.uint8:
        raise InputError(f"images: expected uint8, got {tensor.dtype}")
    return tensor.float() / 127.5 - 1.0


def to_uint8(images: Any) -> Any:
    """Maps images in [-1, 1] to uint8, rounded and clipped; a tensor stays on its device."""
    if isinstance(images, torch.Tensor):
        return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.clip(np.rint((np.asarray(images, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def finite_images(images: torch.Tensor, what: str = "images") -> torch.Tensor:
    """Returns images (N, C, H, W) unchanged; raises `InputError` that names those with NaN or infinity."""
    finite = images.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        wrong = (~finite).nonzero().flatten().tolist()
        shown = ", ".join(map(str, wrong[:5])) + (" ..." if len(wrong) > 5 else "")
        raise InputError(
            f"{what}: expected finite pixels, got NaN or infinity in {len(wrong)} of {len(images)} images "
            f"(index {shown})"
        )
    return images


def check_counts(count: int, **given: Sized | None) -> None:
    """Raises `InputError`, starting with the name, for values that are not one per image; None is not checked."""
    for name, values in given.items():
        if values is not None and len(values) != count:
            raise InputError(f"{name}: expected {count}, one per image, got {len(values)}")


def check_complete(labels: np.ndarray, variables: Sequence[str], ids: Sequence[str] | None = None) -> None:
    """Raises `InputError` that names the first missing label (NaN) of labels (N, n), for a model that needs all.

    Args:
        variables: names of the columns.
        ids: names of the images; by default only their index is given.
    """
    missing = np.isnan(labels)
    if not missing.any():
        return
    row, column = np.argwhere(missing)[0]
    image = f"image {row}" if ids is None else f"image {row} ({ids[row]})"
    others = int(missing.any(axis=1).sum()) - 1
    more = f", and {others} other image{'s lack' if others > 1 else ' lacks'} a label" if others else ""
    raise InputError(
        f"labels: {image} has no value of {variables[column]!r}{more}; this model needs every label of an image: add "
        "them, leave these images out, or use a model with an encoder"
    )


class ModelInputs(NamedTuple):
    """Inputs of a model: x_start (N, C, H, W) in [-1, 1], classes (N,) or None, labels (N, n) in label units."""

    x_start: torch.Tensor
    classes: torch.Tensor | None
    labels: torch.Tensor


def model_inputs(data: ImageData, device: torch.device | str = "cpu") -> ModelInputs:
    """All images, classes and labels of a split, on a device."""
    classes = None if data.classes is None else torch.from_numpy(data.classes).to(device)
    return ModelInputs(to_model_range(data.images).to(device), classes, torch.from_numpy(data.labels).to(device))


def spread_or_all(count: int, total: int) -> np.ndarray:
    """Indices of `count` of `total` images, evenly spread; of all for 0, or for more than there are."""
    return evenly_spread(min(count or total, total), total)


def evenly_spread(count: int, total: int) -> np.ndarray:
    """Evenly spaced indices (count,) in 0..total-1, from the first to the last."""
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def keep_unchanged(images: torch.Tensor, factual: torch.Tensor, fraction: float = KEEP_UNCHANGED) -> torch.Tensor:
    """Replaces pixels of counterfactual images that hardly change by those of the factual images.

    Under other latents, a network moves every pixel a little, also where the intervention changes nothing. The change
    of a pixel is the weighted mean over its neighbourhood. Above a threshold the counterfactual pixel is used, up to
    half of it the factual one, and in between both are blended. The threshold is eight times the change that 30 % of
    the pixels stay below, but at least `fraction` and at most twice `fraction` of the largest change in the image, and
    never more than that change. (DiffEdit, Couairon et al., 2023, arXiv 2210.11427, finds the region of an edit
    similarly.)

    Args:
        images, factual: (B, C, H, W) in [-1, 1]; NaN in `images` stays.
        fraction: between 0 and 1; 0 returns the images.
    """
    if not fraction:
        return images
    factual = factual.to(images.dtype)
    reach = neighbour_reach(images)
    difference = torch.where(images.isfinite(), images - factual, 0.0)
    change = difference.abs().amax(dim=1, keepdim=True)
    for padding in ((reach + 1) // 2, reach // 2):  # two box filters are one with triangular weights
        change = torch.nn.functional.avg_pool2d(change, reach + 1, 1, padding, count_include_pad=False)
    ascending = change.flatten(1).sort(dim=1).values[:, :, None, None]
    still = int(_STILL_SHARE * ascending.shape[1])
    drift, largest = ascending[:, still : still + 1], ascending[:, -1:].clamp(min=1e-6)
    threshold = (_DRIFTS * drift).clamp(fraction * largest, min(2 * fraction, 1) * largest)
    weight = (2 * change / threshold - 1).clamp(0, 1)
    return torch.where(images.isfinite(), torch.lerp(factual, images.nan_to_num(), weight), images)
