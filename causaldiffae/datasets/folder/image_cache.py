"""Decoded images on disk, so that a folder of files is decoded once.

A split's images lie as one uint8 array (N, C, S, S) in `.cache` beside the data, or in the user's cache folder where
the data set is read-only or remote. The file's name holds a hash of everything the pixels follow from: each image's
name, size and time of change, and the wanted form. Later reads map the file into memory instead of reading it.

Images are decoded straight into the mapped file, by threads (Pillow works outside Python's lock), so the memory needed
is that of the array. The file appears under its name when it is complete. Checksums tell when it was damaged later:
then it is written anew, with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL
from tqdm import tqdm

from causaldiffae.datasets.folder.image_files import MAX_FILE_BYTES, ImageRule
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.errors import DataError
from causaldiffae.files.images import without_size_warnings
from causaldiffae.files.reading import read_json, write_json
from causaldiffae.files.storage import FileStamp, Folder, LocalFolder

FOLDER_NAME: Final = ".cache"
FORMAT: Final = 1
BLOCK: Final = 64
MAX_CHECKED_BYTES: Final = 4 << 30
REMOTE_THREADS: Final = 16


def cached_images(
    folder: Folder, names: Sequence[str], stamps: Sequence[FileStamp], rule: ImageRule, label: str, problems: Problems
) -> np.ndarray:
    """The images of `names`: (N, C, S, S) uint8, mapped from the cache, which is made where it is missing.

    Args:
        stamps: each file's, in the same order.
        label: what the images are together, a split's name; a newer cache of the same label takes the old one's place.
        problems: every image that cannot be read is noted here; the result is then of no use, and is not kept.
    """
    home = cache_folder(folder)
    if home is None:
        unkept = np.empty((len(names), *rule.shape), np.uint8)
        decode_all(folder, names, rule, unkept, problems)
        return unkept
    prefix = f"{label}-{'x'.join(map(str, rule.shape))}-{rule.resize}-"
    path = home / f"{prefix}{_digest(names, stamps, rule)}.npy"
    with _locked(home):
        images = _open(path, (len(names), *rule.shape))
        if images is not None:
            return images
        return _build(folder, names, rule, path, prefix, problems)


def cache_folder(folder: Folder) -> Path | None:
    """Where the cache of a data set is: beside it, in the user's cache folder, or None where neither can be written."""
    places = [folder.path / FOLDER_NAME] if isinstance(folder, LocalFolder) else []
    address = str(folder.path.resolve()) if isinstance(folder, LocalFolder) else folder.where
    with contextlib.suppress(RuntimeError):  # there is no home
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        places.append(user / "causaldiffae" / hashlib.sha256(address.encode()).hexdigest()[:16])
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            if not _only_files(place):
                continue
            with tempfile.TemporaryFile(dir=place):
                return place
        except OSError:
            continue
    warnings.warn(f"{folder.where}: no cache can be written, so every start decodes the images anew", stacklevel=2)
    return None


def _only_files(place: Path) -> bool:
    """Whether it is a folder of regular files: a link that came with the data would be written through."""
    with os.scandir(place) as entries:
        return not place.is_symlink() and all(entry.is_file(follow_symlinks=False) for entry in entries)


def _digest(names: Sequence[str], stamps: Sequence[FileStamp], rule: ImageRule) -> str:
    files = [[name, stamp.size, stamp.changed] for name, stamp in zip(names, stamps, strict=True)]
    key = json.dumps([FORMAT, PIL.__version__, astuple(rule), files])
    return hashlib.sha256(key.encode()).hexdigest()[:24]


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Lets one process of several make the cache while the others wait for it."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # elsewhere each makes its own, and the last one stays
            import fcntl

            file = stack.enter_context((home / "lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The mapped array, or None where there is none; one that is damaged is removed with a warning."""
    if not path.exists():
        return None
    try:
        expected = read_json(path.with_suffix(".json")).get("checksums")
        images = np.lib.format.open_memmap(path, mode="c")  # private: writing to it would not reach the file
        if images.shape != shape or images.dtype != np.uint8 or not images.flags.c_contiguous:
            raise DataError(f"{path}: it holds {images.dtype} {images.shape}")
        starts = range(0, len(images), BLOCK)
        if not isinstance(expected, list) or len(expected) != len(starts):
            raise DataError(f"{path}: its checksums are missing")
        every = max(images.nbytes // MAX_CHECKED_BYTES, 1)
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(lambda start: zlib.crc32(images[start : start + BLOCK].data), starts[::every])
            damaged = any(checksum != other for checksum, other in zip(found, expected[::every], strict=True))
        if damaged:
            raise DataError(f"{path}: its checksum differs")
        return np.asarray(images)
    except Exception as error:  # numpy raises whatever a damaged header makes its reader meet
        warnings.warn(f"the cache is damaged and is made anew ({error})", stacklevel=2)
        path.unlink(missing_ok=True)
        return None


def _build(
    folder: Folder, names: Sequence[str], rule: ImageRule, path: Path, prefix: str, problems: Problems
) -> np.ndarray:
    """Decodes into a file that gets its name at the end."""
    descriptor, temporary = tempfile.mkstemp(prefix=".part-", suffix=".npy", dir=path.parent)
    os.close(descriptor)
    before = problems.count
    try:
        images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(len(names), *rule.shape))
        _reserve(Path(temporary))
        checksums = decode_all(folder, names, rule, images, problems)
        if problems.count > before:
            return np.asarray(images)
        images.flush()
        write_json(path.with_suffix(".json"), {"checksums": checksums})
        for old in path.parent.glob(f"{prefix}*"):
            if old.stem != path.stem:
                old.unlink(missing_ok=True)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise DataError(f"{path.parent}: the decoded images cannot be kept there ({error.strerror or error})") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
    return np.asarray(np.lib.format.open_memmap(path, mode="c"))


def _reserve(path: Path) -> None:
    """Takes the disk space at once: a full disk is an error here, and would end the process at a mapped page."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def decode_all(
    folder: Folder, names: Sequence[str], rule: ImageRule, images: np.ndarray | None, problems: Problems
) -> list[int]:
    """Decodes every file, into `images` unless they are only to be looked at.

    Returns:
        The checksum of every block of `BLOCK` images, or 0.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = cores if isinstance(folder, LocalFolder) else max(cores, REMOTE_THREADS)

    def decode_block(start: int) -> tuple[int, list[str]]:
        wrong = []
        for i in range(start, min(start + BLOCK, len(names))):
            try:
                pixels = rule.decode(folder.read(names[i], MAX_FILE_BYTES))
                if images is not None:
                    images[i] = pixels
            except DataError as error:
                text = str(error)
                wrong.append(text if text.startswith(folder.where) else f"{folder.where}/{names[i]}: {text}")
        return 0 if images is None else zlib.crc32(images[start : start + BLOCK].data), wrong

    checksums: list[int] = []
    pool = ThreadPoolExecutor(threads)
    bar: Any = tqdm(total=len(names), desc="decoding images", unit="image", disable=None, delay=2)
    with without_size_warnings(), bar:
        try:
            for checksum, wrong in pool.map(decode_block, range(0, len(names), BLOCK)):
                checksums.append(checksum)
                for line in wrong:
                    problems.add(line)
                bar.update(min(BLOCK, len(names) - bar.n))
        finally:
            pool.shutdown(cancel_futures=True)
    return checksums
