"""Untrusted NumPy `.npz` files, validated before memory is allocated, without unpickling.

An `.npz` file is a zip archive of `.npy` members, each with a header (dtype, order, shape) and values. The declared
size of a member is compared with its compressed size, and the shape in its header with its size, before `np.lib.format`
reads it. `np.load` is not sufficient: it allocates the declared size, decompresses any archive, and unpickles members
of dtype object. Byte strings in these are read by `causaldiffae.files.pickles`.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from causaldiffae.errors import DataError
from causaldiffae.files.pickles import iterate_bytes
from causaldiffae.files.reading import file_size

MAX_MEMBERS = 5000
MAX_HEADER_BYTES = 4096
MAX_ARRAY_BYTES = 2**29  # of one member whose shape the caller does not fix
_BEST_DEFLATE = 1040  # the maximum ratio of deflate is 1032
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, UnicodeDecodeError)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an uncompressed `.npz` file, which appears when it is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def read_arrays(path: Path, max_bytes: int) -> dict[str, np.ndarray] | None:
    """Reads the numbers and booleans that `write_arrays` wrote; None if the file is missing or damaged."""
    try:
        with NpzFile(path) as file:
            return file.arrays("biuf", max_bytes)
    except DataError:
        return None


class Header(NamedTuple):
    """The dtype and shape that a member's header declares."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def _check_entry(entry: zipfile.ZipInfo, size: int) -> None:
    """Rejects a member that `numpy.savez` does not write, or whose declared size its compressed size cannot hold."""
    name, stored = repr(entry.filename[:80]), entry.compress_type == zipfile.ZIP_STORED
    bound = entry.compress_size * (1 if stored else _BEST_DEFLATE)
    if entry.flag_bits & 1 or not (stored or entry.compress_type == zipfile.ZIP_DEFLATED):
        raise DataError(f"{name}: expected a stored or deflated member, got one that is encrypted or of another kind")
    if entry.compress_size > size or entry.file_size > bound:
        raise DataError(f"{name}: expected at most {bound} bytes, got a declared size of {entry.file_size}")


class NpzFile:
    """An open `.npz` file; a context manager.

    Raises:
        DataError: If the file is missing, not a zip archive, or has members that `numpy.savez` does not write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = file_size(path)
        try:
            self._archive = zipfile.ZipFile(path)
        except (*_DAMAGED, ValueError) as error:
            raise DataError(f"{path}: expected a complete npz file ({error})") from None
        entries = self._archive.infolist()
        self._entries = {entry.filename.removesuffix(".npy"): entry for entry in entries}
        try:
            if len(entries) > MAX_MEMBERS or len(self._entries) != len(entries):
                raise DataError(f"expected at most {MAX_MEMBERS} members with unique names, got {len(entries)}")
            for entry in entries:
                _check_entry(entry, size)
        except DataError as error:
            self._archive.close()
            raise DataError(f"{path}: {error}") from None

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members, without `.npy`."""
        return tuple(self._entries)

    def header(self, name: str) -> Header:
        """Reads the header of a member; raises `DataError` if it is invalid or contradicts the size of the member."""
        with self._open(name) as stream:
            return self._read_header(name, stream)

    def array(self, name: str, shape: tuple[int | None, ...], kinds: str = "f") -> np.ndarray:
        """Reads a member.

        Args:
            name: name of the member.
            shape: expected shape; None for an axis of any length.
            kinds: accepted values of `dtype.kind`.

        Raises:
            DataError: If the member is missing, damaged, of another shape or dtype, or larger than `MAX_ARRAY_BYTES`.
        """
        where, (dtype, found) = self._where(name), self.header(name)
        if dtype.kind not in kinds:
            raise DataError(f"{where}: expected a dtype of kind {kinds}, got {dtype}")
        if len(found) != len(shape) or any(n not in (None, given) for n, given in zip(shape, found, strict=True)):
            expected = "(" + ", ".join("N" if n is None else str(n) for n in shape) + ")"
            raise DataError(f"{where}: expected shape {expected}, got {found}")
        size = math.prod(found) * dtype.itemsize
        if size > MAX_ARRAY_BYTES and None in shape:  # a fixed shape is bounded by the caller
            raise DataError(f"{where}: expected at most {MAX_ARRAY_BYTES} bytes, got {size}")
        with self._open(name) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False, max_header_size=MAX_HEADER_BYTES)

    def arrays(self, kinds: str, max_bytes: int) -> dict[str, np.ndarray]:
        """Reads all members, of at most `max_bytes` in total; raises as `array`."""
        declared = sum(entry.file_size for entry in self._entries.values())
        if declared > max_bytes:
            raise DataError(f"{self.path}: expected at most {max_bytes} bytes uncompressed, got {declared}")
        return {name: self.array(name, (None,) * len(self.header(name).shape), kinds) for name in self.names}

    def byte_strings(self, name: str, rows: int, max_bytes: int) -> Iterator[bytes]:
        """Yields the byte strings of a member of shape (`rows`, ...), in C order.

        Trailing zero bytes of fixed-width strings (dtype S) are removed, as in NumPy.

        Raises:
            DataError: If the member is missing or damaged, has another first axis or a string of more than `max_bytes`,
                or contains objects other than bytes.
        """
        where = self._where(name)
        with self._open(name) as stream:
            dtype, shape = self._read_header(name, stream)
            if shape[:1] != (rows,):
                raise DataError(f"{where}: expected {rows} rows, got shape {shape}")
            if dtype.kind == "O":
                yield from iterate_bytes(stream, shape, max_bytes, where)
                return
            if dtype.kind != "S" or dtype.itemsize > max_bytes:
                raise DataError(f"{where}: expected bytes (dtype object, or S up to {max_bytes}), got {dtype}")
            for _ in range(math.prod(shape)):
                content = stream.read(dtype.itemsize)
                if len(content) < dtype.itemsize:
                    raise EOFError("too few bytes")
                yield content.rstrip(b"\0")

    def _where(self, name: str) -> str:
        return f"{self.path}: {name}"

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        if name not in self._entries:
            found = ", ".join(self.names)[:200] or "nothing"
            raise DataError(f"{self._where(name)}: expected this member, got {found}")
        try:
            with self._archive.open(self._entries[name]) as stream:
                yield stream
        except DataError:
            raise
        except (*_DAMAGED, ValueError) as error:
            raise DataError(f"{self._where(name)}: expected a complete member, got a damaged one ({error})") from None

    def _read_header(self, name: str, stream: IO[bytes]) -> Header:
        where = self._where(name)
        try:
            if np.lib.format.read_magic(stream) != (1, 0):  # later versions allow longer headers, read without a bound
                raise ValueError("another version")
            header = np.lib.format.read_array_header_1_0(stream, max_header_size=MAX_HEADER_BYTES)
        except _DAMAGED:
            raise
        except Exception as error:  # invalid literals raise various errors
            raise DataError(f"{where}: expected the header of an npy file 1.0 ({str(error)[:80]})") from None
        shape, fortran, dtype = header
        plain = dtype.kind in "biufSUO" and dtype.itemsize > 0 and not fortran and len(shape) <= 8
        if not plain or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
            raise DataError(
                f"{where}: expected a plain array in C order, got dtype {dtype} and shape {str(shape)[:80]}"
            )
        declared, held = math.prod(shape) * dtype.itemsize, self._entries[name].file_size - stream.tell()
        if dtype.kind != "O" and declared != held:
            raise DataError(f"{where}: expected {declared} bytes for shape {shape} of {dtype}, got {held}")
        return Header(dtype, shape)
