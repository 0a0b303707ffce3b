"""Object arrays of `bytes` as `numpy.save` pickles them, read without unpickling.

A pickle is a program for a small stack machine that may call any function. Here its instructions are only looked at
(`pickletools.genops` decodes and does not run them), and a machine that knows nothing but numpy's way of writing such
an array follows them: the two names `_reconstruct` and `dtype` stand for themselves, constants are pushed, one list
of byte strings is filled. Any other instruction, name or value ends it. The strings are handed on as they come, so
that a file of many pictures never lies in memory as a whole.
"""

from __future__ import annotations

import math
import pickletools
from collections import deque
from collections.abc import Iterator
from typing import IO, Any, Final

from causaldiffae.errors import DataError

_RECONSTRUCT, _ARRAY_TYPE, _DTYPE_TYPE = "numpy _reconstruct", "numpy.ndarray", "numpy.dtype"
_NAMES: Final = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): _ARRAY_TYPE,
    ("numpy", "dtype"): _DTYPE_TYPE,
}
_CONSTANTS: Final = {
    *("BININT", "BININT1", "BININT2", "LONG1", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
}
_BYTES: Final = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_VALUES: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MAX_STACK: Final = 4096  # pickle fills lists in batches of 1,000
_CACHE_SIZE: Final = 64


class _Refused(ValueError):
    """The stream is no object array of bytes; the text says what it has instead."""


class _Token:
    """Something on the stack that is not a constant: a name, the array, its dtype, a list, a mark, a string's place."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


_MARK, _LIST, _STRING = _Token("mark"), _Token("list"), _Token("string")
_ARRAY, _DTYPE = _Token("array"), _Token("dtype")


class _Limited:
    """A stream that gives `limit` bytes at a time at most, and counts lines as short."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._limit = stream, limit

    def read(self, count: int) -> bytes:
        if count > self._limit:
            raise _Refused(f"a string of {count} bytes, {self._limit} are allowed")
        return self._stream.read(count)

    def readline(self) -> bytes:
        line = self._stream.readline(256)
        if not line.endswith(b"\n"):
            raise _Refused("a line without end")
        return line


class _Machine:
    """Follows one pickle; `step` returns a string of the array when the instruction brought one."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.last = b""  # the string that _STRING on top of the stack stands for
        self.remembered: deque[int] = deque()
        self.shape: tuple[int, ...] | None = None

    def step(self, name: str, argument: Any) -> bytes | None:
        if name in _BYTES:
            return self.take_string(argument)
        if name in _CONSTANTS and self.in_list():
            raise _Refused("something in its list that is no bytes")
        if name in ("BINGET", "LONG_BINGET"):
            value = self.memo.get(argument)
            if isinstance(value, bytes) and self.in_list():
                return self.take_string(value)
            if value is None:
                raise _Refused("a reference to something too far back")
            self.push(value)
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            self.remember(len(self.memo) if name == "MEMOIZE" else argument)
        elif name in _CONSTANTS:
            self.push(_VALUES.get(name, argument))
        elif name == "MARK":
            self.push(_MARK)
        elif name == "EMPTY_LIST":
            self.push(_LIST)
        elif name in ("APPENDS", "APPEND"):
            items = self.pop_to_mark() if name == "APPENDS" else [self.pop()]
            if not self.stack or self.stack[-1] is not _LIST or any(item is not _STRING for item in items):
                raise _Refused("something in its list that is no bytes")
        elif name in ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            self.push_tuple(name)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ", 1) if name == "GLOBAL" else [self.pop(), self.pop()][::-1]
            self.push_name(tuple(parts))
        elif name == "REDUCE":
            self.call(*[self.pop(), self.pop()][::-1])
        elif name == "BUILD":
            self.build(self.pop())
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise _Refused(f"the instruction {name}")
        return None

    def in_list(self) -> bool:
        """Whether a string that comes now is an item of the list: the list, its mark or an item is on top."""
        top = self.stack[-1:]
        return top in ([_STRING], [_LIST]) or self.stack[-2:] == [_LIST, _MARK]

    def take_string(self, content: bytes) -> bytes | None:
        if not self.in_list():
            self.push(content)  # the b"b" that numpy reconstructs an empty array with
            if len(content) > 1:
                raise _Refused("bytes outside its list")
            return None
        self.push(_STRING)
        self.last = content
        return content

    def remember(self, place: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise _Refused("a reference to nothing")
        value = self.last if self.stack[-1] is _STRING else self.stack[-1]
        self.memo[place] = value
        if self.stack[-1] is _STRING:
            self.remembered.append(place)
            if len(self.remembered) > _CACHE_SIZE:
                self.memo[self.remembered.popleft()] = None

    def push(self, value: Any) -> None:
        if len(self.stack) >= _MAX_STACK:
            raise _Refused("too many values at once")
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise _Refused("too few values")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if _MARK not in self.stack:
            raise _Refused("too few values")
        place = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def push_tuple(self, name: str) -> None:
        if name == "TUPLE":
            self.push(tuple(self.pop_to_mark()))
        else:
            count = int(name[5:]) if name[5:].isdigit() else 0
            self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def push_name(self, parts: tuple[Any, ...]) -> None:
        if parts not in _NAMES:
            raise _Refused(f"the name {' '.join(map(str, parts))[:80]!r}")
        self.push(_Token(_NAMES[parts]))

    def call(self, function: Any, arguments: Any) -> None:
        kind = function.kind if isinstance(function, _Token) else None
        plain = arguments if isinstance(arguments, tuple) else ()
        if kind == _RECONSTRUCT and plain[1:] == ((0,), b"b") and getattr(plain[0], "kind", None) == _ARRAY_TYPE:
            self.push(_ARRAY)
        elif kind == _DTYPE_TYPE and plain[:1] in (("O8",), ("O4",), ("O",)):
            self.push(_DTYPE)
        else:
            raise _Refused("a call that no array of bytes needs")

    def build(self, state: Any) -> None:
        target = self.stack[-1] if self.stack else None
        if target is _DTYPE and isinstance(state, tuple):
            return
        if target is not _ARRAY or not isinstance(state, tuple) or len(state) != 5 or self.shape is not None:
            raise _Refused("a state that is none of an array's")
        _, shape, dtype, fortran, items = state
        whole = isinstance(shape, tuple) and all(type(n) is int for n in shape)
        if not whole or dtype is not _DTYPE or fortran is not False or items is not _LIST:
            raise _Refused("a state that is none of an object array in C order")
        self.shape = shape


def iterate_bytes(stream: IO[bytes], shape: tuple[int, ...], max_bytes: int, where: str) -> Iterator[bytes]:
    """The strings, in C order, of the pickled object array of `shape` at which `stream` stands.

    Args:
        stream: after the npy header.
        shape: the header's.
        max_bytes: the longest string that is allowed.
        where: for messages, "file: member".

    Raises:
        DataError: if the pickle is damaged or holds anything else.
    """
    count, machine = 0, _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(_Limited(stream, max_bytes)):  # type: ignore[arg-type]
            content = machine.step(opcode.name, argument)
            if content is not None:
                count += 1
                if count > math.prod(shape):
                    raise _Refused(f"more than the {math.prod(shape)} strings of its header")
                yield content
    except _Refused as refusal:
        raise DataError(f"{where}: an object array of bytes alone is read, it has {refusal}") from None
    except (ValueError, IndexError) as error:
        raise DataError(f"{where}: its pickle is damaged or cut off ({str(error)[:80]})") from None
    if machine.stack != [_ARRAY] or machine.shape != shape or count != math.prod(shape):
        raise DataError(f"{where}: its pickle holds {count} strings of shape {machine.shape}, the header says {shape}")
