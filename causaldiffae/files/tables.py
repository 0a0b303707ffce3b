"""Tables of text cells: CSV with any separator, JSON lines, Parquet, Excel, and CelebA's lists.

Columns are stored as distinct words and codes, as pandas reads them. A CSV file with 202,599 rows and 40 columns takes
2.0 s of CPU time and 170 MB, and 0.5 s for the import of pandas; rows of Python strings take 6.9 s and 590 MB. pandas
fills short rows with empty cells and skips long ones, so the cells of each row are counted here, in NumPy.

Tables are untrusted: their size is limited by the caller, that of Excel and Parquet files also when uncompressed.
"""

from __future__ import annotations

import csv
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import parse_json, reading
from causaldiffae.files.text import SEPARATORS, clean_name, decode_text, first_rows, sniff_separator

MAX_COLUMNS: Final = 10_000
MAX_UNCOMPRESSED: Final = 1 << 30
_BLOCK: Final = 1 << 20
_TYPES: Final = (str, int, float, np.generic)


class TextColumn(NamedTuple):
    """A column of text: distinct cells without surrounding white space, and the index of each row's cell, (N,)."""

    words: tuple[str, ...]
    codes: np.ndarray

    @classmethod
    def of(cls, cells: Sequence[str]) -> TextColumn:
        """The column with these cells."""
        index: dict[str, int] = {}
        codes = [index.setdefault(cell.strip(), len(index)) for cell in cells]
        return cls(tuple(index), np.array(codes, np.int32))

    def cells(self) -> list[str]:
        """The cell of each row."""
        return np.array(self.words, object)[self.codes].tolist() if len(self.codes) else []

    def counts(self) -> np.ndarray:
        """Number of rows of each word."""
        return np.bincount(self.codes, minlength=len(self.words))

    def take(self, rows: np.ndarray) -> TextColumn:
        """The column of a subset of the rows, with the words that occur in it."""
        codes = self.codes[rows]
        used = np.bincount(codes, minlength=len(self.words)) > 0
        new = np.cumsum(used, dtype=np.int32) - 1
        return TextColumn(tuple(word for word, kept in zip(self.words, used, strict=True) if kept), new[codes])


@dataclass(frozen=True)
class TextTable:
    """A table as text.

    Attributes:
        header: names of the columns (`clean_name`), of which some may be empty or repeated.
        columns: one per name.
        lines: (N,) number of the line of each row in the file.
        separator: between the cells of a row in the file; a comma for formats without one.
        wrong: line and number of cells of each row that differs from the header; these rows are left out.
        notes: how the file was read, where that is not obvious.
    """

    header: list[str]
    columns: list[TextColumn]
    lines: np.ndarray
    separator: str = ","
    wrong: list[tuple[int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_csv(content: bytes, where: str, is_known: Callable[[str], bool] = lambda name: False) -> TextTable:
    """Reads a CSV file with any separator.

    Args:
        is_known: whether a name is expected in the header, see `sniff_separator`.

    Raises:
        DataError: starting with `where`, for undecodable text or an unfinished quotation.
    """
    text, encoding = decode_text(content, where)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    first, skipped, given = 0, 0, ""
    if text[:4].lower() == "sep=" and text[5:6] == "\n":  # a line for Excel
        given, first, skipped = text[4], 6, 1
    text = text[first:]
    leading = len(text) - len(text.lstrip("\n"))
    text, skipped = text[leading:], skipped + leading
    separator = given or sniff_separator(text, is_known)
    notes = [] if encoding == "UTF-8" else [f"read as {encoding} text"]
    if separator != ",":
        notes.append(f"separated by {SEPARATORS.get(separator, repr(separator))}")
    header = _header(text, separator, where)
    text, header = _with_full_header(text, header, separator)
    return _parse(text, header, separator, where, skipped, notes)


def _header(text: str, separator: str, where: str) -> list[str]:
    head = first_rows(text, separator, 1)
    _check_size(0, len(head[0]) if head else 0, where)
    return head[0] if head else []


def _check_size(size: int, columns: int, where: str) -> None:
    if size > MAX_UNCOMPRESSED:
        raise DataError(f"{where}: expected at most {MAX_UNCOMPRESSED} bytes uncompressed, got {size}")
    if columns > MAX_COLUMNS:
        raise DataError(f"{where}: expected at most {MAX_COLUMNS} columns, got {columns}")


def _with_full_header(text: str, header: list[str], separator: str) -> tuple[str, list[str]]:
    """Adds an empty name to a header that has one name less than the first rows have cells.

    R writes row names without a header, and some programs end every row, but not the header, with a separator.
    """
    rows = first_rows(text, separator, 20)[1:]
    if not rows or separator == " " or any(len(row) != len(header) + 1 for row in rows):
        return text, header
    if all(row[-1] == "" for row in rows):
        end = text.index("\n")
        return text[:end] + separator + text[end:], [*header, ""]
    return '""' + separator + text, ["", *header]


def _parse(text: str, header: list[str], separator: str, where: str, skipped: int, notes: list[str]) -> TextTable:
    """Parses text whose first row is the header; `skipped` lines precede it in the file."""
    if not header:
        return TextTable([], [], np.empty(0, np.int64), separator, [], notes)
    import pandas as pd

    content = text.encode()
    del text
    options: dict[str, Any] = {"sep": r"\s+" if separator == " " else separator, "header": None, "dtype": "category"}
    options |= {"keep_default_na": False, "na_values": [], "skip_blank_lines": False, "skipinitialspace": True}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that long rows are skipped
            frame = pd.read_csv(io.BytesIO(content), encoding="utf-8", on_bad_lines="skip", engine="c", **options)
    except (ValueError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise DataError(f"{where}: invalid CSV ({reason[:200]})") from None
    width = len(header)
    widths, lines = _rows_of(content, separator, len(frame), width)
    lines = lines + skipped
    if len(frame) != int((widths <= width).sum()) or frame.shape[1] != width:
        raise DataError(f"{where}: invalid CSV (a quotation that does not end with its cell)")
    columns = [_column(frame[i]) for i in range(width)]
    kept_widths, kept_lines = widths[widths <= width], lines[widths <= width]
    empty = np.logical_and.reduce([np.array([w == "" for w in column.words])[column.codes] for column in columns])
    rows = np.nonzero((kept_widths == width) & ~empty)[0]
    short = (kept_widths < width) & ~empty
    wrong = [*zip(lines[widths > width].tolist(), widths[widths > width].tolist(), strict=True)]
    wrong += zip(kept_lines[short].tolist(), kept_widths[short].tolist(), strict=True)
    rows = rows[rows > 0]  # without the header
    names = [clean_name(name) for name in header]
    return TextTable(names, [each.take(rows) for each in columns], kept_lines[rows], separator, sorted(wrong), notes)


def _column(series: Any) -> TextColumn:
    """A pandas column of categories, with white space stripped."""
    index: dict[str, int] = {}
    mapped = np.array(
        [index.setdefault(str(word).strip(), len(index)) for word in series.cat.categories.tolist()], np.int32
    )
    codes = series.cat.codes.to_numpy()
    if (codes < 0).any():  # missing in a short row
        mapped = np.append(mapped, index.setdefault("", len(index)))
    return TextColumn(tuple(index), mapped[codes].astype(np.int32))


def _rows_of(content: bytes, separator: str, expected: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of cells and first line of each row."""
    if separator == " ":
        widths = np.array([len(line.split()) for line in content.decode().splitlines()])
        return widths, np.arange(1, len(widths) + 1)
    given = np.frombuffer(content if content.endswith(b"\n") else content + b"\n", np.uint8)
    ends, separators = given == ord("\n"), given == ord(separator)
    newlines = np.nonzero(ends)[0]
    quoted_cells = True
    if b'"' in content:  # an odd number of quotation marks precedes characters inside of a quoted cell
        quotes = given == ord('"')
        inside = np.bitwise_xor.accumulate(quotes.view(np.uint8)).view(bool)
        ends, separators = ends & ~inside, separators & ~inside
        before = given[np.maximum(np.nonzero(quotes & inside)[0] - 1, 0)]  # of an opening mark
        quoted_cells = bool(np.isin(before, [ord('"'), ord("\n"), ord(separator)]).all())
    stops = np.nonzero(ends)[0]
    widths = _counts_between(separators, stops) + 1
    lines = np.concatenate([[0], np.searchsorted(newlines, stops)[:-1] + 1]) + 1
    if quoted_cells and int((widths <= width).sum()) == expected:
        return widths, lines
    reader = csv.reader(io.StringIO(content.decode(), newline=""), delimiter=separator, skipinitialspace=True)
    found, starts, line = [], [], 1
    try:
        for row in reader:
            found.append(max(len(row), 1))
            starts.append(line)
            line = reader.line_num + 1
    except csv.Error:
        pass
    return np.array(found), np.array(starts)


def _counts_between(marks: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Number of marks before each of the stops and after the previous one, with little memory."""
    total, before = 0, np.empty(len(stops), np.int64)
    for start in range(0, len(marks), _BLOCK):
        running = total + np.cumsum(marks[start : start + _BLOCK], dtype=np.int64)
        first, last = np.searchsorted(stops, [start, start + len(running)])
        before[first:last] = running[stops[first:last] - start]
        total = int(running[-1])
    return np.diff(before, prepend=0)


def read_json_lines(content: bytes, where: str) -> TextTable:
    """Reads a file with one JSON object per line; raises `DataError`."""
    text = decode_text(content, where).text
    records, lines = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            records.append(parse_json(line.encode(), f"{where}:{number}"))
            lines.append(number)
    names = list(dict.fromkeys(name for record in records for name in record))
    _check_size(0, len(names), where)
    columns = [TextColumn.of([_as_text(record.get(name)) for record in records]) for name in names]
    return TextTable([clean_name(name) for name in names], columns, np.array(lines, np.int64))


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, _TYPES) else json.dumps(value)[:1000]


def read_parquet(content: bytes, where: str) -> TextTable:
    """Reads a Parquet file.

    Raises:
        InputError: if pyarrow is not installed.
        DataError: starting with `where`, for a damaged or large file.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(f"{where}: expected pyarrow to read Parquet, got none; pip install -e '.[tables]'") from None
    with reading("a Parquet file", where):
        file = parquet.ParquetFile(io.BytesIO(content))
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        _check_size(sum(group.total_byte_size for group in groups), file.metadata.num_columns, where)
        frame = file.read().to_pandas()
        named = [name for name in frame.index.names if name is not None]
        frame = frame.reset_index(level=named) if named else frame
    return _from_frame(frame, [str(name) for name in frame.columns], where, first_line=1)


def read_excel(content: bytes, where: str) -> TextTable:
    """Reads the first sheet of an Excel file (.xlsx).

    Raises:
        InputError: if openpyxl is not installed.
        DataError: starting with `where`, for a damaged or large file.
    """
    try:
        import openpyxl
        import pandas as pd
    except ImportError:
        raise InputError(f"{where}: expected openpyxl to read Excel, got none; pip install -e '.[tables]'") from None
    with reading("an Excel file", where):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_size(sum(entry.file_size for entry in archive.infolist()), 0, where)
        sheets = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        rows = list(sheets.worksheets[0].iter_rows(values_only=True))
    notes = (
        [f"sheet {sheets.sheetnames[0]!r} of {len(sheets.sheetnames)} was read"] if len(sheets.sheetnames) > 1 else []
    )
    if not rows:
        return TextTable([], [], np.empty(0, np.int64), notes=notes)
    width = max(map(len, rows))
    _check_size(0, width, where)
    header, *body = [[*row, *[None] * (width - len(row))] for row in rows]
    names = ["" if name is None else str(name) for name in header]
    return _from_frame(pd.DataFrame(body, columns=range(width), dtype=object), names, where, 2, notes)


def _from_frame(frame: Any, header: list[str], where: str, first_line: int, notes: Sequence[str] = ()) -> TextTable:
    """Converts a pandas frame with typed columns; rows without any value are left out."""
    import pandas as pd

    columns = []
    for i, name in enumerate(header):
        codes, values = pd.factorize(frame.iloc[:, i].astype(object))
        unexpected = next(
            (value for value in values if not isinstance(value, _TYPES) and not hasattr(value, "year")), None
        )
        if unexpected is not None:
            kind = type(unexpected).__name__
            raise DataError(f"{where}: column {name!r:.80}: expected text or numbers, got {kind}")
        words = [_whole(value) for value in values]
        cells = np.array([*words, ""], object)[codes]
        columns.append(TextColumn.of(cells.tolist()))
    filled = [np.array([word != "" for word in column.words])[column.codes] for column in columns]
    rows = np.nonzero(np.logical_or.reduce(filled))[0] if filled else np.empty(0, np.int64)
    names = [clean_name(name) for name in header]
    return TextTable(names, [each.take(rows) for each in columns], rows + first_line, notes=list(notes))


def _whole(value: Any) -> str:
    """Text of a value; whole floats, which columns with missing integers have, without decimals."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def read_celeba(content: bytes, where: str) -> TextTable:
    """Reads list_attr_celeba.txt: the number of images, the names of the attributes, and a file and -1 or 1 per row.

    Raises:
        DataError: starting with `where`, for another layout.
    """
    text = decode_text(content, where).text.replace("\r\n", "\n")
    count, _, rest = text.partition("\n")
    names, _, rows = rest.partition("\n")
    if not count.strip().isdigit() or not names.strip():
        raise DataError(f"{where}: expected the number of images and the names of the attributes in two lines")
    header = ["file", *names.split()]
    table = _parse(" ".join(header) + "\n" + rows, header, " ", where, 1, [])
    if len(table.lines) != int(count):
        table.notes.append(f"the first line declares {int(count)} images, the table has {len(table.lines)}")
    return table


def read_celeba_partition(content: bytes, where: str) -> dict[str, str]:
    """Reads list_eval_partition, file -> 0, 1 or 2, as published or as CSV with a header; raises `DataError`."""
    text = decode_text(content, where).text.replace(",", " ")
    pairs = [line.split() for line in text.splitlines() if line.strip()]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise DataError(f"{where}: expected rows with a file and a number, got {' '.join(wrong)[:80]!r}")
    return {file: number for file, number in pairs if number.isdigit()}
