"""Files that may come from strangers: JSON, safetensors and the reference's `.pt`, checked before they are read.

Nothing is unpickled, sizes and offsets that a header claims are compared with the file's size before anything is
allocated, and whatever is wrong is a `DataError` that names the file. Writers flush to disk before they return, and say
the size and hash of what they wrote, so that nothing is read again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickletools
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from causaldiffae.errors import DataError, InputError

MAX_JSON_BYTES = 16 * 2**20
MAX_HEADER_BYTES = 32 * 2**20
MAX_DIMENSIONS = 16

_BYTES_PER_ELEMENT = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}

_TORCH_NAMES = {
    "collections OrderedDict",
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch.storage UntypedStorage"),
    *(
        f"torch {name}"
        for name in ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    ),
}
_STORAGE = re.compile(r"torch (Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage")
_TORCH_INSTRUCTIONS = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "BINGET", "LONG_BINGET", "BINPERSID", "REDUCE", "BUILD"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "BINFLOAT"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("EMPTY_LIST", "APPEND", "APPENDS"),
}

StateDict = dict[str, torch.Tensor]


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key is given twice")
    return unique


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """One JSON object; `DataError` that starts with `where` if it is none, or has NaN or repeated keys."""
    try:
        value = json.loads(
            text.decode("utf-8"), parse_float=_finite, parse_constant=_finite, object_pairs_hook=_unique_keys
        )
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: it is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON object is needed, got {type(value).__name__}")
    return value


_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.+-]+")


def file_stem(text: str) -> str:
    """A file name's stem made from a variable's or a data set's name, which a stranger may have chosen.

    Letters, digits, `_ . + -` stay; whatever else may be there ("../x", "a b", "CON") becomes "_", with a few digits of
    a hash behind it, so that two names never share a file.
    """
    stem = _NOT_IN_A_NAME.sub("_", text)[:80]
    if stem == text and stem[:1] not in ("", ".", "-") and not stem.endswith(".") and stem.upper() not in _DEVICES:
        return stem
    return f"{stem.strip('.-') or 'x'}_{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:8]}"


_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{kind}{i}" for kind in ("COM", "LPT") for i in range(1, 10))}


def file_size(path: Path) -> int:
    """Size of a regular file; `DataError` for anything else, links included."""
    if path.is_symlink() or not path.is_file():
        raise DataError(f"{path}: it is missing or no regular file")
    return path.stat().st_size


def read_file(path: Path, limit: int) -> bytes:
    """A regular file's content, through links too; `DataError` if it is missing or has more than `limit` bytes."""
    try:
        if not path.is_file():  # a pipe or a device would never end
            raise DataError(f"{path}: it is missing or no regular file")
        size = path.stat().st_size
        if size > limit:
            raise DataError(f"{path}: it has {size} bytes, {limit} are allowed")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: it cannot be read ({getattr(error, 'strerror', None) or error})") from None


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Reads one JSON object; `DataError` if it is larger than `limit` bytes, no JSON, or has NaN or repeated keys."""
    size = file_size(path)
    if size > limit:
        raise DataError(f"{path}: it has {size} bytes, {limit} are allowed")
    return parse_json(path.read_bytes(), str(path))


def check_safetensors(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Checks a safetensors file's header against its size, and returns each tensor's dtype name and shape.

    The format: 8 bytes N (little endian), N bytes of JSON, then the tensors' bytes without gaps or overlaps.
    """
    size = file_size(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise DataError(f"{path}: it is no safetensors file, or cut off ({size} bytes, header of {length})")
        header = parse_json(file.read(length), f"{path}: header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DataError(f"{path}: header: __metadata__ must map strings to strings")
    spans, found = [], {}
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            numbers = [*shape, begin, end]
            ok = all(type(n) is int and 0 <= n < 2**63 for n in numbers) and len(shape) <= MAX_DIMENSIONS
            ok = ok and len(entry) == 3 and end - begin == math.prod(shape) * _BYTES_PER_ELEMENT[dtype]
        except (KeyError, TypeError, ValueError):
            ok = False
        if not ok:
            raise DataError(f"{path}: header: the entry of tensor {name[:80]!r} is wrong")
        spans.append((begin, end))
        found[name] = (dtype, tuple(shape))
    place = 0
    for begin, end in sorted(spans):
        if begin != place:
            raise DataError(f"{path}: header: tensors overlap or leave a gap at byte {min(begin, place)}")
        place = end
    if place != size - 8 - length:
        raise DataError(f"{path}: its tensors take {place} bytes, the file has {size - 8 - length}")
    return found


def _key(name: Any) -> str:
    return repr(name[:80]) if isinstance(name, str) else f"of key type {type(name).__name__}"


def read_tensors(path: Path) -> StateDict:
    """Reads a safetensors file to the CPU after `check_safetensors`."""
    check_safetensors(path)
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: {error}") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
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
    """Writes a file whole and flushes it to disk; its `size` and `sha256`, which are those of what was given."""
    with path.open("wb", buffering=0) as file:
        rest = memoryview(content)
        while rest:  # a system call takes two gigabytes at most
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file beside others that may be a stranger's: a link of that name is replaced, not followed.

    Raises:
        OSError: if it cannot be written; nothing is left behind.
    """
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
    """Writes plain types and flushes them to disk; `InputError` for what JSON cannot hold.

    Returns:
        The file's `size` and `sha256`.
    """
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path.name}: only plain types and finite numbers can be saved ({error})") from error
    if len(text) > MAX_JSON_BYTES:
        raise InputError(f"{path.name}: it would have {len(text)} bytes, {MAX_JSON_BYTES} are allowed")
    return _write(path, text.encode("utf-8") + b"\n")


def write_tensors(path: Path, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Writes dense tensors as safetensors, from any device, and flushes them to disk.

    Tensors that share memory (tied weights, slices of one buffer) are written each on its own. The file is hashed as
    it is handed over, so nothing is read again; it takes as much memory as it is large meanwhile.

    Returns:
        The file's `size` and `sha256`.

    Raises:
        InputError: for what is no dense tensor, or has a name or a dtype that the format does not allow.
    """
    separate: StateDict = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise InputError(f"{path.name}: {name} is no dense tensor")
        if name == "__metadata__":
            raise InputError(f"{path.name}: {name} is no name for a tensor")
        tensor = tensor.detach().to("cpu").contiguous()
        # safetensors refuses tensors that share memory: these become copies.
        storage = tensor.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    try:
        content = save(separate, metadata={"format": "pt"})
    except (KeyError, ValueError, SafetensorError) as error:
        raise InputError(f"{path.name}: safetensors cannot hold this state ({error})") from error
    return _write(path, content)


def _check_instructions(content: bytes, path: Path) -> None:
    """Looks through a state dict's pickle before `torch.load` follows it.

    With `weights_only=True` nothing of a stranger's is executed, but memory and time are not bounded: there,
    `bytearray(10**12)` is allowed, and a tuple of tuples of tuples, each named twice, takes for ever to hash. A dict of
    tensors needs neither, only the names in `_TORCH_NAMES`, and no tuple twice.
    """
    tuples: set[int] = set()
    places, last = 0, ""
    try:
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name == "GLOBAL" and str(argument) not in _TORCH_NAMES and not _STORAGE.fullmatch(str(argument)):
                raise DataError(f"{path}: it needs pickle execution, refused (its pickle names {str(argument)[:80]!r})")
            if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                place = places if name == "MEMOIZE" else int(str(argument))
                places += 1
                (tuples.add if last.startswith("TUPLE") else tuples.discard)(place)
            elif name in ("BINGET", "LONG_BINGET") and argument in tuples:
                raise DataError(f"{path}: its pickle refers to one tuple twice, which no state dict does; refused")
            elif name not in _TORCH_INSTRUCTIONS:
                raise DataError(f"{path}: it needs pickle execution, refused (its pickle has the instruction {name})")
            last = name
    except (ValueError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: its pickle is damaged or cut off ({str(error)[:80]})") from None


def load_torch_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Reads a plain `.pt` file of the reference (a dict of tensors, written by torch 1.6 or newer).

    Raises:
        DataError: if it is no such file, or if reading it would execute code.
    """
    path = Path(path)
    size = file_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch stores without compression; a compressed entry could unpack to any size.
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
                raise DataError(f"{path}: it is compressed or its entries are larger than the file, refused")
            names = [entry.filename for entry in entries]
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1 or len(set(names)) != len(names):
                raise DataError(f"{path}: it is no file of torch.save (one data.pkl and different names are needed)")
            _check_instructions(archive.read(pickles[0]), path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: it is no file of torch.save (torch 1.6 or newer): {error}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler met
        reason = "it needs pickle execution, refused" if "weights_only" in str(error) else "it cannot be read"
        raise DataError(
            f"{path}: {reason} ({str(error).splitlines()[0][:120] if str(error) else 'no reason'})"
        ) from error
    if not isinstance(state, dict) or not state:
        raise DataError(f"{path}: a dict of tensors is needed, got {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise DataError(f"{path}: a dict of tensors is needed, entry {_key(name)} is {type(tensor).__name__}")
        if tensor.is_meta or tensor.nbytes > size:
            raise DataError(f"{path}: tensor {name[:80]!r} of shape {tuple(tensor.shape)} is larger than the file")
    return {name: tensor.detach() for name, tensor in state.items()}
