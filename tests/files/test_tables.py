"""Tables of text in CSV and other formats."""

import io
import json
import sys
import types
from typing import Any

import numpy as np
import pandas as pd
import pytest

from causaldiffae.errors import DataError, InputError
from causaldiffae.files import tables
from causaldiffae.files.tables import (
    TextColumn,
    TextTable,
    read_celeba,
    read_celeba_partition,
    read_csv,
    read_excel,
    read_json_lines,
    read_parquet,
)

ROWS = [["a.png", "1"], ["b.png", "2"]]


def rows_of(table: TextTable) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells() for column in table.columns), strict=True)]


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("file,age\na.png,1\nb.png,2\n", []),
        ("file;age\r\na.png;1\r\nb.png;2", ["separated by semicolons"]),
        ("file\tage\ra.png\t1\rb.png\t2\r", ["separated by tabs"]),
        ('sep=|\n"file"|"age"\n"a.png"| 1 \n"b.png"|2\n', ["separated by vertical bars"]),
        ("\n\nfile,age\n\na.png,1\n,\nb.png,2\n\n", []),
    ],
)
def test_csv_of_any_dialect_is_read(text: str, notes: list[str]) -> None:
    table = read_csv(text.encode(), "t", lambda name: name == "file")
    assert table.header == ["file", "age"] and rows_of(table) == ROWS and table.notes == notes and not table.wrong


def test_other_encodings_are_noted() -> None:
    for codec, title in (("utf-16", "UTF-16"), ("cp1252", "Windows-1252")):
        table = read_csv("Größe,file\n5,a.png\n".encode(codec), "t")
        assert table.header == ["Größe", "file"] and table.notes == [f"read as {title} text"]


@pytest.mark.parametrize(
    ("text", "lines", "wrong"),
    [
        ("a,b\n1,2\n1\n1,2,3\n4,5\n", [2, 5], [(3, 1), (4, 3)]),
        ('a,b\n"x\ny",2\n3,4,5\n"""q""",4\n', [2, 5], [(4, 3)]),
        ('a,b\n5" pipe,3\n"x\n\ny",4\n6" pipe,5\n', [2, 3, 6], []),
        ("sep=;\n\na;b\n1;2\n", [4], []),
    ],
)
def test_lines_and_rows_of_another_length_are_named(text: str, lines: list[int], wrong: list[tuple[int, int]]) -> None:
    table = read_csv(text.encode(), "t")
    assert table.lines.tolist() == lines and table.wrong == wrong


def test_a_header_may_lack_one_name() -> None:
    assert read_csv(b'"age"\n"1",30\n"2",40\n', "t").header == ["", "age"], "row names of R"
    table = read_csv(b"file,age\na.png,1,\nb.png,2,\n", "t")
    assert table.header == ["file", "age", ""] and rows_of(table) == [[*row, ""] for row in ROWS]


def test_blocks_of_a_large_file_are_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a,b,c\n" + "".join(f'{i},"x,{i}",\n' if i % 7 else f"{i}\n" for i in range(300))
    whole = read_csv(text.encode(), "t")
    monkeypatch.setattr(tables, "_BLOCK", 13)
    blocks = read_csv(text.encode(), "t")
    assert blocks.wrong == whole.wrong == [(i + 2, 1) for i in range(0, 300, 7)]
    np.testing.assert_array_equal(blocks.lines, whole.lines)


def test_columns_hold_distinct_words() -> None:
    column = TextColumn.of([" a", "b", "a "])
    assert column.words == ("a", "b") and column.codes.tolist() == [0, 1, 0] and column.counts().tolist() == [2, 1]
    assert column.take(np.array([1])) == (("b",), np.array([0])) and column.cells() == ["a", "b", "a"]


def test_json_lines_are_read() -> None:
    records = [{"file_name": "a.png", "age": 51.5, "smile": True}, {"file_name": "b.png", "age": None, "box": [1, 2]}]
    content = "\n\n".join(map(json.dumps, records)).encode()
    table = read_json_lines(content, "t")
    assert table.header == ["file_name", "age", "smile", "box"] and table.lines.tolist() == [1, 3]
    assert rows_of(table) == [["a.png", "51.5", "True", ""], ["b.png", "", "", "[1, 2]"]]
    with pytest.raises(DataError, match="^t:2: expected a JSON object, got list"):
        read_json_lines(b'{"a": 1}\n[2]\n', "t")


FRAME = pd.DataFrame({"file": ["a.png", "b.png"], "age": [1, None], "smile": [True, False], "size": [0.5, 2.0]})
TYPED = [["a.png", "1", "True", "0.5"], ["b.png", "", "False", "2"]]


def test_parquet_and_excel_are_read() -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("openpyxl")
    for write, read in ((FRAME.to_parquet, read_parquet), (FRAME.to_excel, read_excel)):
        file = io.BytesIO()
        write(file, index=False)
        table = read(file.getvalue(), "t")
        assert table.header == list(FRAME) and rows_of(table) == TYPED
        with pytest.raises(DataError, match="^t: expected an? (Parquet|Excel) file"):
            read(file.getvalue()[:-30], "t")


def test_a_named_index_of_pandas_is_a_column() -> None:
    pytest.importorskip("pyarrow")
    for frame in (FRAME.set_index("file"), FRAME.set_index(["file", "age"])):
        file = io.BytesIO()
        frame.to_parquet(file)
        table = read_parquet(file.getvalue(), "t")
        assert table.header == list(FRAME) and rows_of(table) == TYPED


def test_tables_with_too_many_columns_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("openpyxl")
    monkeypatch.setattr(tables, "MAX_COLUMNS", 3)
    for write, read in ((FRAME.to_parquet, read_parquet), (FRAME.to_excel, read_excel)):
        file = io.BytesIO()
        write(file, index=False)
        with pytest.raises(DataError, match="^t: expected at most 3 columns, got 4"):
            read(file.getvalue(), "t")


@pytest.mark.parametrize(("read", "library"), [(read_parquet, "pyarrow"), (read_excel, "openpyxl")])
def test_a_missing_library_is_named(read: Any, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.parquet", None)
    with pytest.raises(InputError, match=f"^t: expected {library} to read .*, got none; pip install -e"):
        read(b"", "t")
    assert isinstance(sys, types.ModuleType)


CELEBA = b"2\nSmiling Young \n000001.jpg -1  1\n000002.jpg  1 -1\n"


def test_the_lists_of_celeba_are_read() -> None:
    table = read_celeba(CELEBA, "t")
    assert table.header == ["file", "Smiling", "Young"] and table.lines.tolist() == [3, 4] and not table.notes
    assert rows_of(table) == [["000001.jpg", "-1", "1"], ["000002.jpg", "1", "-1"]]
    assert read_celeba(CELEBA.replace(b"2\n", b"3\n", 1), "t").notes == [
        "the first line declares 3 images, the table has 2"
    ]
    for text in (b"000001.jpg 0\n000002.jpg 2\n", b"image_id,partition\n000001.jpg,0\n000002.jpg,2\n"):
        assert read_celeba_partition(text, "t") == {"000001.jpg": "0", "000002.jpg": "2"}


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_csv, b'a,b\n"1,2\n', r"invalid CSV \(EOF inside string"),
        (read_csv, b"\x81\xff", "expected UTF-8, UTF-16 or Windows-1252 text"),
        (read_csv, b"a," * 20_000, "expected at most 10000 columns"),
        (read_celeba, b"file,a\n1,2\n", "expected the number of images and the names"),
        (read_celeba_partition, b"a b c\n", "expected rows with a file and a number, got 'a b c'"),
    ],
)
def test_other_files_are_refused(read: Any, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"^t: {message}"):
        read(content, "t")
