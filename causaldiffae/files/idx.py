"""IDX files, the format of MNIST: images and labels as unsigned bytes, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from causaldiffae.errors import DataError

SPLIT_FILES: Final = {"train": "train", "test": "t10k"}
"""How the files of a split begin."""
NUM_CLASSES: Final = 10
_MAX_BYTES: Final = 1 << 29  # of one file, unpacked; MNIST's largest has 47 million


def read_idx(path: str | Path, max_bytes: int = _MAX_BYTES) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped or not.

    Never reads more than the header declares, and the header may declare `max_bytes` at most.

    Raises:
        DataError: naming the file, if it is missing, not IDX, not of unsigned bytes, too large, truncated, longer
            than its header says, or damaged.
    """
    path = Path(path)
    _refuse_devices(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if zipped else file as stream:
                return _read_idx_stream(path, stream, max_bytes)
    except FileNotFoundError:
        raise DataError(f"{path}: the file is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: it cannot be read ({error})") from None


def _read_idx_stream(path: Path, stream: Any, max_bytes: int) -> np.ndarray:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(f"{path}: it starts with {magic.hex() or 'nothing'}, an IDX file is needed")
    if magic[2] != 0x08:
        raise DataError(f"{path}: its values are of IDX type 0x{magic[2]:02x}, 0x08 (unsigned bytes) is needed")
    if not 1 <= magic[3] <= 3:
        raise DataError(f"{path}: it has {magic[3]} dimensions, 1 to 3 are allowed")
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise DataError(f"{path}: it ends within its header")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
    count = math.prod(shape)
    if count > max_bytes:
        raise DataError(f"{path}: its header declares {count} bytes, {max_bytes} are allowed")
    content = _read_up_to(stream, count + 1)
    if len(content) != count:
        size = f"{len(content)} bytes" if len(content) < count else "more"
        raise DataError(f"{path}: its header declares {count} bytes, it holds {size}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_up_to(stream: Any, count: int) -> bytearray:
    """Reads `count` bytes or to the end, in pieces: a file that lies about its size costs no memory."""
    content = bytearray()
    while count > len(content):
        piece = stream.read(min(count - len(content), 1 << 20))
        if not piece:
            break
        content += piece
    return content


def write_idx(path: Path, array: np.ndarray) -> None:
    """Writes (N,) or (N, H, W) uint8 as a gzipped IDX file, the same bytes each time."""
    header = bytes((0, 0, 8, array.ndim)) + np.asarray(array.shape, ">u4").tobytes()
    with path.open("wb") as file:
        _gzip_to(file, header + np.ascontiguousarray(array, np.uint8).tobytes())


def _gzip_to(file: BinaryIO, content: bytes) -> None:
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as stream:
        stream.write(content)


def _refuse_devices(path: Path) -> None:
    """A pipe or a device would never end."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: it is no regular file")


def read_text(path: Path, max_bytes: int) -> str:
    """A text file, gzipped or not, of at most `max_bytes` unpacked; else a `DataError` that names it."""
    _refuse_devices(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if zipped else file as stream:
                content = _read_up_to(stream, max_bytes + 1)
    except FileNotFoundError:
        raise DataError(f"{path}: the file is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: it cannot be read ({error})") from None
    if len(content) > max_bytes:
        raise DataError(f"{path}: it has more than {max_bytes} bytes, unpacked")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: it is no UTF-8 text") from None


def find_file(folder: Path, name: str) -> Path:
    """`folder/name` or `folder/name.gz`, whichever is there; else `DataError`."""
    if not folder.is_dir():
        raise DataError(f"{folder}: the folder is missing")
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder}: {name} or {name}.gz is missing")


def read_digits(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 28, 28) and digit labels (N,), both uint8, of `{split}-images...` and `{split}-labels...`.

    Raises:
        DataError: naming the file, if one is missing or damaged, the pictures are not 28 x 28, the numbers differ, or
            a digit is above 9.
    """
    image_file = find_file(folder, f"{split}-images-idx3-ubyte")
    label_file = find_file(folder, f"{split}-labels-idx1-ubyte")
    images, digits = read_idx(image_file), read_idx(label_file)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise DataError(f"{image_file}: its shape is {images.shape}, (N, 28, 28) is needed")
    if digits.ndim != 1 or len(digits) != len(images):
        raise DataError(f"{label_file}: its shape is {digits.shape}, {(len(images),)} is needed: one label per image")
    if len(digits) and digits.max() >= NUM_CLASSES:
        raise DataError(f"{label_file}: it holds digit {digits.max()}, 0..{NUM_CLASSES - 1} are allowed")
    return images, digits
