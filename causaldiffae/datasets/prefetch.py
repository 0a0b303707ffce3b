"""Batches of images from host memory or a memory map, gathered by a thread while the previous step is computed.

`torch.utils.data.DataLoader` was considered: its workers are processes that copy every batch once more, and the order
of its batches is that of an iterator, while a batch here is a function of the step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

Loaded = tuple[torch.Tensor, "torch.cuda.Event | None"]


class Prefetcher:
    """Rows of an array on a device, by step; the next step is prepared by a thread.

    The thread gathers rows into one of two buffers, which are pinned if the device is a GPU, and copies them to the
    device on a stream of its own. From a file, it first asks the system to read all rows of a step, so that the disk
    gets many requests at once and not one page after another.

    Args:
        images: (N, ...) array or memory map.
        rows: (B,) indices of the rows of a step; a pure function, called in the thread.
        device: device of the result.
    """

    def __init__(self, images: np.ndarray, rows: Callable[[int], np.ndarray], device: torch.device) -> None:
        self._images, self._rows, self._device = torch.from_numpy(images), rows, device
        self._file = _MappedRows.of(images)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next: tuple[int, Future[Loaded]] | None = None
        self._buffers: list[torch.Tensor | None] = [None, None]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._slot = 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def batch(self, step: int) -> torch.Tensor:
        """The rows (B, ...) of a step on the device; on the CPU, valid until the next call."""
        ahead, self._next = self._next, None
        if ahead is not None and ahead[0] == step:
            loaded = ahead[1]
        else:
            loaded = self._pool.submit(self._load, step)
        images, copied = loaded.result()
        self._next = step + 1, self._pool.submit(self._load, step + 1)
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            images.record_stream(stream)
        return images

    def _load(self, step: int) -> Loaded:
        rows, slot = self._rows(step), self._slot
        self._slot = 1 - slot
        if self._file is not None:
            self._file.read_ahead(rows)
        if (copied := self._copied[slot]) is not None:
            copied.synchronize()
        buffer = self._buffers[slot]
        if buffer is None or len(buffer) != len(rows):
            shape = (len(rows), *self._images.shape[1:])
            buffer = torch.empty(shape, dtype=self._images.dtype, pin_memory=self._stream is not None)
            self._buffers[slot] = buffer
        # One thread: the cores are those of training. numpy, unlike torch, starts no team of threads.
        np.take(self._images.numpy(), rows, axis=0, out=buffer.numpy(), mode="clip")
        if self._stream is None:
            return buffer, None
        with torch.cuda.stream(self._stream):
            images = buffer.to(self._device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        self._copied[slot] = copied
        return images, copied


class _MappedRows:
    """The file of a memory-mapped array, to read rows ahead."""

    def __init__(self, path: str, offset: int, row_bytes: int) -> None:
        self._file = Path(path).open("rb")  # noqa: SIM115 - open as long as the array is used
        self._offset, self._row_bytes = offset, row_bytes

    @classmethod
    def of(cls, images: np.ndarray) -> _MappedRows | None:
        """The file of an array; None if it is not a memory map, or the system has no advice for files."""
        mapped = memory_map(images)
        if (
            mapped is None
            or mapped.filename is None
            or not images.flags.c_contiguous
            or not hasattr(os, "posix_fadvise")
        ):
            return None
        offset = mapped.offset + images.ctypes.data - mapped.ctypes.data
        return cls(str(mapped.filename), offset, images.nbytes // max(len(images), 1))

    def read_ahead(self, rows: np.ndarray) -> None:
        """Starts reading rows into the page cache."""
        for row in rows.tolist():
            start = self._offset + row * self._row_bytes
            os.posix_fadvise(self._file.fileno(), start, self._row_bytes, os.POSIX_FADV_WILLNEED)


def memory_map(images: np.ndarray) -> np.memmap | None:
    """The memory map that an array is a view of; None if it is in memory."""
    found: Any = images
    while found is not None:
        if isinstance(found, np.memmap) and not isinstance(found.base, np.memmap):
            return found
        found = getattr(found, "base", None)
    return None
