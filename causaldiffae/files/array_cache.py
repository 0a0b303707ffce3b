"""Arrays in cache files: memory-mapped, with checksums that detect damage, and complete or absent.

An array (N, ...) is a `.npy` file; a `.json` file of the same name has the CRC-32 of each block of rows. A damaged file
is removed with a warning, and the caller computes the array again.
"""

from __future__ import annotations

import os
import tempfile
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.errors import DataError
from causaldiffae.files.reading import read_json, write_json

BLOCK: Final = 64
"""Rows per checksum."""
MAX_CHECKED_BYTES: Final = 4 << 30


def block_checksum(rows: np.ndarray) -> int:
    """CRC-32 of contiguous rows."""
    return zlib.crc32(rows.data)


def open_array(path: Path, shape: tuple[int, ...], dtype: Any, consequence: str) -> np.ndarray | None:
    """Maps an array, copy-on-write; of arrays above `MAX_CHECKED_BYTES`, only some blocks are checked.

    Args:
        consequence: what the caller does if the file is damaged, for the warning.

    Returns:
        None if the file does not exist, or if it is damaged and was removed.
    """
    if not path.exists():
        return None
    try:
        expected = read_json(path.with_suffix(".json")).get("checksums")
        array = np.lib.format.open_memmap(path, mode="c")  # changes do not reach the file
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise DataError(f"expected {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")
        starts = range(0, len(array), BLOCK)
        if not isinstance(expected, list) or len(expected) != len(starts):
            raise DataError("expected checksums, got none")
        step = max(array.nbytes // MAX_CHECKED_BYTES, 1)
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(lambda start: block_checksum(array[start : start + BLOCK]), starts[::step])
            if list(found) != expected[::step]:
                raise DataError("checksums differ")
        return np.asarray(array)
    except Exception as error:  # numpy raises errors of many types for a damaged header
        warnings.warn(f"{path}: the cache is damaged ({error}); {consequence}", stacklevel=3)
        path.unlink(missing_ok=True)
        return None


def write_array(
    path: Path,
    prefix: str,
    shape: tuple[int, ...],
    dtype: Any,
    fill: Callable[[np.ndarray], list[int] | None],
    content: str,
) -> np.ndarray:
    """Computes an array in a temporary file, renames it to `path`, and maps it.

    Args:
        prefix: start of the file names that the new file replaces.
        fill: fills the array and returns the checksum of each block of `BLOCK` rows; None if the result must not be
            cached.
        content: what the array holds, for messages.

    Raises:
        DataError: if the file cannot be written, as on a full disk.
    """
    descriptor, name = tempfile.mkstemp(prefix=".part-", suffix=".npy", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        array = np.lib.format.open_memmap(name, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):  # a full disk raises here, and not as SIGBUS at a mapped page
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        checksums = fill(array)
        if checksums is None:
            return np.asarray(array)
        array.flush()
        write_json(path.with_suffix(".json"), {"checksums": checksums})
        for old in path.parent.glob(f"{prefix}*"):
            if old.stem != path.stem:
                old.unlink(missing_ok=True)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path.parent}: cannot write the {content} ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)
    return np.asarray(np.lib.format.open_memmap(path, mode="c"))
