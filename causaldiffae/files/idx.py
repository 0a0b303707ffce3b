"""IDX files, the format of MNIST: images and labels as unsigned bytes, optionally gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.errors import DataError

SPLIT_FILES: Final = {"train": "train", "test": "t10k"}
"""File name prefix of each split."""
NUM_CLASSES: Final = 10
_MAX_BYTES: Final = 1 << 29  # uncompressed; the largest file of MNIST has 47 MB


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Opens a regular file, gzipped or not; converts errors while reading to a `DataError`."""
    if path.exists() and not path.is_file():  # a pipe or a device has no end
        raise DataError(f"{path}: not a regular file")
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if zipped else file as stream:
                yield stream
    except FileNotFoundError:
        raise DataError(f"{path}: file not found") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _read_up_to(stream: Any, count: int) -> bytearray:
    """Reads up to `count` bytes in blocks, so that a wrong declared size allocates no memory."""
    content = bytearray()
    while count > len(content) and (block := stream.read(min(count - len(content), 1 << 20))):
        content += block
    return content


def read_idx(path: str | Path, max_bytes: int = _MAX_BYTES) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped or not.

    Raises:
        DataError: If the file is missing, damaged, not an IDX file of unsigned bytes, larger than `max_bytes`, or its
            length differs from that declared in the header.
    """
    path = Path(path)
    with _open(path) as stream:
        magic = stream.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0":
            raise DataError(f"{path}: expected an IDX file, got one that starts with {magic.hex() or 'nothing'}")
        if magic[2] != 0x08:
            raise DataError(f"{path}: expected IDX type 0x08 (unsigned bytes), got 0x{magic[2]:02x}")
        if not 1 <= magic[3] <= 3:
            raise DataError(f"{path}: expected 1 to 3 dimensions, got {magic[3]}")
        header = stream.read(4 * magic[3])
        if len(header) < 4 * magic[3]:
            raise DataError(f"{path}: expected a header of {4 + 4 * magic[3]} bytes, got {4 + len(header)}")
        shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
        count = math.prod(shape)
        if count > max_bytes:
            raise DataError(f"{path}: expected at most {max_bytes} bytes, got a header that declares {count}")
        content = _read_up_to(stream, count + 1)
    if len(content) != count:
        size = len(content) if len(content) < count else "more"
        raise DataError(f"{path}: expected {count} bytes as its header declares, got {size}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Writes an array (N,) or (N, H, W) uint8 as a gzipped IDX file without a timestamp."""
    header = bytes((0, 0, 8, array.ndim)) + np.asarray(array.shape, ">u4").tobytes()
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as stream,
    ):
        stream.write(header + np.ascontiguousarray(array, np.uint8).tobytes())


def read_text(path: Path, max_bytes: int) -> str:
    """Reads a text file, gzipped or not; raises `DataError` if it has more than `max_bytes` uncompressed."""
    with _open(path) as stream:
        content = _read_up_to(stream, max_bytes + 1)
    if len(content) > max_bytes:
        raise DataError(f"{path}: expected at most {max_bytes} bytes uncompressed, got more")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: expected UTF-8 text") from None


def find_file(folder: Path, name: str) -> Path:
    """Returns `folder/name.gz` or `folder/name`, whichever exists; raises `DataError` if neither does."""
    if not folder.is_dir():
        raise DataError(f"{folder}: folder not found")
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder}: expected {name} or {name}.gz, found neither")


def read_digits(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads images (N, 28, 28) and digit labels (N,), both uint8, of `{split}-images...` and `{split}-labels...`.

    Raises:
        DataError: If a file is missing or damaged, the images are not 28 x 28, the numbers of images and labels differ,
            or a digit is above 9.
    """
    image_file = find_file(folder, f"{split}-images-idx3-ubyte")
    label_file = find_file(folder, f"{split}-labels-idx1-ubyte")
    images, digits = read_idx(image_file), read_idx(label_file)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise DataError(f"{image_file}: expected shape (N, 28, 28), got {images.shape}")
    if digits.ndim != 1 or len(digits) != len(images):
        raise DataError(f"{label_file}: expected shape {(len(images),)}, one label per image, got {digits.shape}")
    if len(digits) and digits.max() >= NUM_CLASSES:
        raise DataError(f"{label_file}: expected digits 0..{NUM_CLASSES - 1}, got {digits.max()}")
    return images, digits
