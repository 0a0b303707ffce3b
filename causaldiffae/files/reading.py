"""Untrusted JSON and safetensors files, validated before they are read.

An invalid file raises a `DataError` that names it. Writers flush to disk, and return the size and hash of the content.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from causaldiffae.errors import DataError, InputError

MAX_JSON_BYTES: Final = 16 * 2**20
MAX_HEADER_BYTES: Final = 32 * 2**20
MAX_DIMENSIONS: Final = 16

StateDict = dict[str, torch.Tensor]


def file_size(path: Path) -> int:
    """Returns the size of a regular file in bytes; raises `DataError` for other files.

    In an untrusted folder, a link may point to any file of the user. The only accepted links are those of the Hugging
    Face Hub's cache to files of the same repository.
    """
    if path.is_symlink() and not _is_hub_link(path):
        raise DataError(f"{path}: expected a regular file, got a link; replace it by a copy of the file")
    if not path.is_file():
        raise DataError(f"{path}: file not found, or not a regular file")
    return path.stat().st_size


def _is_hub_link(path: Path) -> bool:
    """Whether a link has the form REPOSITORY/snapshots/REVISION/NAME -> REPOSITORY/blobs/HASH."""
    try:
        folder, target = path.parent.resolve(), path.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return False
    revision = next((each for each in (folder, *folder.parents) if each.parent.name == "snapshots"), None)
    return revision is not None and target.parent == revision.parent.parent / "blobs"


def read_file(path: Path, limit: int) -> bytes:
    """Reads a regular file or a link to one; raises `DataError` if it is missing or larger than `limit` bytes."""
    try:
        if not path.is_file():  # a pipe or a device has no end
            raise DataError(f"{path}: file not found, or not a regular file")
        size = path.stat().st_size
        if size > limit:
            raise DataError(f"{path}: expected at most {limit} bytes, got {size}")
        return path.read_bytes()
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("repeated key")
    return unique


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """Parses a JSON object; raises a `DataError` prefixed by `where` for NaN, repeated keys and other content."""
    value = parse_json_value(text, where)
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def parse_json_value(text: bytes | str, where: str) -> Any:
    """Parses any JSON value; raises a `DataError` as `parse_json`."""
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return json.loads(decoded, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected JSON ({error})") from error


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Reads a JSON object of at most `limit` bytes; raises `DataError` as `file_size` and `parse_json`."""
    file_size(path)  # rejects links
    return parse_json(read_file(path, limit), str(path))


_DEVICES: Final = {"CON", "PRN", "AUX", "NUL", *(f"{kind}{i}" for kind in ("COM", "LPT") for i in range(1, 10))}


def file_stem(text: str) -> str:
    """Converts the untrusted name of a variable or data set into the stem of a file name.

    Names of letters, digits and `_ . + -` are unchanged. In other names ("../x", "a b", "CON"), invalid characters are
    replaced by "_" and part of a hash is appended, so that different names never share a file.
    """
    stem = re.sub(r"[^A-Za-z0-9_.+-]+", "_", text)[:80]
    if stem == text and stem[:1] not in ("", ".", "-") and not stem.endswith(".") and stem.upper() not in _DEVICES:
        return stem
    return f"{stem.strip('.-') or 'x'}_{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:8]}"


@contextmanager
def reading(kind: str, where: str) -> Iterator[None]:
    """Turns errors of a library, which has many types of them for damaged files, into a `DataError`.

    Args:
        kind: what the file is expected to be, such as "an Excel file".
        where: the file, for the message.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{where}: expected {kind} ({' '.join(str(error).split())[:200]})") from None


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def sync_to_disk(path: Path) -> None:
    """Flushes a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, content: bytes) -> dict[str, Any]:
    """Writes a file and flushes it to disk; returns the `size` and `sha256` of the content."""
    with path.open("wb", buffering=0) as file:
        rest = memoryview(content)
        while rest:  # a system call writes at most two gigabytes
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file atomically; a link of that name, as in an untrusted folder, is replaced instead of followed."""
    descriptor, temporary = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> dict[str, Any]:
    """Writes plain types as JSON, flushes to disk, and returns `size` and `sha256`; `InputError` for other types."""
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path.name}: expected plain types and finite numbers ({error})") from error
    if len(text) > MAX_JSON_BYTES:
        raise InputError(f"{path.name}: expected at most {MAX_JSON_BYTES} bytes, got {len(text)}")
    return _write(path, text.encode("utf-8") + b"\n")


def without_nan(value: Any) -> Any:
    """The same plain types with None in place of numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_tensors(path: Path) -> StateDict:
    """Reads a safetensors file to the CPU; raises `DataError` if it is missing or invalid.

    The library validates the header against the file size, but accepts headers of up to 100 MB and any number of
    dimensions; both are bounded here.
    """
    file_size(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise DataError(f"{path}: expected a safetensors header of at most {MAX_HEADER_BYTES} bytes, got {length}")
    try:
        state = load_file(path, device="cpu")
    except Exception as error:  # shapes and dtypes that torch does not support raise various errors
        raise DataError(f"{path}: expected a safetensors file ({str(error)[:200]})") from error
    for name, tensor in state.items():
        if tensor.dim() > MAX_DIMENSIONS:
            raise DataError(f"{path}: {name[:80]!r}: expected at most {MAX_DIMENSIONS} dimensions, got {tensor.dim()}")
    return state


def write_tensors(path: Path, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Writes dense tensors as safetensors, flushes them to disk, and returns `size` and `sha256`.

    Tensors that share memory (tied weights, slices of a buffer) are written separately. The file is serialised in
    memory, so it can be hashed without reading it again.

    Raises:
        InputError: If a value is not a dense tensor, or the format does not support a name or dtype.
    """
    separate: StateDict = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise InputError(f"{path.name}: {name}: expected a dense tensor")
        if name == "__metadata__":
            raise InputError(f"{path.name}: expected tensor names other than {name}")
        tensor = tensor.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()  # safetensors refuses tensors that share memory
        storages.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    try:
        content = save(separate, metadata={"format": "pt"})
    except (KeyError, ValueError, SafetensorError) as error:
        raise InputError(f"{path.name}: expected names and dtypes that safetensors supports ({error})") from error
    return _write(path, content)
