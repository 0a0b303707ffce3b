"""Measures images per second from a cold and a warm memory map against images in memory.

    python tools/data_throughput.py --images 20000 --size 256      # writes 3.7 GiB to --folder and deletes it

A row is measured without a step between the batches, and beside steps of `--step_ms` in which the processor waits, as
it does for a GPU: prefetched batches are then gathered during the step. `main thread` gathers each batch when it is
asked for. Before a cold measurement, the file is removed from the page cache. Images are uint8: a GPU converts them.
Values are medians of `--rounds`.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.prefetch import Prefetcher
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.graphs import CausalGraph
from causaldiffae.image_datasets import BatchSource

ROWS = ("memory", "warm map", "warm map, main thread", "cold map", "cold map, main thread")


def write_images(path: Path, count: int, size: int) -> None:
    """Writes random images to a file that can be mapped."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, 3, size, size))
    generator = np.random.default_rng(0)
    for start in range(0, count, 256):
        part = images[start : start + 256]
        part[:] = generator.integers(0, 256, part.shape, np.uint8)
    images.flush()


def evict(path: Path) -> None:
    """Removes a file, of which no page is mapped, from the page cache."""
    gc.collect()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def split(path: Path) -> ImageData:
    """The images of the file as a split with one variable."""
    images = np.asarray(np.lib.format.open_memmap(path, mode="c"))
    spec = DatasetSpec("random", images.shape[-1], 3, CausalGraph(("a",), ()), (0.0,), (1.0,), (-1.0,), (1.0,))
    names = [str(i) for i in range(len(images))]
    return ImageData(spec, "train", images, np.zeros((len(images), 1), np.float32), None, names)


def batches(path: Path, row: str, batch_size: int) -> Callable[[int], torch.Tensor]:
    """The images of a step in the way that the row names."""
    data = split(path)
    source = BatchSource(data, batch_size, data_on_device="always" if row == "memory" else "never")
    if row.endswith("map"):
        return Prefetcher(data.images, source.indices, torch.device("cpu")).batch
    return lambda step: source.images[torch.from_numpy(source.indices(step))]


def images_per_second(path: Path, row: str, batch_size: int, steps: int, first: int, pause: float) -> float:
    """Takes the batches of `steps` steps from step `first` on, after two for the start."""
    if row.startswith("cold"):
        evict(path)
    take = batches(path, row, batch_size)
    for step in (first - 2, first - 1):
        take(step)
    start = time.perf_counter()
    for step in range(first, first + steps):
        take(step)
        if pause:
            time.sleep(pause)
    return batch_size * steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where the images are written; default: the temporary folder")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60, help="batches of a measurement")
    parser.add_argument("--step_ms", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.rounds * 2 * (options.steps + 2) * options.batch_size > options.images:
        parser.error("images: expected at least rounds x 2 x (steps + 2) x batch_size, so that no image is read twice")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "images.npy"
        write_images(path, options.images, options.size)
        print(f"{'images/s':24s}{'no step':>10s}{f'{options.step_ms:g} ms steps':>16s}", flush=True)
        for row in ROWS:
            if row.startswith("warm"):
                path.read_bytes()
            columns = []
            for column, pause in enumerate((0.0, options.step_ms / 1000)):
                starts = [2 + (2 * number + column) * (options.steps + 2) for number in range(options.rounds)]
                found = [
                    images_per_second(path, row, options.batch_size, options.steps, first, pause) for first in starts
                ]
                columns.append(statistics.median(found))
            print(f"{row:24s}{columns[0]:10.0f}{columns[1]:16.0f}", flush=True)


if __name__ == "__main__":
    main()
