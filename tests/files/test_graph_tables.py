"""Adjacency matrices and lists of edges in tables."""

import io
from typing import Any

import numpy as np
import pytest

from causaldiffae.errors import DataError
from causaldiffae.files.graph_tables import parse_graph_table, parse_npy_matrix

MATRIX = [[0.0, 1.0], [0.0, 0.0]]


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (",age,smile\nage,0,1\nsmile,0,0\n", {"names": ["age", "smile"], "adjacency": MATRIX}),
        ("x;age;smile\nsmile;0;0\nage;0;1\n", {"names": ["age", "smile"], "adjacency": MATRIX}),
        ("age\tsmile\n0\t1\n0\t0\n", {"names": ["age", "smile"], "adjacency": MATRIX}),
        ('"age","smile"\n"age",0,1\n"smile",0,0\n', {"names": ["age", "smile"], "adjacency": MATRIX}),
        ("0,1\n0,0\n", {"adjacency": MATRIX}),
        ("from,to\nage,smile\n", {"edges": [["age", "smile"]]}),
        ('"","To","From","weight"\n1,smile,age,0.5\n', {"edges": [["age", "smile"]]}),
        ("age,smile\nage,hat\n", {"edges": [["age", "smile"], ["age", "hat"]]}),
    ],
)
def test_tables_are_read(text: str, expected: dict[str, Any]) -> None:
    assert parse_graph_table(text.encode(), "g.csv") == expected


def test_matrices_of_numpy_are_read() -> None:
    for dtype in (bool, np.int8, np.float64):
        assert parse_npy_matrix(npy(np.array(MATRIX, dtype)), "g.npy") == MATRIX


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected an adjacency matrix or a list of edges, got an empty file"),
        (",a,b\na,0,1\nc,0,0\n", "expected the same names for rows and columns"),
        (",a,b\na,0,x\nb,0,0\n", "adjacency: expected numbers, got 'x'"),
        ("from,to\na\n", r"expected a cause and an effect in each row, got \['a'\]"),
        ("a,b,c\nd,e,f\n", "expected a square matrix with names, or columns from and to"),
    ],
)
def test_other_tables_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=f"^g.csv: {message}"):
        parse_graph_table(text.encode(), "g.csv")


@pytest.mark.parametrize("content", [b"", npy(np.zeros((2, 3))), npy(np.zeros(4)), npy([[None]]), npy(MATRIX)[:-1]])
def test_other_arrays_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="^g.npy: expected a square matrix of numbers"):
        parse_npy_matrix(content, "g.npy")


@pytest.mark.parametrize(("mark", "words"), [("Undirected", "a -- b"), ("--", "a -- b"), ("<->", "a <-> b")])
def test_undirected_edges_in_a_column_of_types_are_refused(mark: str, words: str) -> None:
    table = "Source,Target,Type,Id\na,b,{},0\n"
    with pytest.raises(DataError, match=words):
        parse_graph_table(table.format(mark).encode(), "g.csv")
    assert parse_graph_table(table.format("Directed").encode(), "g.csv") == {"edges": [["a", "b"]]}
