"""The table of a folder of images: one row for each image, one column for each variable.

`labels.csv` is a UTF-8 CSV file with commas. Column `file` (or `filename`) holds the image's path inside the folder,
an optional column `split` holds train, val or test, and every other column is a variable of the graph. An empty cell
is a missing label: its image counts as unlabelled, and its numbers enter no statistics.

A column whose kind is not declared is binary if it holds two different values, continuous if it holds numbers, and
categorical if it holds words. Where some cells are numbers and some are not, the more frequent sort decides what the
others are told to be.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from causaldiffae.datasets.folder.description import Variable
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.variable_kinds import category_places
from causaldiffae.errors import DataError
from causaldiffae.files.storage import leaves_folder

SPLITS: Final = ("train", "val", "test")
MAX_TABLE_BYTES: Final = 1 << 29
MAX_CATEGORIES: Final = 1000
_LARGEST: Final = float(np.finfo(np.float32).max)
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity|nan)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """The cells of a `labels.csv` as they are written, without white space around them.

    Attributes:
        where: the file's name, for messages.
        files: every image's path inside the folder, tidied ("./a.png" is "a.png"), in the file's order; "" where it
            is refused.
        lines: where each row ends in the file.
        splits: the column `split`, or None.
        cells: every other column by its name.
    """

    where: str
    files: list[str]
    lines: list[int]
    splits: list[str] | None
    cells: dict[str, list[str]]

    def at(self, row: int) -> str:
        """Where a row is, for messages."""
        return f"{self.where}:{self.lines[row]}"


@dataclass(frozen=True)
class Column:
    """One variable's column as numbers.

    Attributes:
        kind: one of `variable_kinds.KINDS`.
        categories: the names whose places `values` are, or empty.
        values: (N,) float32, NaN where the label is missing or refused.
    """

    kind: str
    categories: tuple[str, ...]
    values: np.ndarray


def parse_table(content: bytes, where: str, problems: Problems) -> Table:
    """Reads a `labels.csv`; rows and columns that cannot be used are noted as problems and left out.

    Raises:
        DataError: if it is no table at all.
    """
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        rows, lines = [], []
        for row in reader:
            if len(row) == len(header):
                rows.append(row)
                lines.append(reader.line_num)
            elif row:
                problems.add(f"{where}:{reader.line_num}: the row has {len(row)} cells, the header has {len(header)}")
    except UnicodeDecodeError:
        raise DataError(f"{where}: it is no UTF-8 text") from None
    except csv.Error as error:
        raise DataError(f"{where}: line {reader.line_num} is no CSV ({error})") from None
    for place, name in enumerate(header):
        if not name:
            problems.add(f"{where}: column {place + 1} has no name")
        elif name in header[:place]:
            problems.add(f"{where}: column {name!r} is there twice")
    named = [name for name in ("file", "filename") if name in header]
    if len(named) != 1:
        raise DataError(f"{where}: one column 'file' is needed, there are: {', '.join(header)[:500] or 'none'}")
    if not rows:
        raise DataError(f"{where}: it has no rows")
    columns = [[cell.strip() for cell in column] for column in zip(*rows, strict=True)]
    cells = {name: column for name, column in zip(header, columns, strict=True) if name}
    files = _tidy_names(cells.pop(named[0]), lines, where, problems)
    splits = cells.pop("split", None)
    table = Table(where, files, lines, splits, cells)
    for place, split in enumerate(splits or ()):
        if split not in SPLITS:
            problems.add(f"{table.at(place)}: split is {split[:80]!r}, allowed are {', '.join(SPLITS)}")
    return table


def _tidy_names(names: list[str], lines: list[int], where: str, problems: Problems) -> list[str]:
    """The images' paths; "" for one that is refused."""
    tidied: list[str] = []
    seen: dict[str, int] = {}
    for name, line in zip(names, lines, strict=True):
        tidy, problem = posixpath.normpath(name) if name else "", ""
        if not name or tidy == ".":
            problem = "the file's name is empty"
        elif "\0" in name or len(name.splitlines()) > 1:
            problem = f"file name {name[:200]!r} has control characters"
        elif leaves_folder(name):
            problem = f"file name {name[:200]!r} leaves the folder"
        elif tidy in seen:
            problem = f"file name {name[:200]!r} is in line {seen[tidy]} already"
        if problem:
            problems.add(f"{where}:{line}: {problem}")
        seen.setdefault(tidy, line)
        tidied.append("" if problem else tidy)
    return tidied


def assign_splits(table: Table, seed: int, shares: Sequence[float]) -> np.ndarray:
    """(N,) which of `SPLITS` each row is in, as text: by the column, or by chance.

    The chance is a hash of the seed and the file's name: images that join or leave move no others.
    """
    if table.splits is not None:
        return np.array(table.splits)
    places = np.array([_place(name, seed) for name in table.files])
    return np.array(SPLITS)[np.searchsorted(np.cumsum(shares)[:2], places, side="right")]


def _place(name: str, seed: int) -> float:
    """A number in [0, 1) that follows from a name and a seed."""
    digest = hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def check_columns(table: Table, names: Sequence[str], ignore: Sequence[str] | None, problems: Problems) -> None:
    """Every variable must be a column, and every column a variable or named in `ignore` (None: any other)."""
    for name in names:
        if name not in table.cells:
            problems.add(f"{table.where}: variable {name!r} of the graph is no column")
    if ignore is None:
        return
    for name in table.cells:
        if name not in names and name not in ignore:
            problems.add(
                f"{table.where}: column {name!r} is no variable of the graph; name it under `ignore` to leave it"
            )
    for name in ignore:
        if name not in table.cells:
            problems.add(f"{table.where}: column {name!r} is to be ignored, but is not there")


def read_column(table: Table, name: str, declared: Variable, problems: Problems) -> Column:
    """A variable's column as numbers; every cell that is none is a problem."""
    cells = table.cells[name]
    words = set(cells) - {""}
    numbers = {word: float(word) for word in words if _NUMBER.fullmatch(word)}
    kind, categories, problem = _kind(cells, words, numbers, declared)
    if problem:
        problems.add(f"{table.where}: column {name} {problem}")
        return Column(kind, (), np.full(len(cells), np.nan, np.float32))
    if categories:
        places = category_places(categories)
        values = {word: places.get(word, places.get(numbers.get(word), math.nan)) for word in words}
    else:
        values = {word: number if abs(number) <= _LARGEST else math.nan for word, number in numbers.items()}
    values = {word: values.get(word, math.nan) for word in (*words, "")}
    wrong = {word for word in words if math.isnan(values[word])}
    for row, cell in enumerate(cells if wrong else ()):
        if cell in wrong:
            needed = f"a {'finite 32-bit ' if cell in numbers else ''}number is needed"
            needed = f"the categories are {', '.join(categories)[:500]}" if categories else needed
            problems.add(f"{table.at(row)}: {name} is {cell[:80]!r}, {needed}")
    return Column(kind, categories, np.array([values[cell] for cell in cells], np.float32))


def _kind(
    cells: list[str], words: set[str], numbers: Mapping[str, float], declared: Variable
) -> tuple[str, tuple[str, ...], str]:
    """A column's kind, its categories, and what is wrong with it as a whole or "".

    Args:
        words: the different cells that are not empty.
        numbers: those of them that are numbers.
    """
    kind, categories = declared.kind, declared.categories
    all_numbers = len(numbers) == len(words)
    different = len(set(numbers.values())) if all_numbers else len(words)
    if kind is None:
        mostly_numbers = all_numbers or 2 * sum(cell in numbers for cell in cells) >= sum(map(bool, cells))
        kind = "binary" if different == 2 else "continuous" if mostly_numbers else "categorical"
    if not words:
        return kind, (), "has no labels"
    if kind == "continuous" or categories or (kind == "binary" and different == 2 and all_numbers):
        return kind, categories, ""
    if kind == "binary" and different != 2:
        shown = ", ".join(sorted(words)[:5])[:200]
        return kind, (), f"is binary and has {different} different values ({shown}), 2 are needed"
    if len(words) > MAX_CATEGORIES:
        return kind, (), f"has {len(words)} different words, {MAX_CATEGORIES} are allowed"
    return kind, tuple(sorted(words, key=lambda word: (numbers.get(word, math.inf), word))), ""


def check_training_labels(
    table: Table, columns: Mapping[str, Column], in_training: np.ndarray, problems: Problems
) -> None:
    """Every column must vary, and every category appear, among the labelled training images (`in_training`)."""
    for name, column in columns.items():
        values = column.values[in_training]
        if not len(values):
            continue
        values = values.astype(np.float64)
        if values.max() - values.min() <= 1e-6 * np.abs(values).max():
            shown = column.categories[int(values[0])] if column.categories else f"{values[0]:g}"
            problems.add(f"{table.where}: column {name} is constant ({shown}) in the {len(values)} training images")
        for place, category in enumerate(column.categories):
            if not (values == place).any():
                rows = np.nonzero(column.values == place)[0]
                first = f", first in line {table.lines[rows[0]]}" if len(rows) else ""
                problems.add(f"{table.where}: {name}: no labelled training image has category {category!r}{first}")
