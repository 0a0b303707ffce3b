"""Tensors in untrusted files of `torch.save`, found without unpickling.

The instructions of the pickle are followed symbolically: containers and numbers are built, a name is only a name, and a
call is recorded but not made. Calls that rebuild tensors refer to entries of the archive, which are read on demand. So
tensors are found in training checkpoints of any program, next to optimisers, arguments and other objects, which
`torch.load(weights_only=True)` refuses; it also bounds neither memory nor time (`bytearray(10**12)`, nested tuples as
keys), and reads all tensors of a file.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from causaldiffae.errors import DataError
from causaldiffae.files.reading import StateDict, file_size

_DTYPES: Final = {
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
}
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS: Final = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS: Final = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_BYTES: Final = ("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_MODULE_PARTS: Final = ("_parameters", "_buffers", "_modules")
_MARK: Final = object()
MAX_DIMENSIONS: Final = 16


class TensorEntry(NamedTuple):
    """A tensor in an archive: its storage's entry and dtype, and its place in it."""

    key: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Name(NamedTuple):
    module: str
    name: str


@dataclass
class _Object:
    """An object that would be constructed: its class or function, and what it would contain."""

    kind: Any
    entries: dict[str, Any] = field(default_factory=dict)


class TorchArchive:
    """The tensors of a file of `torch.save` (torch 1.6 or newer).

    Attributes:
        path: the file.
        tensors: name -> entry; names of nested containers are joined by dots.

    Raises:
        DataError: if the file is missing or damaged, or is no such archive.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._bytes = path, file_size(path)
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
                # torch does not compress entries; a compressed one could expand to any size
                stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
                if not stored or sum(entry.file_size for entry in entries) > self._bytes:
                    raise DataError(f"{path}: expected uncompressed entries no larger than the file")
                names = [entry.filename for entry in entries]
                pickles = [name for name in names if name.endswith("/data.pkl")]
                if len(pickles) != 1 or len(set(names)) != len(names):
                    raise DataError(f"{path}: expected a file of torch.save with one data.pkl and unique names")
                self._folder = pickles[0].removesuffix("data.pkl")
                content = archive.read(pickles[0])
        except DataError:
            raise
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError, RuntimeError) as error:
            raise DataError(f"{path}: expected a file of torch.save, torch 1.6 or newer ({error})") from error
        try:
            tree = _Machine().run(content)
        except (ValueError, IndexError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}: expected a complete pickle, got a damaged one ({str(error)[:80]})") from None
        self.tensors: dict[str, TensorEntry] = {}
        for name, entry in _tensors_in(tree):
            self._check(name, entry)
            self.tensors[name] = entry

    def _check(self, name: str, entry: TensorEntry) -> None:
        size, stride = entry.size, entry.stride
        plain = all(type(number) is int and number >= 0 for number in (entry.offset, *size, *stride))
        if not plain or len(size) != len(stride) or len(size) > MAX_DIMENSIONS or not isinstance(entry.key, str):
            raise DataError(f"{self.path}: {name[:80]!r}: expected the shape of a tensor, got {str(size)[:80]}")
        count = math.prod(size) * entry.dtype.itemsize
        if count > self._bytes:
            raise DataError(f"{self.path}: {name[:80]!r}: expected at most the file's {self._bytes} bytes, got {count}")

    def read(self, names: Iterable[str]) -> StateDict:
        """Reads tensors by name, on the CPU; raises `DataError` for damaged ones."""
        storages: dict[str, bytearray] = {}
        state: StateDict = {}
        with zipfile.ZipFile(self.path) as archive:
            for name in names:
                entry = self.tensors[name]
                try:
                    if entry.key not in storages:
                        storages[entry.key] = bytearray(archive.read(f"{self._folder}data/{entry.key}"))
                    state[name] = _as_tensor(storages[entry.key], entry)
                except (KeyError, zipfile.BadZipFile, ValueError, RuntimeError, OSError, EOFError) as error:
                    reason = " ".join(str(error).split())[:80]
                    raise DataError(f"{self.path}: {name[:80]!r}: expected a complete tensor ({reason})") from None
        return state


def _as_tensor(storage: bytearray, entry: TensorEntry) -> torch.Tensor:
    last = entry.offset + sum((n - 1) * step for n, step in zip(entry.size, entry.stride, strict=True))
    if 0 in entry.size:
        return torch.empty(entry.size, dtype=entry.dtype)
    if (last + 1) * entry.dtype.itemsize > len(storage):
        raise ValueError(f"expected {(last + 1) * entry.dtype.itemsize} bytes, got {len(storage)}")
    whole = torch.frombuffer(storage, dtype=entry.dtype, count=len(storage) // entry.dtype.itemsize)
    return whole.as_strided(entry.size, entry.stride, entry.offset)


def _tensors_in(tree: Any) -> Iterator[tuple[str, TensorEntry]]:
    """Names and entries of all tensors; a container that occurs several times is visited once."""
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", tree)]
    while stack:
        name, node = stack.pop()
        if isinstance(node, TensorEntry):
            yield name or "tensor", node
            continue
        children = _children(node)
        if not children or id(node) in seen or name.count(".") > 100:
            continue
        seen.add(id(node))
        lead = f"{name}." if name else ""
        stack += reversed([(f"{lead}{key}" if key else name, child) for key, child in children])


def _children(node: Any) -> list[tuple[str, Any]]:
    """Named parts of a container; the parts of a pickled module have no names of their own."""
    if isinstance(node, _Object):
        node = node.entries
    if isinstance(node, dict):
        return [("" if key in _MODULE_PARTS else key, child) for key, child in node.items()]
    return [(str(i), child) for i, child in enumerate(node)] if type(node) in (list, tuple) else []


class _Machine:
    """Follows the instructions of a pickle without executing any."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        argument: Any
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _NUMBERS or name in _TEXTS:
                self.stack.append(argument)
            elif name in _BYTES:
                self.stack.append(_Object("bytes"))
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name not in ("PROTO", "FRAME"):
                self.step(name, argument)
        raise ValueError("no end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET"):
            stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}.get(name, _Object("set")))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])] if len(stack) >= count else stack[count]
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            items = self.marked()
            stack.append(_of_items(name, items))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else self.marked()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.marked()
            _set_items(stack[-1], items)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self.marked()
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            self.construct(name, argument)

    def construct(self, name: str, argument: Any) -> None:
        """Follows an instruction that would import a name or construct an object."""
        stack = self.stack
        if name == "GLOBAL":
            stack.append(_Name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Name(str(module), str(attribute)))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function, arguments))
        elif name == "NEWOBJ_EX":
            stack.pop()
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function, arguments))
        elif name in ("INST", "OBJ"):
            self.marked()
            stack.append(_Object(name))
        elif name == "BUILD":
            state = stack.pop()
            state = state[0] if isinstance(state, tuple) and state and isinstance(state[0], dict) else state
            if isinstance(stack[-1], _Object) and isinstance(state, dict):
                stack[-1].entries.update(state)
        elif name in ("BINPERSID", "PERSID"):
            stack.append(stack.pop() if name == "BINPERSID" else argument)
        else:
            raise ValueError(f"instruction {name}")

    def marked(self) -> list[Any]:
        """Pops the items above the last mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError("no mark")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items


def _of_items(name: str, items: list[Any]) -> Any:
    if name == "DICT":
        found: dict[str, Any] = {}
        _set_items(found, items)
        return found
    return {"TUPLE": tuple, "LIST": list}.get(name, lambda _: _Object("set"))(items)


def _set_items(target: Any, items: list[Any]) -> None:
    """Adds items with text or whole numbers as keys to a dict or an object; others are left out."""
    entries = target.entries if isinstance(target, _Object) else target
    if isinstance(entries, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str | int):
                entries[str(key)] = value


def _called(function: Any, arguments: Any) -> Any:
    """What a call stands for: a tensor, a dict, or an object."""
    name = function.name if isinstance(function, _Name) else ""
    if name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        return _tensor(name, arguments)
    if name in ("_rebuild_parameter", "_rebuild_parameter_with_state") and isinstance(arguments[0], TensorEntry):
        return arguments[0]
    if name in ("OrderedDict", "dict", "defaultdict"):
        return {}
    return _Object(function)


def _tensor(name: str, arguments: tuple[Any, ...]) -> Any:
    """The entry of `_rebuild_tensor*(storage, offset, size, stride, ...)`; an object for other storages."""
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, tuple) or len(storage) < 5 or storage[0] != "storage":
        return _Object(name)
    kind, key = storage[1], storage[2]
    dtype = _DTYPES.get(kind.name) if isinstance(kind, _Name) else None
    if name == "_rebuild_tensor_v3" and isinstance(arguments[6], _Name):
        dtype = getattr(torch, arguments[6].name, None)
    if not isinstance(dtype, torch.dtype) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        return _Object(name)
    return TensorEntry(key, dtype, offset, size, stride)
