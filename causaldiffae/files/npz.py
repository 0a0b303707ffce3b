"""NumPy's `.npz` files that may come from strangers: checked before they are read, streamed, nothing unpickled.

An `.npz` is a zip archive of `.npy` members: a magic number, a header (dtype, order, shape) and the values. What a
header declares is compared with the member's size, and what a member declares with the bytes that it takes in the
archive, before anything is allocated. Large members come in blocks of rows. A member of dtype object is a pickle; one
that holds only `bytes` is read by `causaldiffae.files.pickles`, anything else is refused. Whatever is wrong is a
`DataError` that names the file and the member.
"""

from __future__ import annotations

import ast
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from causaldiffae.errors import DataError
from causaldiffae.files.pickles import iterate_bytes
from causaldiffae.files.reading import file_size

MAX_MEMBERS = 5000  # answers and pictures have some for every variable
MAX_HEADER_BYTES = 4096
MAX_ARRAY_BYTES = 2**29  # of one member that is read as a whole and whose shape the file decides
_BLOCK_BYTES = 2**20
_BEST_DEFLATE = 1040  # deflate shrinks to no less than 1/1032
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, UnicodeDecodeError)
_DTYPE = re.compile(r"[<>|=]?[?bBiufSUO]\d{0,12}", re.ASCII)


class Header(NamedTuple):
    """What a member's header declares."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int  # of the values, in bytes from the member's beginning


class NpzFile:
    """One `.npz` file, open for reading; a context manager.

    Raises:
        DataError: if it is missing, no zip archive, or has members that no `numpy.savez` writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = file_size(path)
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError) as error:
            raise DataError(f"{path}: it is no npz file, or cut off ({error})") from None
        entries = self._archive.infolist()
        self._entries = {entry.filename.removesuffix(".npy"): entry for entry in entries}
        problem = None
        if len(entries) > MAX_MEMBERS or len(self._entries) != len(entries):
            problem = f"it has {len(entries)} members, at most {MAX_MEMBERS} of different names are allowed"
        for entry in entries:
            stored = entry.compress_type == zipfile.ZIP_STORED
            if entry.flag_bits & 1 or not (stored or entry.compress_type == zipfile.ZIP_DEFLATED):
                problem = f"member {entry.filename[:80]!r} is encrypted or compressed in another way than numpy's"
            elif entry.compress_size > size or entry.file_size > entry.compress_size * (1 if stored else _BEST_DEFLATE):
                problem = f"member {entry.filename[:80]!r} declares {entry.file_size} bytes, more than it can hold"
        if problem:
            self._archive.close()
            raise DataError(f"{path}: {problem}")

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The members, without `.npy`."""
        return tuple(self._entries)

    def header(self, name: str) -> Header:
        """The header of a member, checked against the member's size (except for dtype object, whose size is open).

        Raises:
            DataError: if the member is missing, its header is wrong or declares another size than the member has.
        """
        with self._open(name) as stream:
            return self._read_header(name, stream)

    def array(self, name: str, shape: tuple[int | None, ...], kinds: str = "f") -> np.ndarray:
        """One member as a whole.

        Args:
            name: of the member.
            shape: as it must be; None leaves an axis open.
            kinds: allowed `dtype.kind` letters, "f" floating, "S" fixed-width bytes.

        Raises:
            DataError: if it is missing or damaged, or of another shape or dtype, or above `MAX_ARRAY_BYTES`.
        """
        with self._open(name) as stream:
            header = self._read_header(name, stream)
            if header.dtype.kind not in kinds or header.dtype.hasobject:
                raise DataError(f"{self._where(name)}: its dtype is {header.dtype}, kind {kinds} is needed")
            allowed = [given if wanted is None else wanted for given, wanted in zip(header.shape, shape, strict=False)]
            if len(header.shape) != len(shape) or list(header.shape) != allowed:
                wanted = "(" + ", ".join("N" if n is None else str(n) for n in shape) + ")"
                raise DataError(f"{self._where(name)}: its shape is {header.shape}, {wanted} is needed")
            count = math.prod(header.shape) * header.dtype.itemsize
            if count > MAX_ARRAY_BYTES and None in shape:  # what the caller asks for, it has room for
                raise DataError(f"{self._where(name)}: it declares {count} bytes, {MAX_ARRAY_BYTES} are allowed")
            content = bytearray()
            for piece in self._pieces(name, stream, count, _BLOCK_BYTES):
                content += piece
        return np.frombuffer(content, header.dtype).reshape(header.shape)

    def arrays(self, kinds: str, max_bytes: int) -> dict[str, np.ndarray]:
        """All members, of these kinds and of `max_bytes` together at most; `DataError` as `array`."""
        declared = sum(entry.file_size for entry in self._entries.values())
        if declared > max_bytes:
            raise DataError(f"{self.path}: it unpacks to {declared} bytes, {max_bytes} are allowed")
        return {name: self.array(name, (None,) * len(self.header(name).shape), kinds) for name in self.names}

    def byte_strings(self, name: str, rows: int, max_bytes: int) -> Iterator[bytes]:
        """The byte strings of a member of shape `rows` or (`rows`, ...), in C order, one by one.

        Fixed-width members (dtype S) lose the zero bytes at their strings' ends, as in numpy.

        Args:
            name: of the member.
            rows: its first axis.
            max_bytes: the longest string that is allowed.

        Raises:
            DataError: if it is missing or damaged, its first axis or its dtype is another, or it is an object array
                with anything but bytes in it.
        """
        with self._open(name) as stream:
            header = self._read_header(name, stream)
            if header.shape[:1] != (rows,):
                raise DataError(f"{self._where(name)}: its shape is {header.shape}, {rows} rows are needed")
            if header.dtype.kind == "O":
                yield from iterate_bytes(stream, header.shape, max_bytes, self._where(name))
                return
            width = header.dtype.itemsize
            if header.dtype.kind != "S" or not 0 < width <= max_bytes:
                raise DataError(f"{self._where(name)}: its dtype is {header.dtype}, bytes (S or object) are needed")
            for piece in self._pieces(name, stream, math.prod(header.shape) * width, width):
                yield piece.rstrip(b"\0")

    def _where(self, name: str) -> str:
        return f"{self.path}: {name}"

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        if name not in self._entries:
            found = ", ".join(self.names)[:200] or "nothing"
            raise DataError(f"{self._where(name)} is missing, the file has {found}")
        try:
            with self._archive.open(self._entries[name]) as stream:
                yield stream
        except _DAMAGED as error:
            raise DataError(f"{self._where(name)}: it is damaged or cut off ({error})") from None

    def _read_header(self, name: str, stream: IO[bytes]) -> Header:
        where = self._where(name)
        magic = stream.read(8)
        if len(magic) < 8 or magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2):
            raise DataError(f"{where}: it starts with {magic[:8].hex() or 'nothing'}, an npy header is needed")
        width = 2 if magic[6] == 1 else 4
        length = int.from_bytes(stream.read(width), "little")
        if length > MAX_HEADER_BYTES:
            raise DataError(f"{where}: its header has {length} bytes, {MAX_HEADER_BYTES} are allowed")
        try:
            fields = ast.literal_eval(stream.read(length).decode("latin-1").strip())
            description, shape, fortran = fields["descr"], fields["shape"], fields["fortran_order"]
            ok = len(fields) == 3 and isinstance(description, str) and bool(_DTYPE.fullmatch(description))
            ok = ok and isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**48 for n in shape)
            ok = ok and len(shape) <= 8 and fortran is False
            dtype = np.dtype(description)
        except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
            ok = False
        if not ok:
            raise DataError(f"{where}: its header is none of a plain array in C order")
        start = 8 + width + length
        held = self._entries[name].file_size - start
        if dtype.kind != "O" and math.prod(shape) * dtype.itemsize != held:
            declared = f"shape {shape} of {dtype}, {math.prod(shape) * dtype.itemsize} bytes"
            raise DataError(f"{where}: its header declares {declared}, it holds {max(held, 0)}")
        return Header(dtype, shape, start)

    def _pieces(self, name: str, stream: IO[bytes], count: int, size: int) -> Iterator[bytes]:
        """`count` bytes in pieces of `size`: a member that lies about its size costs no memory."""
        for start in range(0, count, size):
            wanted = min(size, count - start)
            piece = stream.read(wanted)
            if len(piece) < wanted:
                raise DataError(f"{self._where(name)}: it ends after {start + len(piece)} of {count} bytes")
            yield piece
        if stream.read(1):
            raise DataError(f"{self._where(name)}: it is longer than its header says")
