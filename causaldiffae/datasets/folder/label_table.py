"""The label table of an image folder: one row per image, one column per variable.

`labels.csv` is a comma-separated UTF-8 file. Column `file` (or `filename`) contains the path of the image relative to
the folder, an optional column `split` contains train, val or test, and all other columns are variables of the graph. An
empty cell is a missing label; the image is then unlabelled and excluded from statistics.

A column of undeclared kind is binary if it has two distinct values, continuous if it contains numbers, and categorical
if it contains other text. For mixed columns the majority determines the kind, and the other cells are errors.
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
from causaldiffae.datasets.variables import category_indices
from causaldiffae.errors import DataError
from causaldiffae.files.storage import leaves_folder

SPLITS: Final = ("train", "val", "test")
MAX_TABLE_BYTES: Final = 1 << 29
MAX_CATEGORIES: Final = 1000
_LARGEST: Final = float(np.finfo(np.float32).max)
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity|nan)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """The cells of a `labels.csv` as text, stripped of white space.

    Attributes:
        where: file name, for messages.
        files: normalised path of each image relative to the folder; "" if invalid.
        lines: last line number of each row in the file.
        splits: the column `split`, or None.
        cells: the other columns by name.
    """

    where: str
    files: list[str]
    lines: list[int]
    splits: list[str] | None
    cells: dict[str, list[str]]

    def at(self, row: int) -> str:
        """File name and line of a row, for messages."""
        return f"{self.where}:{self.lines[row]}"


@dataclass(frozen=True)
class Column:
    """A variable's column as numbers.

    Attributes:
        kind: one of `KINDS`.
        categories: names of the categories that `values` index; empty for numbers.
        values: (N,) float32, NaN where the label is missing or invalid.
    """

    kind: str
    categories: tuple[str, ...]
    values: np.ndarray


def parse_table(content: bytes, where: str, problems: Problems) -> Table:
    """Parses a `labels.csv`; invalid rows are reported to `problems` and skipped.

    Raises:
        DataError: if the file has no valid header or no rows.
    """
    rows, lines = [], []
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            if len(row) == len(header):
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
            elif row:
                problems.add(f"{where}:{reader.line_num}: expected {len(header)} cells, got {len(row)}")
    except UnicodeDecodeError:
        raise DataError(f"{where}: expected UTF-8 text") from None
    except csv.Error as error:
        raise DataError(f"{where}:{reader.line_num}: invalid CSV ({error})") from None
    for i, name in enumerate(header):
        if not name:
            problems.add(f"{where}: column {i + 1}: expected a name, got none")
        elif name in header[:i]:
            problems.add(f"{where}: expected unique column names, got {name!r} twice")
    named = [name for name in ("file", "filename") if name in header]
    if len(named) != 1:
        found = ", ".join(header)[:500] or "no columns"
        raise DataError(f"{where}: expected one column `file` with the paths of the images, got {found}")
    if not rows:
        raise DataError(f"{where}: expected at least one row, got none")
    cells = {name: list(column) for name, column in zip(header, zip(*rows, strict=True), strict=True) if name}
    files = _normalised_paths(cells.pop(named[0]), lines, where, problems)
    table = Table(where, files, lines, cells.pop("split", None), cells)
    for i, split in enumerate(table.splits or ()):
        if split not in SPLITS:
            problems.add(f"{table.at(i)}: split: expected one of {', '.join(SPLITS)}, got {split!r:.80}")
    return table


def _normalised_paths(names: list[str], lines: list[int], where: str, problems: Problems) -> list[str]:
    """Normalises image paths ("./a.png" becomes "a.png"); "" for an invalid one."""
    paths: list[str] = []
    seen: dict[str, int] = {}
    for name, line in zip(names, lines, strict=True):
        path, problem = posixpath.normpath(name) if name else "", ""
        if not name or path == ".":
            problem = "expected the path of an image, got an empty cell"
        elif "\0" in name or len(name.splitlines()) > 1:
            problem = f"expected a path without control characters, got {name!r:.200}"
        elif leaves_folder(name):
            problem = f"expected a path inside the folder, got {name!r:.200}"
        elif path in seen:
            problem = f"expected unique paths, got {name!r:.200} as in line {seen[path]}"
        if problem:
            problems.add(f"{where}:{line}: {problem}")
        seen.setdefault(path, line)
        paths.append("" if problem else path)
    return paths


def assign_splits(table: Table, seed: int, shares: Sequence[float]) -> np.ndarray:
    """The split of each row, (N,) text: from the column if it exists, or else at random.

    The random split is a hash of the seed and the path, so adding or removing images does not move others.
    """
    if table.splits is not None:
        return np.array(table.splits)
    hashes = [hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogatepass")).digest() for name in table.files]
    numbers = np.array([int.from_bytes(digest[:6], "big") / 2**48 for digest in hashes])  # in [0, 1)
    return np.array(SPLITS)[np.searchsorted(np.cumsum(shares)[:2], numbers, side="right")]


def check_columns(table: Table, names: Sequence[str], ignore: Sequence[str] | None, problems: Problems) -> None:
    """Checks that every variable has a column, and that other columns are in `ignore`; None ignores all others."""
    for name in names:
        if name not in table.cells:
            problems.add(f"{table.where}: expected a column {name!r} for the variable of the graph, got none")
    if ignore is None:
        return
    for name in table.cells:
        if name not in names and name not in ignore:
            problems.add(
                f"{table.where}: column {name!r}: expected a variable of the graph; to skip it, list it in `ignore`"
            )
    for name in ignore:
        if name not in table.cells:
            problems.add(f"{table.where}: expected a column {name!r}, which is listed in `ignore`, got none")


def read_column(table: Table, name: str, declared: Variable, problems: Problems) -> Column:
    """Converts a variable's column to numbers; every invalid cell is reported to `problems`."""
    cells = table.cells[name]
    words = set(cells) - {""}
    numbers = {word: float(word) for word in words if _NUMBER.fullmatch(word)}
    kind, categories, problem = _kind(cells, words, numbers, declared)
    if problem:
        problems.add(f"{table.where}: {name}: {problem}")
        return Column(kind, (), np.full(len(cells), np.nan, np.float32))
    if categories:
        indices = category_indices(categories)
        values = {word: float(indices.get(word, indices.get(numbers.get(word), math.nan))) for word in words}
    else:
        values = {word: number for word, number in numbers.items() if abs(number) <= _LARGEST}
    values = {word: values.get(word, math.nan) for word in (*words, "")}
    wrong = {word for word in words if math.isnan(values[word])}
    for row, cell in enumerate(cells if wrong else ()):
        if cell in wrong:
            expected = f"a {'finite 32-bit ' if cell in numbers else ''}number"
            expected = f"one of {', '.join(categories)[:500]}" if categories else expected
            problems.add(f"{table.at(row)}: {name}: expected {expected}, got {cell!r:.80}")
    return Column(kind, categories, np.array([values[cell] for cell in cells], np.float32))


def _kind(
    cells: list[str], words: set[str], numbers: Mapping[str, float], declared: Variable
) -> tuple[str, tuple[str, ...], str]:
    """Returns the kind of a column, its categories, and a problem of the whole column or "".

    Args:
        words: the distinct non-empty cells.
        numbers: the numeric ones among them.
    """
    kind, categories = declared.kind, declared.categories
    all_numbers = len(numbers) == len(words)
    different = len(set(numbers.values())) if all_numbers else len(words)
    if kind is None:
        mostly_numbers = all_numbers or 2 * sum(cell in numbers for cell in cells) >= sum(map(bool, cells))
        kind = "binary" if different == 2 else "continuous" if mostly_numbers else "categorical"
    if not words:
        return kind, (), "expected labels, got an empty column"
    if kind == "continuous" or categories or (kind == "binary" and different == 2 and all_numbers):
        return kind, categories, ""
    if kind == "binary" and different != 2:
        shown = ", ".join(sorted(words)[:5])[:200]
        return kind, (), f"expected 2 distinct values for a binary variable, got {different} ({shown})"
    if len(words) > MAX_CATEGORIES:
        return kind, (), f"expected at most {MAX_CATEGORIES} categories, got {len(words)}"
    return kind, tuple(sorted(words, key=lambda word: (numbers.get(word, math.inf), word))), ""


def check_training_labels(
    table: Table, columns: Mapping[str, Column], in_training: np.ndarray, problems: Problems
) -> None:
    """Checks that every column varies and every category occurs in the labelled training images."""
    for name, column in columns.items():
        values = column.values[in_training].astype(np.float64)
        if not len(values):
            continue
        if values.max() - values.min() <= 1e-6 * np.abs(values).max():
            shown = column.categories[int(values[0])] if column.categories else f"{values[0]:g}"
            where = f"all {len(values)} labelled training images"
            problems.add(f"{table.where}: {name}: expected two or more values, got {shown} in {where}")
        for i, category in enumerate(column.categories):
            if not (values == i).any():
                rows = np.nonzero(column.values == i)[0]
                first = f" (first in line {table.lines[rows[0]]})" if len(rows) else ""
                problems.add(f"{table.where}: {name}: expected training labels {category!r}, got none{first}")
