"""Parses graphs in tables: adjacency matrices as CSV or .npy, and lists of edges as CSV.

,age,smile        from,to         The entry in row i and column j is 1 for names[i] -> names[j], and else 0.
age,0,1           age,smile
smile,0,0
"""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np

from causaldiffae.errors import DataError
from causaldiffae.files.graph_formats import edge_columns
from causaldiffae.files.parsed_graph import undirected_edge
from causaldiffae.files.text import read_small_table

MAX_BYTES: Final = 1 << 20
_MAX_HEADER: Final = 4096
_UNDIRECTED: Final = ("undirected", "--", "---", "<->")


def parse_graph_table(content: bytes, where: str) -> dict[str, Any]:
    """Parses a CSV file with any separator.

    Returns:
        `edges`, or `adjacency` with `names` if the file has names.

    Raises:
        DataError: starting with `where`, for another table.
    """
    rows = read_small_table(content, where, MAX_BYTES)
    if not rows:
        raise DataError(f"{where}: expected an adjacency matrix or a list of edges, got an empty file")
    header, body = rows[0], rows[1:]
    if ends := edge_columns(header):
        _check_directed(header, body, ends, where)
        return {"edges": [_two(row, ends, where) for row in body]}
    if len(header) == 2 and not (body and _is_number(body[0][-1])):
        return {"edges": [_two(row, (0, 1), where) for row in rows]}
    if all(map(_is_number, header)):  # no names
        return {"adjacency": _numbers(rows, where)}
    if len(body) == len(header) and all(len(row) == len(header) for row in body):
        return {"names": header, "adjacency": _numbers(body, where)}  # names of columns only
    if len(body) and all(len(row) == len(body) + 1 for row in body):
        names, given = header[-len(body) :], [row[0] for row in body]
        if sorted(names) != sorted(given):
            raise DataError(f"{where}: expected the same names for rows and columns, got {given} and {names}"[:500])
        order = [given.index(name) for name in names]
        return {"names": names, "adjacency": [_numbers([body[i][1:]], where)[0] for i in order]}
    raise DataError(f"{where}: expected a square matrix with names, or columns from and to, got {header}"[:500])


def _check_directed(header: list[str], rows: list[list[str]], ends: tuple[int, int], where: str) -> None:
    """Raises `DataError` for an undirected edge of a table with a column `type`, as Gephi writes it."""
    names = [name.casefold() for name in header]
    if "type" not in names:
        return
    kind = names.index("type")
    for row in rows:
        if len(row) > max(kind, *ends) and row[kind].casefold() in _UNDIRECTED:
            mark = "<->" if row[kind] == "<->" else "--"
            raise undirected_edge(where, row[ends[0]], mark, row[ends[1]])


def _two(row: list[str], ends: tuple[int, int], where: str) -> list[str]:
    if len(row) <= max(ends):
        raise DataError(f"{where}: expected a cause and an effect in each row, got {row}"[:500])
    return [row[end] for end in ends]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(rows: list[list[str]], where: str) -> list[list[float]]:
    for row in rows:
        for cell in row:
            if not _is_number(cell):
                raise DataError(f"{where}: adjacency: expected numbers, got {cell!r:.80}")
    return [[float(cell) for cell in row] for row in rows]


def parse_npy_matrix(content: bytes, where: str) -> list[list[float]]:
    """Parses a square matrix of numbers or booleans in a .npy file; raises `DataError` for other content."""
    stream = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("another version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_MAX_HEADER)
        if dtype.kind not in "biuf" or len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"dtype {dtype} and shape {shape}")
        if shape[0] * shape[1] * dtype.itemsize != len(content) - stream.tell():
            raise ValueError("another length")
        stream.seek(0)
        matrix = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=_MAX_HEADER)
    except Exception as error:  # invalid literals in the header raise various errors
        raise DataError(f"{where}: expected a square matrix of numbers ({str(error)[:80]})") from None
    return matrix.astype(np.float64).tolist()
