"""Reader of pickled NumPy object arrays of `bytes` that does not unpickle them.

NumPy pickles such an array in a fixed form: a head that describes the array, a list of byte strings, a tail.
`pickletools.genops` decodes the instructions without executing them, and they are compared with that form. Strings are
yielded as they are read, so a file of many images is never held in memory.

`pickle.Unpickler` with an allow-listed `find_class` is not used. It bounds neither memory nor time: nine bytes with
LONG_BINPUT 2**28 took 2 GB and 28 s. It also reads the whole list first: 288 MB and 0.49 s for 20,000 strings of 15 kB,
compared with 1 MB and 0.27 s.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any, Final

from causaldiffae.errors import DataError

_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES: Final = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", *_CONSTANTS)
_BYTES: Final = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_MEMO_SIZE: Final = 64  # byte strings that a later instruction may refer to
_MAX_SKIPPED: Final = 4  # consecutive instructions without effect, of which a compressed file could hold billions

Instruction = tuple[str, Any]


class _UnexpectedError(ValueError):
    """A pickle of another form; the message describes what it contains."""


class _BoundedStream:
    """A stream with reads and lines of bounded length."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._limit = stream, limit

    def read(self, count: int) -> bytes:
        if count > self._limit:
            raise _UnexpectedError(f"a string of {count} bytes (at most {self._limit})")
        return self._stream.read(count)

    def readline(self) -> bytes:
        return self._stream.readline(256)  # genops rejects an incomplete line


def _instructions(stream: IO[bytes], max_bytes: int) -> Iterator[Instruction]:
    """Yields (name, argument) of relevant instructions; "value" and "bytes" stand for all their encodings."""
    memo: dict[int, Instruction] = {}
    strings: list[int] = []
    puts = skipped = 0
    last: Instruction = ("nothing", None)
    argument: Any
    for opcode, argument, _ in pickletools.genops(_BoundedStream(stream, max_bytes)):  # type: ignore[arg-type]
        name, skipped = opcode.name, skipped + 1
        if skipped > _MAX_SKIPPED or len(memo) > 2 * _MEMO_SIZE:
            raise _UnexpectedError("instructions without effect")
        if name in ("PROTO", "FRAME", "STACK_GLOBAL"):
            continue  # STACK_GLOBAL follows the two texts that GLOBAL has as its argument
        if name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            index, puts = puts if name == "MEMOIZE" else argument, puts + 1
            if last[0] in ("value", "bytes"):
                memo[index] = last
            if last[0] == "bytes":
                strings.append(index)
            if len(strings) > _MEMO_SIZE:
                memo.pop(strings.pop(0), None)
            continue
        skipped = 0
        if name == "GLOBAL":
            yield from (("value", part) for part in argument.split(" ", 1))
            last = (name, None)
            continue
        if name in ("BINGET", "LONG_BINGET"):
            if argument not in memo:
                raise _UnexpectedError("a reference to a value too far back")
            last = memo[argument]
        elif name in _BYTES:
            last = ("bytes", argument)
        else:
            last = ("value", _CONSTANTS.get(name, argument)) if name in _VALUES else (name, argument)
        yield last


def _head(shape: tuple[int, ...]) -> list[Instruction]:
    """Returns the instructions before the strings, for an object array of `shape` in C order."""

    def values(*constants: Any) -> list[Instruction]:
        return [("value", constant) for constant in constants]

    def names(*names: str) -> list[Instruction]:
        return [(name, None) for name in names]

    pack = "TUPLE" if len(shape) > 3 else f"TUPLE{len(shape)}" if shape else "EMPTY_TUPLE"
    return [
        *values("numpy._core.multiarray", "_reconstruct", "numpy", "ndarray", 0),
        *[*names("TUPLE1"), ("bytes", b"b"), *names("TUPLE3", "REDUCE", "MARK")],
        *[*values(1), *names("MARK")[: pack == "TUPLE"], *values(*shape), *names(pack)],
        *[*values("numpy", "dtype", "O8", False, True), *names("TUPLE3", "REDUCE", "MARK")],
        *[*values(3, "|", None, None, None, -1, -1, 63), *names("TUPLE", "BUILD")],
        *[*values(False), *names("EMPTY_LIST")],
    ]


def _strings(instructions: Iterator[Instruction], shape: tuple[int, ...]) -> Iterator[bytes]:
    """Checks the head, yields the items of the list, appended in batches or one by one, and checks the tail."""
    for expected in _head(shape):
        name, argument = next(instructions, ("its end", None))
        if argument == "numpy.core.multiarray":  # before NumPy 2
            argument = "numpy._core.multiarray"
        if (name, argument) != expected:
            found = name if argument is None else repr(argument)[:80]
            raise _UnexpectedError(f"{found} instead of {expected[1] or expected[0]} of an array of shape {shape}")
    in_batch, pending = False, 0
    for name, argument in instructions:
        if name == "bytes" and (in_batch or not pending):
            pending += 1
            yield argument
        elif name == "MARK" and not in_batch and not pending:
            in_batch = True
        elif pending and name == ("APPENDS" if in_batch else "APPEND"):
            in_batch, pending = False, 0
        else:
            tail = [name, *(name for name, _ in islice(instructions, 3))]
            if in_batch or pending or tail != ["TUPLE", "BUILD", "STOP"]:
                raise _UnexpectedError("an item that is not bytes")
            return


def iterate_bytes(stream: IO[bytes], shape: tuple[int, ...], max_bytes: int, where: str) -> Iterator[bytes]:
    """Yields the byte strings of a pickled object array in C order.

    Args:
        stream: stream at the start of the pickle.
        shape: shape of the array.
        max_bytes: maximum length of a string.
        where: prefix of error messages.

    Raises:
        DataError: If the pickle is damaged, or contains longer strings or other objects.
    """
    count, expected = 0, math.prod(shape)
    try:
        for content in _strings(_instructions(stream, max_bytes), shape):
            count += 1
            if count > expected:
                break
            yield content
    except _UnexpectedError as error:
        raise DataError(f"{where}: expected an object array of bytes, got {error}") from None
    except (ValueError, IndexError) as error:
        raise DataError(f"{where}: expected a complete pickle, got a damaged one ({str(error)[:80]})") from None
    if count != expected:
        raise DataError(f"{where}: expected {expected} strings, got {'more' if count > expected else count}")
