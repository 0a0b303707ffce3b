"""Long computations in chunks: several processes share them, and an interrupted computation is resumed.

The outputs of finished chunks are files in a folder, which also holds a digest of what they depend on, so that those of
different computations are never mixed. The caller removes the folder once it has stored its results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch

from causaldiffae.errors import InputError
from causaldiffae.files.npz import read_arrays, write_arrays
from causaldiffae.files.reading import read_file
from causaldiffae.generators.workers import DIED, worker_pool
from causaldiffae.logger import progress_bar

Compute = Callable[[int], dict[str, np.ndarray]]
"""Number of a chunk -> its outputs; of several processes, picklable."""

_MAX_PART: Final = 1 << 32


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits PyTorch to one thread, so that sums do not depend on the number of processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parts_folder(out: str) -> Path:
    """Folder of the outputs of finished chunks, beside a results file."""
    return Path(out).with_suffix(".parts")


def claim_parts(folder: Path, digest: str) -> None:
    """Creates the folder of finished chunks.

    Raises:
        InputError: if it belongs to another digest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / "digest"
    if mark.is_file() and read_file(mark, 1 << 10) != digest.encode():
        raise InputError(
            f"{folder}: expected parts of this model, data and settings, got others; delete the folder or change --out"
        )
    mark.write_text(digest, encoding="utf-8")


def compute_chunks(
    compute: Compute, sizes: Sequence[int], folder: Path, workers: int, device: torch.device, description: str
) -> list[dict[str, np.ndarray]]:
    """The outputs of all chunks in order, computing those that the folder lacks.

    Args:
        compute: outputs of a chunk; called in one thread.
        sizes: number of images of every chunk.
        folder: of finished chunks, see `claim_parts`.
        workers: number of processes; an accelerator always uses one.
        description: of the progress bar.

    Raises:
        InputError: if outputs that were stored cannot be read, or a process has died.
    """
    paths = [folder / f"chunk_{number:05d}.npz" for number in range(len(sizes))]
    parts = [read_arrays(path, _MAX_PART) for path in paths]
    missing = [number for number, part in enumerate(parts) if part is None]
    done = sum(sizes) - sum(sizes[number] for number in missing)
    run = partial(_store, compute, paths)
    with progress_bar(total=sum(sizes), initial=done, desc=description, unit="image") as bar:
        if missing and not bar.disable:
            note = f"the bar moves after each chunk of {sizes[missing[0]]} images, which may take minutes"
            bar.write(f"{description}: {note}; the time left is estimated after the first", file=sys.stderr)
        if workers < 2 or len(missing) < 2 or device.type != "cpu":
            for number in missing:
                bar.update(sizes[run(number)])
        else:
            for number in _in_processes(run, missing, workers):
                bar.update(sizes[number])
    return [_finished(path) if part is None else part for part, path in zip(parts, paths, strict=True)]


def _finished(path: Path) -> dict[str, np.ndarray]:
    """The outputs of a chunk that this computation has stored."""
    if (part := read_arrays(path, _MAX_PART)) is None:
        raise InputError(f"{path}: expected the outputs of a chunk, got none; another process may have removed them")
    return part


def _store(compute: Compute, paths: Sequence[Path], number: int) -> int:
    """Computes and stores the outputs of a chunk; returns its number."""
    with one_thread():
        outputs = compute(number)
    write_arrays(paths[number], outputs)
    return number


def _in_processes(run: Callable[[int], int], missing: Sequence[int], workers: int) -> Iterator[int]:
    """Numbers of chunks, as they are finished."""
    with worker_pool(min(workers, len(missing))) as pool:
        running = [pool.submit(run, number) for number in missing]
        try:
            for future in as_completed(running):
                yield future.result()
        except BrokenProcessPool as error:
            raise InputError(f"{DIED}; the same command resumes after the finished chunks") from error
