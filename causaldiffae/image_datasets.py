"""Batches of a data set, and `load_data` as in guided-diffusion.

Batches are stateless: batch `step` depends only on (seed, step). Resumed training uses the same images as uninterrupted
training, and several processes share the batch that one process would use.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from causaldiffae.datasets.images import ImageData, evenly_spread, model_inputs, resize_area, to_model_range, to_uint8
from causaldiffae.datasets.prefetch import Prefetcher, memory_map
from causaldiffae.datasets.registry import DATASETS, dataset_spec, measure, read_split, true_counterfactual
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.datasets.variables import is_integer
from causaldiffae.errors import InputError

__all__ = [
    "DATASETS",
    "Batch",
    "BatchSource",
    "DatasetSpec",
    "ImageData",
    "dataset_spec",
    "evenly_spread",
    "load_data",
    "measure",
    "model_inputs",
    "read_split",
    "resize_area",
    "to_model_range",
    "to_uint8",
    "true_counterfactual",
]


class Batch(NamedTuple):
    """The part of a batch that one process uses.

    Attributes:
        images: (B, C, H, W) in [-1, 1]; or codes of an autoencoder, of about unit variance.
        labels: (B, n) normalised; 0 for missing labels.
        classes: (B,) or None.
        indices: (B,) indices into the split.
        labelled: (B, n) bool, the observed labels.
        labelled_fraction: fraction of the images of the global batch with at least one label.
        labelled_of_batch: `labelled` of the global batch, (G, n).
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: torch.Tensor | None
    indices: torch.Tensor
    labelled: torch.Tensor
    labelled_fraction: float
    labelled_of_batch: torch.Tensor


def fits_on(device: torch.device, size: int) -> bool:
    """Whether `size` bytes take at most a third of the free memory of a GPU; true for other devices."""
    return device.type != "cuda" or 3 * size <= torch.cuda.mem_get_info(device)[0]


class _Order:
    """The order of the images in an endless sequence of batches; used by two threads."""

    def __init__(self, count: int, batch_size: int, seed: int, shuffle: bool) -> None:
        self._count, self._batch_size, self._seed, self._shuffle = count, batch_size, seed, shuffle
        self._recent: dict[int, np.ndarray] = {}

    def indices(self, step: int) -> np.ndarray:
        if not (is_integer(step) and step >= 0):
            raise InputError(f"step: expected a non-negative integer, got {step!r}")
        first = step * self._batch_size
        epochs, offsets = np.divmod(np.arange(first, first + self._batch_size), self._count)
        result = np.empty(self._batch_size, np.int64)
        for epoch in np.unique(epochs):
            result[epochs == epoch] = self._epoch(int(epoch))[offsets[epochs == epoch]]
        return result

    def _epoch(self, epoch: int) -> np.ndarray:
        recent = self._recent
        if epoch not in recent:
            if self._shuffle:
                order = np.random.Generator(np.random.Philox(key=[self._seed, epoch])).permutation(self._count)
            else:
                order = np.arange(self._count)
            # A new dictionary, because the other thread may read the old one.
            recent = self._recent = dict(list(recent.items())[-1:]) | {epoch: order}
        return recent[epoch]


class BatchSource:
    """Endless batches of a split, whose images are stored on the device if they fit.

    The images of all epochs form one sequence, each epoch in a random order that depends on (seed, epoch). Batch `step`
    is the part [step * batch_size, (step + 1) * batch_size) of the sequence: no image is dropped at the end of an
    epoch. Process `rank` of `world` uses its part of the batch, which does not depend on `world`.

    Args:
        data: the split.
        batch_size: size of the global batch.
        seed: seed of the order.
        shuffle: shuffle every epoch; otherwise the order on disk is used.
        device: device of the batches.
        rank, world: index of this process, and number of processes.
        data_on_device: "always" stores the images on the device (on the CPU: reads them into memory), "never" leaves
            them in host memory or in their memory map, "auto" stores them on a GPU if they fit, see `fits_on`. Images
            that are not on the device or in a memory map are prefetched by a thread.
        codes: (N, C, h, w) float16 codes of the images, which batches hold in their place.

    Raises:
        InputError: for an empty split, or a batch size that is not a multiple of the number of processes.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        data_on_device: str = "auto",
        codes: np.ndarray | None = None,
    ) -> None:
        if not len(data):
            raise InputError(f"data set {data.spec.name}: expected images in split {data.split}, got none")
        if not 0 <= rank < world:
            raise InputError(f"rank: expected a number in 0..{world - 1}, got {rank}")
        if not (is_integer(batch_size) and batch_size > 0 and batch_size % world == 0):
            multiple = f"a multiple of the {world} processes" if world > 1 else "a positive integer"
            raise InputError(f"batch_size: expected {multiple}, got {batch_size!r}")
        if not (is_integer(seed) and 0 <= seed < 2**63):
            raise InputError(f"seed: expected a non-negative integer, got {seed!r}")
        self.spec, self.batch_size, self.seed, self.shuffle = data.spec, batch_size, seed, shuffle
        self.rank, self.world, self.device = rank, world, torch.device(device)
        share = batch_size // world
        self._order = _Order(len(data), batch_size, seed, shuffle)
        self._share = slice(rank * share, (rank + 1) * share)
        stored = np.ascontiguousarray(data.images if codes is None else codes)
        self.images, self._prefetcher = self._place(stored, data_on_device)
        self.observed = data.observed
        self._has_labels = np.any(self.observed, axis=1)
        self.labelled = torch.from_numpy(self.observed).to(self.device)
        labels = data.spec.normalise(torch.from_numpy(data.labels.astype(np.float32))).to(self.device)
        self.labels = torch.where(self.labelled, labels, torch.zeros_like(labels))
        self.classes = None if data.classes is None else torch.from_numpy(data.classes).to(self.device)

    def __len__(self) -> int:
        return len(self.images)

    def _place(self, images: np.ndarray, on_device: str) -> tuple[torch.Tensor, Prefetcher | None]:
        """The images where batches take them from, and the prefetcher if they are prefetched."""
        mapped, tensor = memory_map(images) is not None, torch.from_numpy(images)
        if on_device == "always" or (on_device == "auto" and fits_on(self.device, images.nbytes)):
            if self.device.type != "cpu":
                return tensor.to(self.device), None
            if on_device == "always" and mapped:
                return tensor.clone(), None
        if self.device.type == "cuda" or (self.device.type == "cpu" and mapped):
            order, share = self._order, self._share  # without `self`, so that no cycle keeps the images
            return tensor, Prefetcher(images, lambda step: order.indices(step)[share], self.device)
        return tensor, None

    def indices(self, step: int) -> np.ndarray:
        """Indices (batch_size,) int64 of the global batch `step`."""
        return self._order.indices(step)

    def batch(self, step: int) -> Batch:
        """The part of batch `step` that this process uses."""
        whole = self.indices(step)
        of_batch = torch.from_numpy(whole).to(self.device)
        indices = of_batch[self._share]
        if self._prefetcher is not None:
            images = self._prefetcher.batch(step)
        else:
            images = self.images[indices.to(self.images.device)].to(self.device)
        return Batch(
            images=images.float() if images.is_floating_point() else to_model_range(images),
            labels=self.labels[indices],
            classes=None if self.classes is None else self.classes[indices],
            indices=indices,
            labelled=self.labelled[indices],
            labelled_fraction=float(self._has_labels[whole].mean()),
            labelled_of_batch=self.labelled[of_batch],
        )


def load_data(
    *,
    dataset: str,
    data_dir: str | Path,
    batch_size: int,
    image_size: int | None = None,
    class_cond: bool = False,
    deterministic: bool = False,
    channels: int | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    start_step: int = 0,
    graph: str | Path | None = None,
) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """guided-diffusion's data loader: an endless iterator of (images, cond), the batches of a `BatchSource`.

    `cond["c"]` holds the normalised labels (B, n), 0 where they are missing, and, with `class_cond`, `cond["y"]` the
    classes (B,). Files are read when the function is called. `deterministic` keeps the order on disk.
    """
    data = read_split(dataset, data_dir, split, image_size, channels, limit, graph=graph)
    if class_cond and data.classes is None:
        raise InputError(f"class_cond: expected a data set with classes, got {dataset}")
    source = BatchSource(data, batch_size, seed=seed, shuffle=not deterministic, device=device, rank=rank, world=world)

    def batches() -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        for step in itertools.count(start_step):
            batch = source.batch(step)
            yield batch.images, {"c": batch.labels, **({"y": batch.classes} if class_cond else {})}

    return batches()
