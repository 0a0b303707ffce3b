"""Cache of decoded images, so that every image file of a folder is decoded once.

The images of a split are stored as one uint8 array (N, C, S, S) in `.cache` in the data folder, or in the user's cache
folder if the data folder is read-only or remote. Where neither can be written, the processes of a machine share a
copy in the temporary folder as long as they run (shared_cache.py). The file name contains a hash of everything that
determines the pixels: name, size and modification time of each image file, and shape, resizing and scaling of the
images. The array is memory-mapped on later reads.

Threads decode directly into the mapped file (Pillow releases the GIL), so no further memory is needed. The file is
renamed once it is complete. Checksums detect later damage; the images are then decoded again with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL
from filelock import FileLock
from tqdm import tqdm

from causaldiffae.datasets.folder.image_files import MAX_FILE_BYTES, ImageRule
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.folder.shared_cache import shared_folder
from causaldiffae.errors import DataError
from causaldiffae.files.array_cache import BLOCK, block_checksum, open_array, write_array
from causaldiffae.files.images import without_size_warnings
from causaldiffae.files.storage import FileStamp, Folder, LocalFolder

FOLDER_NAME: Final = ".cache"
FORMAT: Final = 1
REMOTE_THREADS: Final = 16


def cached_images(
    folder: Folder,
    names: Sequence[str],
    stamps: Sequence[FileStamp],
    rule: ImageRule,
    label: str,
    problems: Problems,
    failed: list[int] | None = None,
) -> np.ndarray:
    """Returns the images of `names`, (N, C, S, S) uint8, mapped from the cache; writes the cache if necessary.

    Args:
        stamps: size and modification time of each file, in the same order.
        label: name of the split; a new cache replaces the previous one with the same label.
        problems: receives every image that cannot be decoded; the result is then invalid and not cached.
        failed: receives the indices of these images.
    """
    cache = cache_folder(folder) or shared_folder(folder.where, len(names) * math.prod(rule.shape))
    if cache is None:
        uncached = np.empty((len(names), *rule.shape), np.uint8)
        decode_all(folder, names, rule, uncached, problems, failed)
        return uncached
    files = [[name, stamp.size, stamp.changed] for name, stamp in zip(names, stamps, strict=True)]
    key = json.dumps([FORMAT, PIL.__version__, astuple(rule), files])
    prefix = f"{label}-{'x'.join(map(str, rule.shape))}-{rule.resize}-"
    path = cache / f"{prefix}{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
    shape, before = (len(names), *rule.shape), problems.count

    def decode(images: np.ndarray) -> list[int] | None:
        checksums = decode_all(folder, names, rule, images, problems, failed)
        return checksums if problems.count == before else None

    with FileLock(cache / "lock"):  # one process writes the cache while the others wait
        images = open_array(path, shape, np.uint8, "the images are decoded again")
        return write_array(path, prefix, shape, np.uint8, decode, "decoded images") if images is None else images


def cache_folder(folder: Folder) -> Path | None:
    """The cache folder of a data set: inside it, or in the user's cache; None if neither is writable."""
    candidates, address = [], folder.where
    if isinstance(folder, LocalFolder):
        candidates, address = [folder.path / FOLDER_NAME], str(folder.path.resolve())
    with contextlib.suppress(RuntimeError):  # raised without a home folder
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        candidates.append(user / "causaldiffae" / hashlib.sha256(address.encode()).hexdigest()[:16])
    for candidate in candidates:
        with contextlib.suppress(OSError):
            candidate.mkdir(parents=True, exist_ok=True)
            entries = list(candidate.iterdir())
            if all(entry.is_file() for entry in entries) and not any(map(Path.is_symlink, [candidate, *entries])):
                # links that come with the data could redirect writes
                with tempfile.TemporaryFile(dir=candidate):
                    return candidate
    warnings.warn(f"{folder.where}: cannot write a cache; the images are decoded at every start", stacklevel=2)
    return None


def decode_all(
    folder: Folder,
    names: Sequence[str],
    rule: ImageRule,
    images: np.ndarray | None,
    problems: Problems,
    failed: list[int] | None = None,
) -> list[int]:
    """Decodes every file into `images`; if it is None, only checks the files. `failed` receives the wrong indices.

    Returns:
        The checksum of each block of `BLOCK` images; 0 if `images` is None.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = cores if isinstance(folder, LocalFolder) else max(cores, REMOTE_THREADS)

    def decode_block(start: int) -> tuple[int, list[tuple[int, str]]]:
        wrong = []
        for i in range(start, min(start + BLOCK, len(names))):
            try:
                pixels = rule.decode(folder.read(names[i], MAX_FILE_BYTES), f"{folder.where}/{names[i]}")
                if images is not None:
                    images[i] = pixels
            except DataError as error:
                wrong.append((i, str(error)))
        return 0 if images is None else block_checksum(images[start : start + BLOCK]), wrong

    checksums: list[int] = []
    found: list[tuple[int, str]] = []
    pool = ThreadPoolExecutor(threads)
    bar: Any = tqdm(total=len(names), desc="decoding images", unit="image", disable=None, delay=2)
    with without_size_warnings(), bar:
        try:
            for checksum, wrong in pool.map(decode_block, range(0, len(names), BLOCK)):
                checksums.append(checksum)
                found += wrong
                bar.update(min(BLOCK, len(names) - bar.n))
        finally:
            pool.shutdown(cancel_futures=True)
    causes = {re.sub(r"\d+", "", line.partition(": ")[2]) for _, line in found}
    problems.add_rows([line for _, line in found], len(names) if len(causes) == 1 else 0)
    if failed is not None:
        failed += [i for i, _ in found]
    return checksums
